"""Linear mode connectivity: barriers by hand, segments by NumPy, paths against one point at a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hwa_jax.analysis.connectivity import barrier, path_metrics, paths, segment
from hwa_jax.errors import UserError
from hwa_jax.training.weights import Weights
from training_runs import compilation_cache_dir, compiled_once, small_setup  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")
FINITE = st.floats(-100, 100, width=32, allow_subnormal=False)  # XLA flushes subnormal numbers


def test_barrier_by_hand():
    # Frankle et al.: the highest error on the path, ends included, minus the mean error of the ends.
    assert barrier([0.0, 0.5, 1.0], [0.10, 0.40, 0.20]) == pytest.approx(0.40 - 0.15)
    # A path that only falls still has the difference of its ends: 0.3 - (0.3 + 0.1) / 2.
    assert barrier([0.0, 0.5, 1.0], [0.3, 0.2, 0.1]) == pytest.approx(0.1)
    assert barrier([0.0, 0.5, 1.0], [0.3, 0.2, 0.3]) == pytest.approx(0.0)
    # The order of the positions makes no difference.
    assert barrier([0.5, 1.0, 0.0], [0.40, 0.20, 0.10]) == pytest.approx(0.25)
    assert np.isnan(barrier([0.0, 0.5, 1.0], [0.1, np.nan, 0.1]))


@settings(deadline=None)
@given(arrays(np.float64, st.integers(2, 9), elements=st.floats(0, 10)), st.floats(-5, 5))
def test_barrier_is_not_negative_and_does_not_see_a_constant(values, constant):
    positions = np.linspace(0, 1, len(values))
    height = barrier(positions, values)
    assert height >= 0
    np.testing.assert_allclose(barrier(positions, values + constant), height, atol=1e-12)
    np.testing.assert_allclose(barrier(positions, values[::-1]), height, atol=1e-12)


@pytest.mark.parametrize("positions", [[], [0.0, 0.5], [0.5, 1.0], [0.0, 1.0, 1.5], [-0.5, 0.0, 1.0]])
def test_a_barrier_needs_both_ends(positions):
    with pytest.raises(ValueError, match="from exactly 0 to exactly 1"):
        barrier(positions, [1.0] * len(positions))


def test_a_barrier_needs_a_value_per_position():
    with pytest.raises(ValueError, match=r"positions of shape \(2,\) and values of shape \(3,\)"):
        barrier([0.0, 1.0], [1.0, 2.0, 3.0])


@settings(deadline=None, max_examples=30)
@given(arrays(np.float32, 5, elements=FINITE), arrays(np.float32, 5, elements=FINITE), st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_segment_equals_float64_numpy(a, b, positions):
    pruned = np.float32([1, 0, 1, 0, 1])
    a, b = a * pruned, b * pruned
    points = np.asarray(segment({"w": a}, {"w": b}, [0.0, *positions, 1.0])["w"])
    t = np.array([0.0, *positions, 1.0])[:, None]
    np.testing.assert_allclose(points, (1 - t) * np.float64(a) + t * np.float64(b), rtol=0, atol=3e-5)
    np.testing.assert_array_equal(points[0], a)
    np.testing.assert_array_equal(points[-1], b)
    assert (points[:, pruned == 0] == 0).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_interpolated_in_float32(dtype):
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=200), dtype) for _ in range(2))
    points = segment({"w": a}, {"w": b}, [0.3])["w"]
    assert points.dtype == dtype
    # Rounded once, at the end: the very bits of the float32 result.
    wide = np.float32(0.7) * np.asarray(a, np.float32) + np.float32(0.3) * np.asarray(b, np.float32)
    np.testing.assert_array_equal(points[0], jnp.asarray(wide, dtype))


def test_whole_numbers_stay_what_they_are():
    tree = {"steps": jnp.int32(7), "w": jnp.zeros(2)}
    points = segment(tree, tree, [0.0, 0.5])
    np.testing.assert_array_equal(points["steps"], [7, 7])
    assert points["steps"].dtype == jnp.int32
    with pytest.raises(UserError, match="leaf steps holds whole numbers that differ between the first end and the second end"):
        segment(tree, {**tree, "steps": jnp.int32(8)}, [0.5])


def solutions(setup, number):
    """Weights of independent starts; without BatchNorm their statistics are an empty dictionary."""
    return {f"seed {seed}": Weights(*setup.model.init(jax.random.key(seed))) for seed in range(number)}


def one_by_one(setup, a, b, split, positions):
    """Loss and error at each point alone: interpolated, recalibrated and evaluated without a particle axis."""
    found = []
    for t in positions:
        params = jax.tree.map(lambda x, y: (1 - t) * x + t * y, a.params, b.params)
        found.append(setup.evaluator.one(params, setup.recalibrate(params, a.batch_stats)[0], split))
    return [m["nll"] for m in found], [1 - m["accuracy"] for m in found]


@pytest.mark.parametrize("fields", [
    {}, {"model.norm": "batch"}, {"num_devices": 2, "hwa.num_replicas": 2, "model.norm": "batch"},
], ids=["plain", "batch_norm", "batch_norm_on_two_devices"])
def test_path_equals_one_point_at_a_time(fields):
    setup, positions = small_setup(fields), np.linspace(0, 1, 5)
    a, b = solutions(setup, 2).values()
    # Statistics of the ends that are wrong: recalibration must not let them through.
    a, b = (one._replace(batch_stats=jax.tree.map(lambda x: x + 3.0, one.batch_stats)) for one in (a, b))
    path = path_metrics(setup, a, b, setup.validation, positions, chunk_size=3)
    losses, errors = one_by_one(setup, a, b, setup.validation, positions)
    np.testing.assert_allclose(path.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(path.error, errors, atol=1e-7)
    np.testing.assert_array_equal(path.positions, positions)
    assert path.loss_barrier == barrier(positions, path.loss) and path.error_barrier == barrier(positions, path.error)


@pytest.fixture(scope="module")
def setup():
    return small_setup()


def permuted(weights, seed=0):
    """The same function: hidden units of the first layer in another order."""
    params = jax.tree.map(np.asarray, weights.params)
    first, second = params["dense1"], params["dense2"]
    order = np.random.default_rng(seed).permutation(first["bias"].size)
    return weights._replace(params={
        **params, "dense1": {"kernel": first["kernel"][:, order], "bias": first["bias"][order]},
        "dense2": {**second, "kernel": second["kernel"][order]},
    })


def test_a_permuted_network_is_as_good_and_not_connected(setup):
    state = setup.initial_state()
    for _ in range(3):
        indices = setup.epoch_indices(state.step, setup.keys()[0])
        for _ in range(indices.shape[1]):
            state = setup.step(state, indices, setup.train, setup.keys()[1], {})
    trained = Weights(jax.tree.map(lambda x: x[0], state.params), {})
    path = path_metrics(setup, trained, permuted(trained), setup.train, np.linspace(0, 1, 5))
    assert path.loss[0] == pytest.approx(path.loss[-1], rel=1e-5)
    assert path.loss[0] < 1.5 and path.loss_barrier > 0.2 and path.loss.argmax() == 2
    to_itself = path_metrics(setup, trained, trained, setup.train, [0.0, 0.5, 1.0])
    assert to_itself.loss_barrier < 1e-6 and to_itself.error_barrier == 0


def test_all_pairs_and_successive_ones(setup):
    weights, positions = solutions(setup, 3), [0.0, 0.5, 1.0]
    every = paths(setup, weights, setup.validation, positions)
    assert list(every) == list(itertools.combinations(weights, 2))
    for (a, b), path in every.items():
        alone = path_metrics(setup, weights[a], weights[b], setup.validation, positions)
        np.testing.assert_allclose(path.loss, alone.loss, rtol=1e-5)
    successive = paths(setup, weights, setup.validation, positions, pairs=itertools.pairwise(weights))
    assert list(successive) == [("seed 0", "seed 1"), ("seed 1", "seed 2")]
    np.testing.assert_allclose(successive["seed 1", "seed 2"].loss, every["seed 1", "seed 2"].loss, rtol=1e-5)


def with_kernel(weights, edit):
    """The weights with the kernel of the first layer changed."""
    layer = weights.params["dense1"]
    return weights._replace(params={**weights.params, "dense1": {**layer, "kernel": edit(np.array(layer["kernel"]))}})


def pruned_half(kernel):
    return np.where(np.arange(kernel.size).reshape(kernel.shape) % 2, kernel, 0)


def with_nan(kernel):
    kernel[0, 0] = np.nan
    return kernel


@pytest.mark.parametrize("edit, message", [
    (lambda kernel: kernel[:, 1:], r"leaf dense1/kernel is float32\[64, 300\] in seed 0 and float32\[64, 299\] in seed 1"),
    (lambda kernel: kernel.astype(jnp.bfloat16), r"leaf dense1/kernel is float32\[64, 300\] in seed 0 and bfloat16"),
    (with_nan, r"leaf dense1/kernel of seed 1 holds 1 value that is not finite"),
    (pruned_half, r"leaf dense1/kernel is pruned by 0.0% in seed 0 and by 50.0% in seed 1"),
], ids=["shape", "dtype", "nan", "sparse_and_dense"])
def test_weights_that_do_not_match_are_one_clear_line(setup, edit, message):
    weights = solutions(setup, 2)
    weights["seed 1"] = with_kernel(weights["seed 1"], edit)
    with pytest.raises(UserError, match=message) as raised:
        paths(setup, weights, setup.validation, [0.0, 1.0])
    assert "\n" not in str(raised.value)


def test_a_missing_leaf_is_named_and_so_is_what_has_it(setup):
    weights = solutions(setup, 2)
    weights["seed 1"] = weights["seed 1"]._replace(params={**weights["seed 1"].params, "extra": {"bias": jnp.zeros(1)}})
    with pytest.raises(UserError, match="leaf extra/bias is in seed 1 but not in seed 0"):
        paths(setup, weights, setup.validation, [0.0, 1.0])


def test_two_masks_on_purpose_and_one_mask_in_every_point(setup):
    weights = solutions(setup, 2)
    sparse = {name: with_kernel(one, pruned_half) for name, one in weights.items()}
    assert len(paths(setup, sparse, setup.validation, [0.0, 1.0])) == 1
    mixed = {"dense": weights["seed 0"], "sparse": sparse["seed 1"]}
    assert len(paths(setup, mixed, setup.validation, [0.0, 1.0], one_mask=False)) == 1


@pytest.mark.parametrize("number, message", [(0, "no weights were given"), (1, "a segment has two ends: only seed 0 is here")])
def test_too_few_weights(setup, number, message):
    with pytest.raises(UserError, match=message):
        paths(setup, solutions(setup, number), setup.validation)
