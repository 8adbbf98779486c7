"""Pooled moments are the moments of all samples together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from replicas import over_shards

from hwa_jax import pool_across, recalibrate_batch_stats
from hwa_jax.errors import Diverged
from hwa_jax.particles import vectorize


def moments(x):
    return {"bn": (x.mean(0), x.var(0))}, len(x)


def _samples(seed, sizes, channels=3):
    rng = np.random.default_rng(seed)
    return [rng.normal(rng.normal(), rng.uniform(0.1, 3), size=(n, channels)) for n in sizes]


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(seed=st.integers(0, 10_000), sizes=sizes)
@settings(deadline=None, max_examples=80)
def test_pooled_is_the_moments_of_the_concatenation(seed, sizes):
    batches = _samples(seed, sizes)
    (mean, variance), everything = recalibrate_batch_stats(moments, batches)[0]["bn"], np.concatenate(batches)
    assert mean.dtype == variance.dtype == np.float32
    np.testing.assert_allclose(mean, everything.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(variance, everything.var(0), rtol=1e-6, atol=1e-12)


@given(seed=st.integers(0, 10_000), sizes=sizes)
@settings(deadline=None, max_examples=40)
def test_the_order_of_the_batches_does_not_matter(seed, sizes):
    batches = _samples(seed, sizes)
    shuffled = [batches[i] for i in np.random.default_rng(seed).permutation(len(batches))]
    a, b = (recalibrate_batch_stats(moments, x)[0]["bn"] for x in (batches, shuffled))
    np.testing.assert_allclose(a[0], b[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-6, atol=1e-12)


def test_an_unequal_last_batch_has_its_own_weight():
    # Four samples of 1 and one of 6: the mean is 2 (not 3.5), the variance (4·1 + 16) / 5 = 4.
    stats, report = recalibrate_batch_stats(moments, [np.ones((4, 1)), np.full((1, 1), 6.0)])
    assert stats["bn"][0] == 2.0 and stats["bn"][1] == 4.0
    assert (report.num_batches, report.num_samples) == (2, 5)


def test_a_small_variance_far_from_zero_does_not_cancel():
    batches = [1e4 + 1e-2 * x for x in _samples(0, [50] * 20)]
    variance = recalibrate_batch_stats(moments, batches)[0]["bn"][1]
    np.testing.assert_allclose(variance, np.concatenate(batches).var(0), rtol=1e-6)


def test_any_structure_of_batches_and_statistics():
    def nested(batch):
        x = batch["inputs"]["image"]
        per_layer = [(x.mean(0), x.var(0)), (2 * x.mean(0), 4 * x.var(0))]
        return {"layers": per_layer, "one": (jnp.float32(x.mean()), jnp.float32(x.var()))}, jnp.int32(len(x))

    batches = ({"inputs": {"image": x}, "label": None} for x in _samples(1, [8, 8, 3]))
    stats, report = recalibrate_batch_stats(nested, batches)
    everything = np.concatenate(_samples(1, [8, 8, 3]))
    np.testing.assert_allclose(stats["layers"][1][0], 2 * everything.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats["one"][1], everything.var(), rtol=1e-5)
    assert stats["one"][0].shape == () and report.num_samples == 19
    pair, _ = recalibrate_batch_stats(lambda x: ((x.mean(0), x.var(0)), len(x)), _samples(1, [8, 8, 3]))
    np.testing.assert_allclose(pair[0], everything.mean(0), rtol=1e-6)


def test_fifty_batches_of_an_exponential_average_replace_39_5_percent():
    # 1 - 0.99^50 = 0.395: Flax's BatchNorm, refreshed for 50 batches, is still mostly what it was.
    layer = nnx.BatchNorm(1, momentum=0.99, use_running_average=False, rngs=nnx.Rngs(0))
    refresh = nnx.jit(lambda layer, x: layer(x))
    batch = np.array([[9.0], [11.0]], np.float32)  # mean 10, variance 1; the layer starts at mean 0
    for _ in range(50):
        refresh(layer, batch)
    assert float(layer.mean[0]) == pytest.approx(10 * 0.395, rel=1e-3)
    stats, _ = recalibrate_batch_stats(moments, [batch] * 50)
    assert stats["bn"][0] == 10.0 and stats["bn"][1] == 1.0


def _report(means, initial=None, **kwargs):
    """The report for batches of ten samples, each of variance 1 around its mean."""
    batches = [mean + np.array([[-1.0], [1.0]] * 5) for mean in means]
    return recalibrate_batch_stats(moments, batches, initial=initial, **kwargs)[1]


def test_unsettled_compares_the_first_half_with_everything():
    # Means 0, 0 | 2, 2: half (0, 1), all (1, 2); max(1 / √2, 1 / 2) = 0.7071.
    assert _report([0, 0, 2, 2]).unsettled == pytest.approx(np.sqrt(0.5), rel=1e-4)
    # Three batches: the first half is one batch. Means 0 | 3, 3: all has mean 2 and variance 1 + 2 = 3.
    assert _report([0, 3, 3]).unsettled == pytest.approx(2 / np.sqrt(3), rel=1e-4)
    assert _report([0, 0, 2, 2]).more_would_help is True
    assert _report([0, 0, 2, 2], tolerance=0.8).more_would_help is False
    assert _report([5, 5, 5]).unsettled == pytest.approx(0, abs=1e-12) and _report([5, 5]).more_would_help is False
    single = _report([5])
    assert single.unsettled is None and single.more_would_help is None and single.moved is None


def test_enough_batches_settle_and_few_do_not():
    batches = [np.random.default_rng(i).normal(3, 2, size=(16, 8)) for i in range(100)]
    few, many = (recalibrate_batch_stats(moments, batches[:n])[1] for n in (2, 100))
    assert few.more_would_help and not many.more_would_help
    assert many.unsettled < few.unsettled / 3


def test_moved_is_the_distance_from_the_statistics_before():
    # All: mean 1, variance 1. From mean 3, variance 1.5: max(2 / 1, 0.5 / 1) = 2.
    report = _report([1, 1], initial={"bn": (np.array([3.0]), np.array([1.5]))})
    assert report.moved == pytest.approx(2, rel=1e-4)
    assert _report([1, 1], initial={"bn": (np.array([1.0]), np.array([3.0]))}).moved == pytest.approx(2, rel=1e-4)
    assert _report([1, 1], initial={"bn": (np.array([1.0]), np.array([1.0]))}).moved == pytest.approx(0, abs=1e-12)


def test_the_worst_channel_of_the_worst_layer_counts():
    def two_layers(x):
        return {"still": (np.zeros(4), np.ones(4)), "moving": (np.array([0.0, x, 0.0]), np.ones(3))}, 10

    assert recalibrate_batch_stats(two_layers, [0.0, 2.0])[1].unsettled == pytest.approx(np.sqrt(0.5), rel=1e-4)


def test_a_dead_channel_does_not_ask_for_more_batches():
    # A constant channel whose mean is rounded differently in batches of different sizes.
    def rounded(n):
        x = np.full((n, 1), 0.1, np.float32)
        return {"bn": (x.mean(0) * np.float32(1 + 1e-7 * (n % 3)), x.var(0))}, n

    report = recalibrate_batch_stats(rounded, [7, 64, 33, 65])[1]
    assert report.unsettled < 1e-4 and not report.more_would_help


@pytest.mark.parametrize(
    ("batches", "batch_moments", "message"),
    [
        ([], moments, "no batches; give at least one batch of training data"),
        ([np.ones((2, 1))], lambda x: (moments(x)[0], 0), "batch 0 has 0 samples"),
        ([np.ones((2, 1)), np.full((2, 1), np.nan)], moments, r"the moments of batch 1 are not finite \(nan\): the weights have diverged"),
        ([np.ones((2, 2))], lambda x: ([x.mean(0), x.var(0)], 2), r"batch 0: every leaf must be a tuple \(mean, variance\)"),
        ([np.ones((2, 2))], lambda x: ({"mean": x.mean(0), "var": x.var(0)}, 2), "batch 0: every leaf must be a tuple"),
    ],
)
def test_bad_input(batches, batch_moments, message):
    with pytest.raises(ValueError, match=f"^recalibrate_batch_stats: {message}"):
        recalibrate_batch_stats(batch_moments, batches)


def test_initial_statistics_that_are_not_finite():
    with pytest.raises(Diverged, match=r"the moments of batch initial are not finite \(inf\): the weights have diverged"):
        recalibrate_batch_stats(moments, [np.ones((2, 1))], initial={"bn": (np.array([np.inf]), np.array([1.0]))})


SIZES = (5, 5, 5, 5, 5, 5, 5, 2)


@pytest.mark.parametrize("layout", ["vmap", "shard_map", "vmap in shard_map"])
def test_pool_across_eight_devices(layout):
    batches = _samples(4, SIZES)
    stacked = {"bn": (np.stack([x.mean(0) for x in batches]), np.stack([x.var(0) for x in batches]))}
    names = ("device", "particle") if layout == "vmap in shard_map" else "replica"
    lift = {
        "vmap": lambda f: jax.vmap(f, axis_name="replica"),
        "shard_map": lambda f: over_shards(f, check_vma=True),
        "vmap in shard_map": vectorize,
    }[layout]
    with jax.enable_x64(True):
        pooled, total = jax.jit(lift(lambda m, n: pool_across(m, n, names)))(stacked, jnp.array(SIZES))
        everything = np.concatenate(batches)
        assert total.tolist() == [37] * 8
        np.testing.assert_allclose(pooled["bn"][0], np.tile(everything.mean(0), (8, 1)), rtol=1e-12)
        np.testing.assert_allclose(pooled["bn"][1], np.tile(everything.var(0), (8, 1)), rtol=1e-12)


def test_a_device_without_samples_does_not_spoil_the_others():
    # Its moments are 0/0; the others hold 1 and 3, two samples each.
    stacked = (jnp.array([1.0, np.nan, 3.0]), jnp.array([0.0, np.nan, 0.0]))
    (mean, variance), total = jax.vmap(lambda m, n: pool_across(m, n, "d"), axis_name="d")(stacked, jnp.array([2, 0, 2]))
    assert mean.tolist() == [2.0] * 3 and variance.tolist() == [1.0] * 3 and total.tolist() == [4] * 3


def test_pool_across_does_not_cancel_in_float32():
    batches = [(1e3 + 0.1 * x).astype(np.float32) for x in _samples(5, [64] * 8)]
    stacked = (np.stack([x.mean(0, dtype=np.float64) for x in batches]).astype(np.float32),
               np.stack([x.var(0, dtype=np.float64) for x in batches]).astype(np.float32))
    (_, variance), _ = jax.vmap(lambda m: pool_across(m, 64, "d"), axis_name="d")(stacked)
    truth = np.concatenate(batches).astype(np.float64).var(0)
    np.testing.assert_allclose(variance[0], truth, rtol=1e-2)
