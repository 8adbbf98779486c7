"""Masks: what is prunable, applying, counting, checks that name the leaf, pruners, one weight per output, layers that empty."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hwa_jax
from hwa_jax import masks, particles
from hwa_jax.errors import UserError
from mask_trees import Layer, prunable, remove_by_sorting, trees, weights

NODE = optax.MaskedNode()


def network():
    return {
        "conv": {"kernel": jnp.ones((3, 3, 1, 2)), "bias": jnp.ones(2)},
        "norm": [jnp.ones(2), None],
        "out": Layer(jnp.ones((2, 5), jnp.bfloat16), jnp.ones(5)),
        "step": jnp.zeros((2, 2), jnp.int32),
    }


def is_prunable(mask):
    is_node = lambda node: isinstance(node, optax.MaskedNode)
    named = jax.tree_util.tree_leaves_with_path(mask, is_leaf=is_node)
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in named if not is_node(leaf)}


def test_two_dimensions_or_a_pattern_make_a_leaf_prunable():
    # An integer matrix is none that can be pruned by magnitude.
    assert is_prunable(masks.ones(network())) == {"conv/kernel", "out/kernel"}
    assert is_prunable(masks.ones(network(), "^conv/")) == {"conv/kernel", "conv/bias"}
    assert is_prunable(masks.ones(network(), r"kernel$|norm/0")) == {"conv/kernel", "norm/0", "out/kernel"}
    mask = masks.ones(network())
    assert masks.count(mask) == 18 + 10 and masks.density(mask) == 1.0
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == bool for leaf in jax.tree.leaves(mask))
    masks.check(mask, network())


def test_shapes_alone_make_a_mask():
    shapes = jax.eval_shape(network)
    assert jax.tree.map(jnp.shape, masks.ones(shapes)) == jax.tree.map(jnp.shape, masks.ones(network()))


@pytest.mark.parametrize(
    ("params", "pattern", "words"),
    [
        (network(), "weight$", r"prunable='weight\$' matches no parameter; paths look like conv/bias"),
        (network(), "(", r"prunable='\(' is no regular expression"),
        (network(), "step", "matches step, which is int32"),
        ({"w": jnp.ones((2, 2), jnp.complex64)}, "w", "matches w, which is complex64"),
        ({"bias": jnp.ones(3)}, None, "prunable=None: no floating leaf has two or more dimensions"),
        ({}, None, "prunable=None"),
        ({}, "kernel", "prunable='kernel' matches no parameter; there are none"),
    ],
    ids=str,
)
def test_nothing_prunable_is_refused(params, pattern, words):
    with pytest.raises(UserError, match=words):
        masks.ones(params, pattern)


def with_kernel(leaf):
    mask = masks.ones(network())
    return mask | {"conv": {"kernel": leaf, "bias": NODE}}


class Other(NamedTuple):
    kernel: Any
    bias: Any


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (with_kernel(jnp.ones((3, 3, 2, 1), bool)), r"mask of conv/kernel has shape \(3, 3, 2, 1\), the weights \(3, 3, 1, 2\)"),
        (with_kernel(jnp.ones((3, 1, 2), bool)), "mask of conv/kernel has shape"),
        (with_kernel(jnp.ones((3, 3, 1, 2))), "mask of conv/kernel has dtype float32: must be bool"),
        (with_kernel({"a": jnp.ones(2, bool)}), "leaf conv/kernel(/a)? is in"),
        ({k: v for k, v in masks.ones(network()).items() if k != "out"}, "leaf out/(kernel|bias) is in the weights but not in the mask"),
        (masks.ones(network()) | {"extra": NODE}, "leaf extra is in the mask but not in the weights"),
        (masks.ones(network()) | {"out": Other(jnp.ones((2, 5), bool), NODE)}, "nested in other containers"),
        ({}, "is in the weights but not in the mask"),
    ],
)
def test_a_mask_that_does_not_fit_names_the_leaf(mask, words):
    for function in (masks.check, masks.apply):
        with pytest.raises(UserError, match=words):
            function(mask, network())
    for prune in (masks.prune_by_magnitude, masks.prune):
        with pytest.raises(UserError, match=words):
            prune(network(), mask, 0.2)


@settings(max_examples=25, deadline=None)
@given(trees((np.float32, np.float16, ml_dtypes.bfloat16)))
def test_apply_is_exact_and_count_and_density_agree(tree):
    params, mask = tree
    masked = masks.apply(mask, params)
    assert jax.tree.structure(masked) == jax.tree.structure(params)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(masked), strict=True):
        assert after.dtype == before.dtype and after.shape == before.shape
    kept = prunable(mask, mask)
    for keep, before, after in zip(kept, prunable(mask, params), prunable(mask, masked), strict=True):
        # Kept weights to the last bit, -0 and denormals included; the others +0.
        bits = f"u{before.dtype.itemsize}"
        np.testing.assert_array_equal(after.view(bits), np.where(keep, before, before.dtype.type(0)).view(bits))
    assert masks.count(mask) == sum(int(keep.sum()) for keep in kept)
    if size := sum(keep.size for keep in kept):
        assert masks.density(mask) == masks.count(mask) / size


def test_apply_removes_nan_and_leaves_the_rest_alone():
    params = {"kernel": jnp.array([[np.nan, 1.0, -np.inf]]), "bias": jnp.array([np.nan])}
    mask = {"kernel": jnp.array([[False, True, False]]), "bias": NODE}
    masked = jax.jit(masks.apply)(mask, params)
    assert masked["kernel"].tolist() == [[0.0, 1.0, 0.0]] and np.isnan(masked["bias"]).all()


def test_density_of_parts_and_of_nothing():
    mask = {"a": jnp.array([[True, False]]), "b": jnp.array([[False, False]]), "c": NODE}
    assert [masks.density(mask), masks.density(mask["a"]), masks.density(mask["b"])] == [0.25, 0.5, 0.0]
    for nothing in (mask["c"], {}, {"a": jnp.ones((0, 3), bool)}):
        with pytest.raises(ValueError, match="no prunable weight"):
            masks.density(nothing)


def test_equal_masks_and_masks_that_differ():
    mask = masks.ones(network())
    masks.check_equal(mask)
    masks.check_equal(mask, masks.ones(network()), jax.tree.map(np.asarray, mask))
    fewer = with_kernel(mask["conv"]["kernel"].at[0, :, 0, 0].set(False))
    with pytest.raises(UserError, match="masks 0 and 2 differ in 3 of 18 weights of conv/kernel: particles"):
        masks.check_equal(mask, mask, fewer)
    for first, other in ((mask, with_kernel(NODE)), (with_kernel(NODE), mask)):
        with pytest.raises(UserError, match="conv/kernel is prunable in only one of masks 0 and 1"):
            masks.check_equal(first, other)
    with pytest.raises(UserError, match=r"conv/kernel has shape \(3, 3, 1, 2\) in mask 0, \(2,\) in mask 1"):
        masks.check_equal(mask, with_kernel(jnp.ones(2, bool)))
    with pytest.raises(UserError, match="leaf extra is in mask 1 but not in mask 0"):
        masks.check_equal(mask, mask | {"extra": NODE})


def test_mean_is_exactly_masked_and_refuses_particles_with_other_masks():
    rng = np.random.default_rng(0)
    mask = {"kernel": jnp.asarray(rng.random((4, 3)) < 0.5), "bias": NODE}
    raw = {"kernel": jnp.asarray(rng.normal(size=(5, 4, 3)), jnp.bfloat16), "bias": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}
    stacked = jax.vmap(masks.apply, in_axes=(None, 0))(mask, raw)
    average = masks.mean(mask, stacked)
    jax.tree.map(np.testing.assert_array_equal, average, particles.mean(stacked))
    assert (np.asarray(average["kernel"]) == 0)[~np.asarray(mask["kernel"])].all() and average["kernel"].dtype == jnp.bfloat16
    where = tuple(np.argwhere(~np.asarray(mask["kernel"]))[0])
    for value in (1e-30, np.nan):
        stray = stacked | {"kernel": stacked["kernel"].at[(3, *where)].set(value)}
        with pytest.raises(UserError, match="particle 3 has 1 weights of kernel where the mask has none"):
            masks.mean(mask, stray)
    with pytest.raises(UserError, match=r"mask of kernel has shape \(4, 3\), the weights \(3,\)"):
        masks.mean(mask, masks.apply(mask, particles.unstack(stacked)[0]) | {"bias": jnp.ones((4, 3))})


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("prune", [masks.prune_by_magnitude, masks.prune], ids=["by_magnitude", "prune"])
def test_a_fraction_out_of_range_is_refused(fraction, prune):
    with pytest.raises(UserError, match=f"fraction={float(fraction)}: must be above 0 and below 1"):
        prune(network(), masks.ones(network()), fraction)


def test_a_fraction_of_less_than_half_a_weight_removes_none():
    mask = masks.ones(network())
    masks.check_equal(masks.prune_by_magnitude(network(), mask, 0.01), mask)


def test_unknown_pruners_and_a_missing_key():
    with pytest.raises(UserError, match="pruner='l2': give one of magnitude, layerwise, random"):
        masks.prune(network(), masks.ones(network()), 0.2, "l2")
    with pytest.raises(ValueError, match="needs key"):
        masks.prune(network(), masks.ones(network()), 0.2, "random")


def pair():
    """Two layers of 40 weights, the second ten times as large, and a mask that lacks some."""
    rng = np.random.default_rng(1)
    params = {"a": rng.normal(size=(8, 5)).astype(np.float32), "b": 10 * rng.normal(size=(4, 10)).astype(np.float32), "c": np.ones(3)}
    return params, {"a": jnp.asarray(rng.random((8, 5)) < 0.8), "b": jnp.ones((4, 10), bool), "c": NODE}


def test_magnitude_is_the_default_pruner():
    masks.check_equal(masks.prune(*pair(), 0.5), masks.prune_by_magnitude(*pair(), 0.5))


def test_layerwise_removes_the_same_fraction_of_each_layer():
    params, mask = pair()
    new = masks.prune(params, mask, 0.3, "layerwise")
    for name in ("a", "b"):
        kept = [np.asarray(mask[name])]
        [expected] = remove_by_sorting([params[name]], kept, round(0.3 * kept[0].sum().item()))
        np.testing.assert_array_equal(new[name], expected)
    assert masks.density(new["b"]) == 0.7 > masks.density(new["a"])


def test_random_is_exact_depends_on_the_key_alone_and_spreads_evenly():
    params, mask = pair()
    new = masks.prune(params, mask, 0.5, "random", key=jax.random.key(0))
    assert masks.count(new) == masks.count(mask) - round(0.5 * masks.count(mask))
    assert not any((np.asarray(new[name]) & ~np.asarray(mask[name])).any() for name in ("a", "b"))
    masks.check_equal(new, masks.prune(jax.tree.map(np.negative, params), mask, 0.5, "random", key=jax.random.key(0)))
    with pytest.raises(UserError, match="masks 0 and 1 differ"):
        masks.check_equal(new, masks.prune(params, mask, 0.5, "random", key=jax.random.key(1)))
    large = {"a": np.zeros((100, 100)), "b": np.zeros((100, 100))}
    half = masks.prune(large, masks.ones(large), 0.5, "random", key=jax.random.key(0))
    # The share in one layer is hypergeometric with a standard deviation of 0.0035; two layers, two streams.
    assert abs(masks.density(half["a"]) - 0.5) < 0.02
    assert 0.45 < np.mean(np.asarray(half["a"]) == np.asarray(half["b"])) < 0.55


@pytest.mark.parametrize(
    ("pruner", "options"), [("magnitude", {"keep_one_per_output": True}), ("layerwise", {}), ("random", {})], ids=masks.PRUNERS
)
def test_pruners_inside_jit_and_under_vmap_equal_the_eager_ones(pruner, options):
    params, mask = pair()
    prune = lambda params, mask, key: masks.prune(params, mask, 0.6, pruner, key=key, **options)
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = particles.stack([params, jax.tree.map(np.negative, params), jax.tree.map(np.sin, params)])
    together = jax.jit(jax.vmap(prune, in_axes=(0, None, 0)))(stacked, mask, keys)
    for new, params, key in zip(particles.unstack(together), particles.unstack(stacked), keys):
        masks.check_equal(new, prune(params, mask, key))


def test_a_layer_that_empties_is_named_once():
    params = {"small": {"kernel": jnp.full((2, 2), 0.1)}, "large": {"kernel": jnp.full((2, 4), 5.0)}, "none": jnp.ones((0, 2))}
    mask = masks.ones(params)
    with pytest.warns(UserWarning, match="no weight in small/kernel; keep_one_per_output=True") as record:
        new = masks.prune_by_magnitude(params, mask, 0.4)
    assert len(record) == 1 and record[0].filename == __file__
    assert masks.density(new["small"]) == 0.0 and masks.count(new) == 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.prune_by_magnitude(params, new, 0.4)
        kept = masks.prune_by_magnitude(params, mask, 0.4, keep_one_per_output=True)
    assert masks.count(kept) == 7 and masks.count(kept["small"]) == 2


def test_one_weight_per_output_by_hand():
    # Outputs are columns. Largest: 3 (row 1), 2 (the later of the two), 0 (the last one that remains).
    # Six remain, round(0.5 · 6) = 3 go of the three others: 1, -2 and 0.
    params = {"kernel": jnp.array([[1.0, -2.0, 0.0], [-3.0, 2.0, 0.0], [9.0, 9.0, 9.0]])}
    mask = {"kernel": jnp.array([[True] * 3, [True] * 3, [False] * 3])}
    new = masks.prune_by_magnitude(params, mask, 0.5, keep_one_per_output=True)
    assert new["kernel"].tolist() == [[False] * 3, [True] * 3, [False] * 3]
    # 0.9 asks for five; only three can go.
    masks.check_equal(masks.prune_by_magnitude(params, mask, 0.9, keep_one_per_output=True), new)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["normal", "ties", "denormal"]), st.floats(0.01, 0.99))
def test_one_weight_per_output_is_the_largest_and_the_rest_a_full_sort(seed, kind, fraction):
    rng = np.random.default_rng(seed)
    values = [weights(rng, (5, 3), np.float32, kind), weights(rng, (0, 2), np.float32, kind), weights(rng, (2, 2, 3), np.float32, kind)]
    kept = [rng.random(value.shape) < 0.7 for value in values]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = masks.prune_by_magnitude(values, kept, fraction, keep_one_per_output=True)
    others = [keep.copy() for keep in kept]
    for value, other in zip(values, others):
        for output in range(other.shape[-1]):
            column, magnitude = other[..., output], np.abs(value[..., output])
            if column.any():
                column[tuple(np.argwhere(column & (magnitude == magnitude[column].max()))[-1])] = False
    number = round(fraction * sum(int(keep.sum()) for keep in kept))
    expected = remove_by_sorting(values, others, number)
    for keep, other, rest, actual in zip(kept, others, expected, new):
        np.testing.assert_array_equal(actual, rest | (keep & ~other))


def test_new_masks_lie_where_the_old_ones_lie():
    mesh = particles.device_mesh()
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("device"))
    params = {"a": jnp.arange(32.0).reshape(8, 4), "b": jnp.arange(16.0).reshape(8, 2)}
    mask = jax.device_put(masks.ones(params), sharding)
    new = masks.prune_by_magnitude(jax.device_put(params, sharding), mask, 0.5)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(new))
    masks.check_equal(new, masks.prune_by_magnitude(params, masks.ones(params), 0.5))
    # What is not pinned to a device stays so: a jitted function sees no difference.
    assert not any(leaf.committed for leaf in jax.tree.leaves(masks.prune_by_magnitude(params, masks.ones(params), 0.5)))


def test_public_names():
    assert hwa_jax.masks is masks and callable(hwa_jax.sparse_update)
