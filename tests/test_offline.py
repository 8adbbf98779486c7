"""Averages over time against float64 NumPy and explicit lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hwa_jax

AVERAGES = {
    "uniform": hwa_jax.uniform_average,
    "exponential": lambda: hwa_jax.exponential_average(0.9),
    "window": lambda: hwa_jax.sliding_window(3),
}


def wanted(name, history):
    """The average of history[1:] in float64; history[0] are the initial weights."""
    history = np.asarray(history, np.float64)
    if len(history) == 1:
        return history[0]
    if name == "uniform":
        return history[1:].mean(0)
    if name == "window":
        return history[1:][-3:].mean(0)
    value = history[0]
    for p in history[1:]:
        value = 0.9 * value + 0.1 * p
    return value


def run(average, history):
    update, state = jax.jit(average.update), average.init(history[0])
    for p in history[1:]:
        state = update(state, p)
    return average.value(state)


@pytest.mark.parametrize("num_updates", [0, 1, 2, 3, 4, 20])
@pytest.mark.parametrize("name", AVERAGES)
def test_numbers_of_numpy(name, num_updates):
    history = np.random.default_rng(num_updates).normal(size=(num_updates + 1, 4, 3))
    result = run(AVERAGES[name](), history.astype(np.float32))
    np.testing.assert_allclose(result, wanted(name, history.astype(np.float32)), rtol=0, atol=5e-7)
    with jax.enable_x64(True):
        result = run(AVERAGES[name](), history)
        assert result.dtype == jnp.float64
        np.testing.assert_allclose(result, wanted(name, history), rtol=0, atol=1e-15)


def test_a_uniform_average_of_many_does_not_drift():
    history = np.random.default_rng(0).normal(1.0, 0.1, size=(3001, 8)).astype(np.float32)
    average = hwa_jax.uniform_average()
    scan = jax.jit(lambda state, ps: jax.lax.scan(lambda s, p: (average.update(s, p), None), state, ps)[0])
    value = average.value(scan(average.init(history[0]), history[1:]))
    np.testing.assert_allclose(value, history[1:].astype(np.float64).mean(0), rtol=3e-6)


@pytest.mark.parametrize("name", AVERAGES)
def test_hand_computed(name):
    # Start 9, then 1, 2, 6, 4.
    #   uniform       1, 1.5, 3, 13/4
    #   exponential   9·.9 + .1 = 8.2, 8.2·.9 + .2 = 7.58, 7.58·.9 + .6 = 7.422, 7.422·.9 + .4 = 7.0798
    #   window of 3   1, 1.5, 3, (2 + 6 + 4) / 3 = 4
    by_hand = {"uniform": [9, 1, 1.5, 3, 3.25], "exponential": [9, 8.2, 7.58, 7.422, 7.0798], "window": [9, 1, 1.5, 3, 4]}
    average = AVERAGES[name]()
    state, seen = average.init(jnp.float32(9.0)), []
    for p in (1.0, 2.0, 6.0, 4.0):
        seen.append(float(average.value(state)))
        state = average.update(state, jnp.float32(p))
    seen.append(float(average.value(state)))
    assert seen == pytest.approx(by_hand[name], rel=1e-6)


@given(size=st.sampled_from([1, 2, 3, 7, 12]), values=st.lists(st.integers(-1000, 1000), min_size=1, max_size=40))
@settings(deadline=None, max_examples=60)
def test_a_window_is_the_mean_of_an_explicit_list(size, values):
    average = hwa_jax.sliding_window(size)
    state = average.init(jnp.full((2,), 7e5))
    for value in values:
        state = average.update(state, jnp.full((2,), float(value)))
    kept = values[-size:]
    # Sums of integers are exact in float32; XLA divides through the reciprocal, which rounds twice.
    np.testing.assert_allclose(average.value(state), sum(kept) / len(kept), rtol=2**-22)
    assert jax.tree.leaves(state)[1].shape == (size, 2)


def test_a_window_of_one_is_the_last_weights():
    history = np.random.default_rng(1).normal(size=(5, 30)).astype(np.float32)
    np.testing.assert_array_equal(run(hwa_jax.sliding_window(1), history), history[-1])


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_weights_have_float32_averages(name, dtype):
    history = jnp.asarray(np.random.default_rng(2).normal(size=(9, 50)), dtype)
    result = run(AVERAGES[name](), history)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, wanted(name, history.astype(jnp.float32)), rtol=0, atol=1e-6)


def test_a_bf16_state_would_stall_where_ours_moves():
    # From 1 towards 1.25 with decay 0.999: a step is at most 0.00025, and bf16 has nothing between 1 and 1.0078.
    target = jnp.bfloat16(1.25)
    average = hwa_jax.exponential_average(0.999)
    state, stalled = average.init(jnp.bfloat16(1.0)), jnp.bfloat16(1.0)
    update = jax.jit(average.update)
    for _ in range(500):
        state = update(state, target)
        stalled = stalled + (target - stalled) * jnp.bfloat16(0.001)
    assert float(stalled) == 1.0
    assert float(average.value(state)) == pytest.approx(1.25 - 0.25 * 0.999**500, rel=1e-5)


@pytest.mark.parametrize("name", AVERAGES)
def test_other_leaves_take_the_newest_value(name):
    average = AVERAGES[name]()
    tree = lambda i: {"n": jnp.int32(i), "flag": jnp.bool_(i % 2), "key": jax.random.key(i), "none": None}
    assert average.value(average.init(tree(0)))["n"] == 0
    value = average.value(jax.jit(average.update)(average.update(average.init(tree(0)), tree(3)), tree(5)))
    assert value["n"] == 5 and value["flag"] and value["none"] is None and value["n"].dtype == jnp.int32
    assert (value["key"] == jax.random.key(5)).all()


@pytest.mark.parametrize("name", AVERAGES)
def test_python_numbers_numpy_arrays_empty_leaves_and_complex(name):
    average = AVERAGES[name]()
    tree = lambda x: {"a": float(x), "b": np.full(3, x, np.float32), "e": jnp.zeros((0, 2)), "c": jnp.complex64(x * 1j)}
    value = average.value(average.update(average.update(average.init(tree(0)), tree(2)), tree(2)))
    expected = wanted(name, [[0.0], [2.0], [2.0]])[0]
    np.testing.assert_allclose(value["b"], expected, rtol=1e-6)
    np.testing.assert_allclose(value["a"], expected, rtol=1e-6)
    np.testing.assert_allclose(value["c"], expected * 1j, rtol=1e-6)
    assert value["e"].shape == (0, 2)
    assert average.value(average.update(average.init({}), {})) == {}


@pytest.mark.parametrize("name", ["uniform", "window"])
def test_nothing_is_left_of_the_initial_weights_after_the_first_update(name):
    # 1 is below the spacing of float32 at 1e8, and NaN would stay for ever.
    for initial in (1e8, np.nan, np.inf):
        assert float(run(AVERAGES[name](), jnp.array([initial, 1.0]))) == 1.0


def test_a_nan_leaves_the_window_with_its_member():
    history = jnp.array([0.0, 1.0, np.nan, 3.0, 4.0, 5.0])
    average = hwa_jax.sliding_window(3)
    assert np.isnan(run(average, history[:5])) and float(run(average, history)) == 4.0


@pytest.mark.parametrize("name", AVERAGES)
def test_vmap_and_scan_give_what_a_loop_gives(name):
    average = AVERAGES[name]()
    history = np.random.default_rng(3).normal(size=(6, 4, 2)).astype(np.float32)  # time, particle, weight
    state = jax.vmap(average.init)(history[0])

    def body(state, params):
        state = jax.vmap(average.update)(state, params)
        return state, jax.vmap(average.value)(state)

    _, values = jax.jit(lambda s, h: jax.lax.scan(body, s, h))(state, history[1:])
    for step in range(1, 6):
        np.testing.assert_allclose(values[step - 1], wanted(name, history[: step + 1]), rtol=0, atol=5e-7)


def test_decay_zero_is_the_newest():
    assert float(run(hwa_jax.exponential_average(0.0), jnp.array([1e8, 1.0, 2.5]))) == 2.5


@pytest.mark.parametrize("decay", [-0.1, 1, 1.0, 2, float("nan")])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=rf"exponential_average: decay={decay!r} must be at least 0 and below 1"):
        hwa_jax.exponential_average(decay)


@pytest.mark.parametrize("size", [0, -3, 2.0, "3", None, True])
def test_bad_size(size):
    with pytest.raises(ValueError, match=rf"sliding_window: size={size!r} must be a whole number of updates, at least 1"):
        hwa_jax.sliding_window(size)


@pytest.mark.parametrize("name", AVERAGES)
def test_another_structure_is_refused(name):
    average = AVERAGES[name]()
    with pytest.raises(ValueError):
        average.update(average.init({"a": jnp.zeros(2)}), {"b": jnp.zeros(2)})
