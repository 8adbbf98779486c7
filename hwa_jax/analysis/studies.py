"""The instruments applied to the weights of one training; results are plain values, ready for JSON."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from hwa_jax.analysis import convex_hull, curvature, landscape
from hwa_jax.analysis.connectivity import paths
from hwa_jax.analysis.split_loss import SplitLoss
from hwa_jax.analysis.weight_vectors import check
from hwa_jax.data import Split
from hwa_jax.errors import UserError
from hwa_jax.training.setup import Setup
from hwa_jax.training.weights import Weights

# Wraps an iterable of pieces of work: (pieces, what they are) -> the same pieces.
Progress = Callable[[Iterable, str], Iterable]


class Subject(NamedTuple):
    """Weights of one training that are looked at together.

    Attributes:
        title: what they are.
        environment: in which it was trained, as `hwa_jax.training.environment.environment` returns it.
        setup: network, data and evaluator.
        compared: name -> weights of which all pairs are of interest.
        successive: name -> weights in the order of training.
        corners: those that span the convex hull.
        plane: those that span the plane; three of them.
        centre: the name in `compared` that random directions start from.
        mask: of `compared`, `corners` and `centre`; None for dense networks.
        masks_differ: whether `successive` weights are pruned further and further.
    """

    title: str
    environment: dict[str, Any]
    setup: Setup
    compared: dict[str, Weights]
    successive: dict[str, Weights]
    corners: dict[str, Weights]
    plane: dict[str, Weights]
    centre: str
    mask: Any
    masks_differ: bool


def connectivity_study(subject: Subject, split: Split, num_positions: int, progress: Progress) -> dict[str, Any]:
    """Loss, error and barriers between all compared weights, and between successive ones.

    Returns:
        "compared" and "successive": a list of {"from", "to", "position", "loss", "error", "loss_barrier",
        "error_barrier"}; losses in nats, errors 0..1.

    Raises:
        UserError: there is no pair, or weights that do not match.
    """
    if max(len(subject.compared), len(subject.successive)) < 2:
        raise UserError(f"{subject.title}: there is one set of weights, and connectivity is between two")
    groups = {
        "compared": (subject.compared, itertools.combinations(subject.compared, 2), True),
        "successive": (subject.successive, itertools.pairwise(subject.successive), not subject.masks_differ),
    }
    found = {}
    for group, (weights, pairs, one_mask) in groups.items():
        between = paths(
            subject.setup, weights, split, np.linspace(0, 1, num_positions), pairs=pairs, one_mask=one_mask,
            progress=lambda pairs: progress(pairs, f"{group} weights"),
        ) if len(weights) > 1 else {}
        found[group] = [
            {"from": a, "to": b, "position": path.positions.tolist(), "loss": path.loss.tolist(), "error": path.error.tolist(),
             "loss_barrier": path.loss_barrier, "error_barrier": path.error_barrier}
            for (a, b), path in between.items()
        ]
    return found


def hull_study(
    subject: Subject, split: Split, num_points: int, concentration: float, seed: int, progress: Progress
) -> dict[str, Any]:
    """The distribution of the loss inside the convex hull, against its corners.

    Returns:
        "corners": name -> {"loss", "error"}; "centre": {"loss", "error"}; "inside": {"loss": [...], "error": [...]};
        "concentration".

    Raises:
        UserError: fewer than two corners, or weights that do not match.
    """
    hull = convex_hull.hull_metrics(
        subject.setup, subject.corners, split, num_points=num_points, concentration=concentration, seed=seed,
        progress=lambda chunks: progress(chunks, "convex hull"),
    )
    corners = zip(hull.names, hull.corners.loss.tolist(), hull.corners.error.tolist())
    return {
        "corners": {name: {"loss": loss, "error": error} for name, loss, error in corners},
        "centre": {"loss": float(hull.centre.loss[0]), "error": float(hull.centre.error[0])},
        "inside": {"loss": hull.inside.loss.tolist(), "error": hull.inside.error.tolist()},
        "concentration": concentration,
    }


def landscape_study(subject: Subject, split: Split, resolution: int, seed: int, progress: Progress) -> dict[str, Any]:
    """Two planes: through three weight vectors, with all others projected on it, and along two random directions.

    Args:
        subject, split: what is looked at.
        resolution: points along each axis.
        seed: of the random directions.
        progress: shown for each plane.

    Returns:
        "plane" and "random": {"x", "y", "loss", "error", "positions", "trajectory"}; positions: name -> [x, y, distance
        from the plane], trajectory: those of the successive weights.

    Raises:
        UserError: three weight vectors on one line, or weights that do not match.
    """
    params = {name: one.params for name, one in {**subject.successive, **subject.compared, **subject.plane}.items()}
    check(params, one_mask=not subject.masks_differ)
    plane = landscape.plane_through({name: params[name] for name in subject.plane}, one_mask=not subject.masks_differ)
    through = {name: landscape.project(plane, params[name]) for name in {**subject.plane, **subject.compared}}
    trajectory = {name: landscape.project(plane, params[name]) for name in subject.successive}
    seen = [*through.values(), *trajectory.values()]
    random = landscape.random_plane(params[subject.centre], mask=subject.mask, seed=seed)
    planes = {
        "plane": (plane, landscape.grid_around([p.x for p in seen], [p.y for p in seen], resolution), through, trajectory),
        # One unit is as long as the weights themselves, filter by filter.
        "random": (random, (np.linspace(-1, 1, resolution),) * 2, {subject.centre: landscape.Position(0.0, 0.0, 0.0)}, {}),
    }
    found, batch_stats = {}, subject.compared[subject.centre].batch_stats
    for name, (basis, (x, y), positions, on_the_way) in planes.items():
        grid = landscape.evaluate_plane(
            subject.setup, basis, batch_stats, x, y, split, progress=lambda chunks: progress(chunks, name),
        )
        found[name] = {key: values.tolist() for key, values in grid._asdict().items()}
        for key, marked in (("positions", positions), ("trajectory", on_the_way)):
            found[name][key] = {weights: list(position) for weights, position in marked.items()}
    return found


def curvature_study(
    subject: Subject, split: Split, num_samples: int, num_iterations: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """Trace and largest eigenvalues of the Hessian, and adaptive sharpness, of all compared weights.

    Returns:
        Name -> {"loss", "trace", "trace_error", "eigenvalues", "residuals", "sharpness", "sharpness_error"};
        the errors are standard errors. All weights see the same random vectors.

    Raises:
        UserError: weights that do not match, or that are not finite.
    """
    check({name: one.params for name, one in subject.compared.items()})
    loss, found = SplitLoss(subject.setup, split), {}
    for name, (params, batch_stats) in subject.compared.items():
        batch_stats, _ = subject.setup.recalibrate(params, batch_stats)
        product = loss.hessian_product(params, batch_stats)

        def options(what):
            return {"seed": seed, "progress": lambda pieces: progress(pieces, f"{name}: {what}")}

        trace = curvature.hessian_trace(product, params, mask=subject.mask, num_samples=num_samples, **options("trace"))
        eigenvalues = curvature.top_eigenvalues(
            product, params, mask=subject.mask, num_iterations=num_iterations, **options("eigenvalues")
        )
        sharpness = curvature.adaptive_sharpness(
            lambda weights: loss(weights, batch_stats), params, num_samples=num_samples, **options("sharpness")
        )
        found[name] = {
            "loss": loss(params, batch_stats), "trace": trace.value, "trace_error": trace.standard_error,
            "eigenvalues": eigenvalues.values.tolist(), "residuals": eigenvalues.residuals.tolist(),
            "sharpness": sharpness.value, "sharpness_error": sharpness.standard_error,
        }
    return found
