"""Exact selection against a full sort: NumPy and XLA, every dtype, ties, denormals, chunks, brackets that miss, memory."""

import functools
import os
import tracemalloc
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwa_jax import masks
from hwa_jax.errors import UserError
from hwa_jax.sparsity import host_selection, selection
from mask_trees import KINDS, prunable, remove_by_sorting, trees, weights

FRACTIONS = (0.2, 0.5, 0.999)
# For XLA, which compiles once for these shapes: mixed dtypes, an empty leaf, one number.
LEAVES = {
    "a": ((3, 4), np.float32), "b": ((2, 5), ml_dtypes.bfloat16), "c": ((0, 3), np.float32),
    "d": ((1, 1), np.float16), "e": ((9,), np.float16), "f": ((2, 3), np.float32),
}


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


def check_tree(tree, fraction, chunk, sample):
    params, mask = tree
    kept = prunable(mask, mask)
    number = round(fraction * sum(int(leaf.sum()) for leaf in kept))
    with mock.patch.multiple(host_selection, _CHUNK=chunk, _SAMPLE=sample), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        new = masks.prune_by_magnitude(params, mask, fraction)
    assert jax.tree.structure(new) == jax.tree.structure(mask)
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == bool for leaf in jax.tree.leaves(new))
    assert_equal(jax.tree.leaves(new), remove_by_sorting(prunable(mask, params), kept, number))
    assert masks.count(new) == masks.count(mask) - number


fractions = st.sampled_from(FRACTIONS) | st.floats(0, 1, exclude_min=True, exclude_max=True)
chunks, samples = st.sampled_from([1, 5, 1 << 18]), st.sampled_from([1, 40, 1 << 16])


@settings(max_examples=300, deadline=None)
@given(trees(), fractions, chunks, samples)
def test_numpy_equals_a_full_sort(tree, fraction, chunk, sample):
    check_tree(tree, fraction, chunk, sample)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(trees((np.float32, np.float16, ml_dtypes.bfloat16, np.float64, ml_dtypes.float8_e5m2)), fractions, chunks, samples)
def test_numpy_equals_a_full_sort_for_thousands_of_trees(tree, fraction, chunk, sample):
    check_tree(tree, fraction, chunk, sample)


def fixed_tree(seed, kind):
    rng = np.random.default_rng(seed)
    params = {name: weights(rng, shape, dtype, kind) for name, (shape, dtype) in LEAVES.items()}
    share = rng.choice([0.1, 0.8, 1.0])
    mask = {name: rng.random(shape) < share for name, (shape, _) in LEAVES.items()}
    return params, mask | {"f": optax.MaskedNode()}


@functools.cache
def jitted(fraction):
    return jax.jit(lambda params, mask: masks.prune_by_magnitude(params, mask, fraction))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.sampled_from(FRACTIONS))
def test_inside_jit_equals_a_full_sort(seed, kind, fraction):
    params, mask = fixed_tree(seed, kind)
    kept = prunable(mask, mask)
    new = jitted(fraction)(params, mask)
    expected = remove_by_sorting(prunable(mask, params), kept, round(fraction * sum(int(k.sum()) for k in kept)))
    assert jax.tree.structure(new) == jax.tree.structure(mask)
    assert_equal(jax.tree.leaves(new), expected)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(trees(), st.sampled_from(FRACTIONS))
def test_inside_jit_equals_numpy_for_random_trees(tree, fraction):
    params, mask = jax.tree.map(jnp.asarray, tree)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        eager = masks.prune_by_magnitude(params, mask, fraction)
    assert_equal(jax.tree.leaves(jitted(fraction)(params, mask)), jax.tree.leaves(eager))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.integers(0, 40))
def test_both_remove_any_number_also_more_than_there_are(seed, kind, number):
    # The path of concrete arrays elsewhere than in host memory: the XLA program with the number as an argument.
    params, mask = fixed_tree(seed, kind)
    values, kept = prunable(mask, params), prunable(mask, mask)
    expected = remove_by_sorting(values, kept, number)
    assert_equal(selection._remove_smallest_jit(values, kept, number), expected)
    assert_equal(selection.remove_smallest(values, kept, number, list(LEAVES)[:5]), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("wide", [jnp.float32, jnp.float64], ids=lambda wide: wide.__name__)
def test_bits_of_every_half_precision_number(dtype, wide):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        every = every[~np.isnan(every)]
    with jax.enable_x64(wide == jnp.float64):
        bits = np.asarray(jax.jit(lambda x: selection.magnitude_bits(x, wide))(every))
    np.testing.assert_array_equal(bits, np.abs(every.astype(wide)).view(bits.dtype))


def test_bits_of_denormals_in_a_wider_dtype():
    patterns = np.concatenate([np.arange(9), 2 ** np.arange(31), [0x7FFFFF, 0x800000, 0x800001, 0x7F800000]]).astype(np.uint32)
    values = np.concatenate([patterns.view(np.float32), -patterns.view(np.float32)])
    with jax.enable_x64(True):
        bits = np.asarray(jax.jit(lambda x: selection.magnitude_bits(x, jnp.float64))(values))
    np.testing.assert_array_equal(bits, np.abs(values.astype(np.float64)).view(np.uint64))


def test_float64_inside_jit_tells_apart_what_float32_does_not():
    with jax.enable_x64(True):
        params = {"a": jnp.array([1.0, 1.0 - 2.0**-50]), "b": jnp.array([1.0, 2.0**-140], jnp.float32)}
        mask = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
        for fraction, expected in [(0.25, [True, True, True, False]), (0.5, [True, False, True, False])]:
            for new in (masks.prune_by_magnitude(params, mask, fraction), jitted(fraction)(params, mask)):
                assert np.concatenate(jax.tree.leaves(new)).tolist() == expected


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.36, 0.5, 1e-9, 1 - 2**-53])
def test_number_removed_inside_jit_is_pythons_round(fraction):
    # 0.1 · 5 is above a half before it is rounded to float64, and a half after: Python gives 0.
    kept = np.arange(2000)[:, None] > np.arange(2000)
    numbers = jax.jit(jax.vmap(lambda keep: selection.num_removed(fraction, [keep])))(kept)
    assert numbers.dtype == jnp.int32
    assert numbers.tolist() == [round(fraction * n) for n in range(2000)]
    assert selection.num_removed(fraction, [kept]) == round(fraction * kept.sum().item())


def test_ties_by_hand():
    # |w|: 1 0 1 | 1 1 0. Five remain (the third is gone), round(0.5 · 5) = 2 (half to even): both zeros.
    # Then three of magnitude 1 remain, round(0.4 · 3) = 1: the first of them.
    params = {"b": np.array([[1.0, -1.0, 0.0]]), "a": np.array([[-1.0, -0.0, 1.0]])}
    mask = {"b": np.ones((1, 3), bool), "a": np.array([[True, True, False]])}
    once = masks.prune_by_magnitude(params, mask, 0.5)
    assert once["a"].tolist() == [[True, False, False]] and once["b"].tolist() == [[True, True, False]]
    with pytest.warns(UserWarning, match="no weight in a;"):
        twice = masks.prune_by_magnitude(params, once, 0.4)
    assert twice["a"].tolist() == [[False, False, False]] and twice["b"].tolist() == [[True, True, False]]


def test_counts_follow_the_recursion_and_nothing_returns():
    rng = np.random.default_rng(0)
    mask = masks.ones({"kernel": np.zeros((37, 53))})
    remaining = 37 * 53
    for _ in range(12):
        new = masks.prune_by_magnitude({"kernel": rng.normal(size=(37, 53))}, mask, 0.36)
        remaining -= round(0.36 * remaining)
        assert masks.count(new) == remaining
        assert not (np.asarray(new["kernel"]) & ~np.asarray(mask["kernel"])).any()
        mask = new


ONE = np.float32(1)


@pytest.mark.parametrize(
    ("sampled", "others", "num_scans"),
    [
        (1e-3, None, 2),
        (1e3, None, 2),
        # The threshold is the very next number to the bracket.
        (ONE, np.nextafter(ONE, np.float32(2)), 2),
        (ONE, np.nextafter(ONE, np.float32(0)), 2),
        (ONE, ONE, 1),
    ],
    ids=["above", "below", "just above", "just below", "hit"],
)
def test_a_bracket_that_misses_is_moved(monkeypatch, sampled, others, num_scans):
    # The sample sees every 31st weight; where all of those are smaller or larger than the rest, the bracket is too.
    monkeypatch.setattr(host_selection, "_SAMPLE", 100)
    values = np.random.default_rng(0).uniform(0.5, 1.5, 3000).astype(np.float32) if others is None else np.full(3000, others)
    values[::31] = sampled
    scans, scan = [], host_selection._scan
    monkeypatch.setattr(host_selection, "_scan", lambda *args: scans.append(1) or scan(*args))
    kept = [np.ones(3000, bool)]
    assert_equal(selection.remove_smallest([values], kept, 1500, ["w"]), remove_by_sorting([values], kept, 1500))
    assert len(scans) == num_scans


@pytest.mark.parametrize("constant", [False, True])
def test_a_million_weights_and_their_memory(constant):
    size = 1 << 22
    values = np.ones(size, np.float32) if constant else np.random.default_rng(0).normal(size=size).astype(np.float32)
    kept = np.ones(size, bool)
    tracemalloc.start()
    [new] = host_selection.remove_smallest([values], [kept], size // 5, ["w"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if constant:
        assert not new[: size // 5].any() and new[size // 5 :].all()
    else:
        threshold = np.partition(np.abs(values), size // 5)[size // 5]
        np.testing.assert_array_equal(new, np.abs(values) >= threshold)
    # One copy, the mask, and for each thread what it holds of a chunk of 2^18 weights.
    assert peak < values.nbytes + new.nbytes + os.cpu_count() * 24 * (1 << 18) + (1 << 20)


def test_nan_is_refused_by_name_or_goes_last():
    params = {"a": jnp.array([[1.0, np.nan]]), "b": jnp.array([[np.inf, 3.0]])}
    mask = masks.ones(params)
    for prune in (masks.prune_by_magnitude, functools.partial(masks.prune_by_magnitude, keep_one_per_output=True)):
        with pytest.raises(UserError, match="weights of a are NaN"):
            prune(params, mask, 0.5)
        # None of the weights goes, and NaN is refused all the same.
        with pytest.raises(UserError, match="weights of a are NaN"):
            prune(params, mask, 0.01)
    # 1 < 3 goes, and NaN is gone already.
    gone = {"a": jnp.array([[True, False]]), "b": mask["b"]}
    with pytest.warns(UserWarning, match="no weight in a;"):
        assert masks.prune_by_magnitude(params, gone, 0.3)["b"].all()
    new = jitted(0.5)(params, mask)
    assert new["a"].tolist() == [[False, True]] and new["b"].tolist() == [[True, False]]


def test_nan_is_refused_where_xla_selects(monkeypatch):
    monkeypatch.setattr(selection, "_is_on_host", lambda leaf: False)
    params = {"a": jnp.ones((2, 2)), "b": jnp.array([[1.0, np.nan]])}
    with pytest.raises(UserError, match="weights of b are NaN"):
        masks.prune_by_magnitude(params, masks.ones(params), 0.5)
    assert masks.count(masks.prune_by_magnitude({"a": jnp.ones((2, 2))}, {"a": jnp.ones((2, 2), bool)}, 0.5)) == 2


def test_more_than_31_bits_of_weights_are_refused_inside_jit():
    leaf = jax.ShapeDtypeStruct((1 << 16, 1 << 15), jnp.float32)
    with pytest.raises(UserError, match="2147483648 prunable weights: selection inside jit"):
        jax.eval_shape(jitted(0.5), {"a": leaf}, {"a": jax.ShapeDtypeStruct(leaf.shape, bool)})


def test_layouts_that_are_not_row_major():
    values = np.asfortranarray(np.arange(12.0, dtype=np.float32).reshape(3, 4)[:, ::-1])
    kept = np.asfortranarray(np.ones((3, 4), bool))
    assert_equal(selection.remove_smallest([values], [kept], 5, ["w"]), remove_by_sorting([values], [kept], 5))
    swapped = values.astype(values.dtype.newbyteorder())
    assert_equal(selection.remove_smallest([swapped], [kept], 5, ["w"]), remove_by_sorting([values], [kept], 5))
