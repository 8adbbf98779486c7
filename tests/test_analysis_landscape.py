"""Planes and hulls: geometry by NumPy, metrics against one point at a time, and a convex loss that bounds its hull."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwa_jax.analysis.convex_hull import dirichlet_shares, hull_metrics
from hwa_jax.analysis.landscape import evaluate_plane, grid_around, plane_through, project, random_plane
from hwa_jax.errors import UserError
from hwa_jax.training.evaluation import Evaluator
from hwa_jax.training.functional import FunctionalModel
from hwa_jax.training.weights import Weights
from training_runs import compilation_cache_dir, compiled_once, small_setup  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


def flat(tree):
    return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def trees(seed, number=3):
    rng = np.random.default_rng(seed)
    return {f"w{i}": {"kernel": rng.normal(size=(4, 3)).astype(np.float32), "bias": rng.normal(size=3).astype(np.float32)} for i in range(number)}


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_a_plane_has_an_orthonormal_basis_and_goes_through_its_points(seed):
    points = trees(seed, number=4)
    fourth = points.pop("w3")
    plane = plane_through(points)
    u, v = flat(plane.x_axis), flat(plane.y_axis)
    np.testing.assert_allclose([u @ u, v @ v, u @ v], [1, 1, 0], atol=1e-6)
    first, second, third = (project(plane, tree) for tree in points.values())
    assert all(position.distance < 1e-5 for position in (first, second, third))
    # The first is the origin, the second on the x axis, the third above it; distances are those of the weights.
    np.testing.assert_allclose([first.x, first.y, second.y], 0, atol=1e-5)
    assert second.x == pytest.approx(np.linalg.norm(flat(points["w1"]) - flat(points["w0"])), rel=1e-5) and third.y > 0
    # A fourth: the nearest point of the plane by least squares.
    axes, offset = np.stack([u, v], axis=1), flat(fourth) - flat(points["w0"])
    nearest, *_ = np.linalg.lstsq(axes, offset, rcond=None)
    found = project(plane, fourth)
    np.testing.assert_allclose([found.x, found.y], nearest, atol=1e-5)
    assert found.distance == pytest.approx(np.linalg.norm(offset - axes @ nearest), rel=1e-5)


def on_a_line(share):
    points = trees(0)
    points["w2"] = jax.tree.map(lambda a, b: np.float32((1 - share) * a + share * b), points["w0"], points["w1"])
    return points


@pytest.mark.parametrize("points, message", [
    (on_a_line(0.5), "w0, w1 and w2 lie on one line: give three that span a plane"),
    (on_a_line(-3.7), "w0, w1 and w2 lie on one line"),
    (on_a_line(0.0), "w0, w1 and w2 lie on one line"),
    ({**trees(0), "w1": trees(0)["w0"]}, "w0, w1 and w2 lie on one line, the first two are equal"),
    (trees(0, number=2), "a plane goes through three weight vectors, here are 2: w0, w1"),
    ({**trees(0), "w2": {"kernel": np.zeros((4, 3), np.float32)}}, "leaf bias is in w0 but not in w2"),
    ({**trees(0), "w2": jax.tree.map(lambda x: x * np.nan, trees(0)["w2"])}, "leaf bias of w2 holds 3 values that are not finite"),
    ({**trees(0), "w2": {**trees(0)["w2"], "kernel": np.eye(4, 3, dtype=np.float32)}}, "leaf kernel is pruned by 0.0% in w0 and by 75.0% in w2"),
], ids=["midpoint", "beyond", "third_equal", "second_equal", "two", "leaf", "nan", "sparse"])
def test_what_spans_no_plane_is_one_clear_line(points, message):
    with pytest.raises(UserError, match=message) as raised:
        plane_through(points)
    assert "\n" not in str(raised.value)


def test_random_directions_have_the_norms_of_the_filters():
    centre = trees(3)["w0"]
    plane = random_plane(centre, seed=5)
    for axis in (plane.x_axis, plane.y_axis):
        np.testing.assert_allclose(np.linalg.norm(axis["kernel"], axis=0), np.linalg.norm(centre["kernel"], axis=0), rtol=1e-5)
        assert (axis["bias"] == 0).all()
    assert not np.allclose(plane.x_axis["kernel"], plane.y_axis["kernel"])
    again, other = random_plane(centre, seed=5), random_plane(centre, seed=6)
    np.testing.assert_array_equal(again.x_axis["kernel"], plane.x_axis["kernel"])
    assert not np.allclose(other.x_axis["kernel"], plane.x_axis["kernel"])


def test_random_directions_stay_under_the_mask():
    mask = {"kernel": np.arange(12).reshape(4, 3) % 2 == 0, "bias": optax.MaskedNode()}
    centre = trees(3)["w0"]
    centre["kernel"] = centre["kernel"] * mask["kernel"]
    axis = random_plane(centre, mask=mask).x_axis["kernel"]
    np.testing.assert_array_equal(axis == 0, ~mask["kernel"])
    np.testing.assert_allclose(np.linalg.norm(axis, axis=0), np.linalg.norm(centre["kernel"], axis=0), rtol=1e-5)
    with pytest.raises(UserError, match="mask of kernel has shape"):
        random_plane(centre, mask={**mask, "kernel": np.ones(3, bool)})


def test_a_filter_that_is_zero_does_not_move():
    centre = {"kernel": np.float32([[0.0, 1.0], [0.0, 2.0]])}
    axis = random_plane(centre).x_axis["kernel"]
    assert (axis[:, 0] == 0).all() and (axis[:, 1] != 0).all()


def test_a_grid_holds_all_points_and_is_not_too_flat():
    x, y = grid_around([0.0, 10.0, 4.0], [1.0, 1.5, 1.2], 5, margin=0.1)
    np.testing.assert_allclose(x, [-1, 2, 5, 8, 11])
    # Both sides reach 0.1 · 10 beyond; the short one would be 2.5 long and is stretched to 0.6 · 12 about its middle.
    np.testing.assert_allclose([y[0], y[-1]], [1.25 - 3.6, 1.25 + 3.6])
    with pytest.raises(UserError, match=r"all points lie at \(2, 3\)"):
        grid_around([2.0, 2.0], [3.0, 3.0], 5)


@pytest.mark.parametrize("fields", [{}, {"model.norm": "batch"}], ids=["plain", "batch_norm"])
def test_a_landscape_equals_one_point_at_a_time(fields):
    setup = small_setup(fields)
    weights = {f"seed {seed}": setup.model.init(jax.random.key(seed)) for seed in range(3)}
    plane, batch_stats = plane_through({name: params for name, (params, _) in weights.items()}), weights["seed 0"][1]
    x, y = np.array([-1.0, 0.0, 2.0]), np.array([0.0, 3.0])
    found = evaluate_plane(setup, plane, batch_stats, x, y, setup.validation, chunk_size=4)
    assert found.loss.shape == found.error.shape == (2, 3)
    for row, column in np.ndindex(2, 3):
        params = jax.tree.map(lambda w, a, b: w + x[column] * a + y[row] * b, *plane)
        alone = setup.evaluator.one(params, setup.recalibrate(params, batch_stats)[0], setup.validation)
        assert found.loss[row, column] == pytest.approx(alone["nll"], rel=1e-5)
        assert found.error[row, column] == pytest.approx(1 - alone["accuracy"], abs=1e-7)


@pytest.fixture(scope="module")
def softmax_regression():
    """A setup whose network is linear, so that its loss is convex in the weights."""
    setup = small_setup()

    def predict(params, batch_stats, images):
        return images.reshape(len(images), -1) @ params["kernel"]

    model = FunctionalModel(None, None, predict, None)
    evaluator = Evaluator(model, setup.dataset.mean, setup.dataset.std, batch_size=32, mesh=setup.mesh)
    return dataclasses.replace(setup, model=model, evaluator=evaluator)


def corners(number):
    rng = np.random.default_rng(1)
    return {f"w{i}": Weights({"kernel": rng.normal(size=(64, 10)).astype(np.float32)}, {}) for i in range(number)}


def test_inside_a_convex_loss_lies_below_the_mixture_of_its_corners(softmax_regression):
    setup, weights = softmax_regression, corners(3)
    hull = hull_metrics(setup, weights, setup.validation, num_points=20)
    assert hull.names == ("w0", "w1", "w2") and hull.shares.shape == (20, 3)
    # Jensen: L(Σ s_v W_v) <= Σ s_v L(W_v), strictly inside as the corners differ.
    assert (hull.inside.loss < hull.shares @ hull.corners.loss).all()
    assert hull.centre.loss[0] < hull.corners.loss.mean()
    for corner, loss, error in zip(weights.values(), hull.corners.loss, hull.corners.error):
        alone = setup.evaluator.one(*corner, setup.validation)
        assert loss == pytest.approx(alone["nll"], rel=1e-5) and error == pytest.approx(1 - alone["accuracy"], abs=1e-7)
    point = {"kernel": sum(s * one.params["kernel"] for s, one in zip(hull.shares[7], weights.values()))}
    assert hull.inside.loss[7] == pytest.approx(setup.evaluator.one(point, {}, setup.validation)["nll"], rel=1e-5)


@pytest.mark.parametrize("number, message", [(0, "no weights were given"), (1, "a hull has at least two corners: only w0 is here")])
def test_a_hull_needs_two_corners(softmax_regression, number, message):
    with pytest.raises(UserError, match=message):
        hull_metrics(softmax_regression, corners(number), softmax_regression.validation)


def test_corners_of_two_masks_have_no_hull(softmax_regression):
    weights = corners(2)
    weights["w1"].params["kernel"][:32] = 0
    with pytest.raises(UserError, match="leaf kernel is pruned by 0.0% in w0 and by 50.0% in w1"):
        hull_metrics(softmax_regression, weights, softmax_regression.validation)


def test_shares_are_convex_and_as_concentrated_as_asked():
    for concentration in (0.1, 1.0, 10.0):
        shares = dirichlet_shares(4000, 3, concentration=concentration)
        assert (shares >= 0).all()
        np.testing.assert_allclose(shares.sum(1), 1)
        # Of Dirichlet(a, a, a): mean 1/3, variance (1/3)(2/3) / (3a + 1).
        np.testing.assert_allclose(shares.mean(0), 1 / 3, atol=0.03)
        np.testing.assert_allclose(shares.var(0), 2 / 9 / (3 * concentration + 1), rtol=0.1)
