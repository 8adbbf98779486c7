"""Loss and error inside the convex hull of several weight vectors, sampled by Dirichlet weights."""

from collections.abc import Iterable, Mapping
from typing import Callable, NamedTuple

import numpy as np

from hwa_jax.analysis.point_metrics import CHUNK_SIZE, PointMetrics, evaluate_points
from hwa_jax.analysis.weight_vectors import stack
from hwa_jax.data import Split
from hwa_jax.errors import UserError
from hwa_jax.training.setup import Setup
from hwa_jax.training.weights import Weights


class Hull(NamedTuple):
    """What lies in the convex hull of V weight vectors.

    Attributes:
        names: of the V corners.
        shares: float64 [P, V], the weights of the points inside, each row sums to 1.
        inside: metrics of those P points.
        corners: metrics of the V corners.
        centre: metrics of the one point in the middle, the average of the corners.
    """

    names: tuple[str, ...]
    shares: np.ndarray
    inside: PointMetrics
    corners: PointMetrics
    centre: PointMetrics


def dirichlet_shares(num_points: int, num_corners: int, *, concentration: float = 1.0, seed: int = 0) -> np.ndarray:
    """Random convex combinations: float64 [P, V], rows that sum to 1.

    Args:
        num_points: P.
        num_corners: V.
        concentration: 1 is uniform over the hull. As most of the volume of a simplex of many corners is near its
            centre, below 1 sees more of edges and corners.
        seed: of the draw.

    Example:
        >>> dirichlet_shares(2, 3).sum(1).round(12).tolist()
        [1.0, 1.0]
    """
    return np.random.default_rng(seed).dirichlet(np.full(num_corners, concentration), size=num_points)


def hull_metrics(
    setup: Setup, weights: Mapping[str, Weights], split: Split, *, num_points: int = 100, concentration: float = 1.0,
    seed: int = 0, one_mask: bool = True, chunk_size: int = CHUNK_SIZE, progress: Callable[[Iterable], Iterable] = iter,
) -> Hull:
    """Samples the convex hull of weight vectors, BatchNorm recalibrated at every point, the corners included.

    Args:
        setup: network, data and evaluator.
        weights: name -> weights, the corners, at least two.
        split: where to evaluate, on the devices.
        num_points, concentration, seed: as `dirichlet_shares`.
        one_mask: whether corners that are pruned in different places are refused, see `weight_vectors.check`.
        chunk_size, progress: as `evaluate_points`.

    Raises:
        UserError: fewer than two corners, or as `weight_vectors.check`.
    """
    stacked = stack({name: one.params for name, one in weights.items()}, one_mask=one_mask)
    num_corners = len(weights)
    if num_corners < 2:
        raise UserError(f"a hull has at least two corners: only {', '.join(weights)} is here, give more weights")
    shares = dirichlet_shares(num_points, num_corners, concentration=concentration, seed=seed)
    coefficients = np.concatenate([np.eye(num_corners), np.full((1, num_corners), 1 / num_corners), shares])
    batch_stats = next(iter(weights.values())).batch_stats
    found = evaluate_points(setup, stacked, batch_stats, coefficients, split, chunk_size=chunk_size, progress=progress)
    cuts = [num_corners, num_corners + 1]
    corners, centre, inside = (PointMetrics(*parts) for parts in zip(*(np.split(values, cuts) for values in found)))
    return Hull(tuple(weights), shares, inside, corners, centre)
