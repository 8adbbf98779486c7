"""The online average against float64 NumPy, in every way of running replicas, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replicas import LAYOUTS, K, assert_close, one_step, oracle, over_shards, problem, run

import hwa_jax
from hwa_jax.online import is_synchronization_step
from hwa_jax.particles import replicate

STEPS = 9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_numbers_of_numpy(layout):
    with jax.enable_x64(True):
        params, data = problem()
        tx = optax.chain(optax.sgd(0.1, momentum=0.9), hwa_jax.online_average(3, LAYOUTS[layout][0], start_step=2))
        trajectory, _ = run(layout, tx, params, data, STEPS)
        expected = oracle(params, data, STEPS, every=3, start_step=2, inner="momentum")
        for actual, wanted in zip(trajectory, expected, strict=True):
            assert_close(actual, wanted, rtol=1e-14)


def test_a_trajectory_by_hand():
    # K=2, H=2, rate 1, gradients 1 and 3 at every step, start 0 and 10:
    #   t=1  inner steps:     0 - 1 = -1           10 - 3 = 7
    #   t=2  inner steps:    -1 - 1 = -2            7 - 3 = 4     outer (-2 + 4) / 2 = 1 for both
    #   t=3  inner steps:     1 - 1 = 0             1 - 3 = -2
    #   t=4  inner steps:     0 - 1 = -1           -2 - 3 = -5    outer (-1 - 5) / 2 = -3 for both
    tx = optax.chain(optax.sgd(1.0), hwa_jax.online_average(2, "replica"))
    step = jax.jit(jax.vmap(lambda p, s, g: _apply(tx, p, s, g), axis_name="replica"))
    params, grads = jnp.array([0.0, 10.0]), jnp.array([1.0, 3.0])
    state = jax.vmap(tx.init)(params)
    seen = []
    for _ in range(4):
        params, state = step(params, state, grads)
        seen.append(params.tolist())
    assert seen == [[-1, 7], [1, 1], [0, -2], [-3, -3]]
    assert state[-1].count.tolist() == [4, 4]


def _apply(tx, params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("start_step", [0, 1, 4])
def test_averages_at_the_boundaries_of_start_step(start_step, every):
    tx = optax.chain(optax.sgd(0.1), hwa_jax.online_average(every, "replica", start_step=start_step))
    params, data = problem(2, np.float32)
    trajectory, _ = run("vmap", tx, params, data, start_step + 2 * every + 1)
    agree = [t for t, p in enumerate(trajectory, 1) if np.ptp(p["kernel"], axis=0).max() < 1e-6]
    # Steps 1..start_step, then start_step + every and start_step + 2 every, nothing between.
    wanted = set(range(1, start_step + 1)) | {start_step + every, start_step + 2 * every}
    if every == 1:
        wanted |= {start_step + 3}
    assert agree == sorted(wanted)


@given(every=st.integers(1, 12), start_step=st.integers(0, 30), step=st.integers(1, 80))
@settings(deadline=None)
def test_the_schedule_is_that_of_the_definition(every, start_step, step):
    wanted = step in range(1, start_step + 1) or step in range(start_step + every, 200, every)
    assert is_synchronization_step(step, every, start_step) == wanted


def test_init_does_not_average():
    # Replicas that start from different weights keep them until the first average.
    params, data = problem(2, np.float32)
    trajectory, _ = run("vmap", optax.chain(optax.sgd(0.1), hwa_jax.online_average(5, "replica")), params, data, 4)
    assert np.ptp(trajectory[-1]["kernel"], axis=0).min() > 1e-3


def test_updates_counted_under_scan_and_under_two_vmaps_of_which_one_is_named():
    with jax.enable_x64(True):
        params, data = problem(4)
        tx = optax.chain(optax.sgd(0.1), hwa_jax.online_average(3, "replica"))

        def train(params, data):
            def body(carry, _):
                return one_step(tx)(*carry, data), None

            return jax.lax.scan(body, (params, tx.init(params)), None, length=7)[0][0]

        over_replicas = jax.vmap(train, axis_name="replica")
        shifted = jax.tree.map(lambda x: x + 1, params)
        both = jax.tree.map(lambda *x: jnp.stack(x), params, shifted)
        result = jax.jit(jax.vmap(over_replicas, in_axes=(0, None)))(both, data)
        for index, start in enumerate((params, shifted)):
            wanted = oracle(start, data, 7, every=3)[-1]
            assert_close(jax.tree.map(lambda x: x[index], result), wanted, rtol=1e-14)


def test_differentiates_through_an_average():
    # Two replicas, one step of rate r on ½ p²: mean (1 - r)(p1 + p2) / 2, so d/dr = -(p1 + p2) / 2 for each.
    def final(rate, p):
        tx = optax.chain(optax.sgd(rate), hwa_jax.online_average(1, "replica"))
        return _apply(tx, p, tx.init(p), p)[0]

    total = lambda rate: jax.vmap(final, in_axes=(None, 0), axis_name="replica")(rate, jnp.array([1.0, 3.0])).sum()
    assert jax.grad(total)(0.1) == pytest.approx(-4.0, rel=1e-6)
    assert jax.jvp(total, (0.1,), (1.0,))[1] == pytest.approx(-4.0, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_synchronize_is_bit_identical_on_every_replica(layout):
    axis_name, lift = LAYOUTS[layout]
    rng = np.random.default_rng(1)
    # Sums of numbers of such different sizes depend on their order.
    tree = {"w": (rng.normal(size=(K, 500)) * 10.0 ** rng.integers(-6, 6, (K, 500))).astype(np.float32)}
    function = lift(lambda t: hwa_jax.synchronize(t, axis_name))
    result = np.asarray((function if layout == "pmap" else jax.jit(function))(tree)["w"])
    assert (result.view(np.uint32) == result.view(np.uint32)[:1]).all()
    np.testing.assert_allclose(result[0], tree["w"].astype(np.float64).mean(0), atol=1e-6 * np.abs(tree["w"]).max())


def test_weights_are_close_to_the_mean_by_a_few_units_in_the_last_place():
    rng = np.random.default_rng(2)
    params = rng.normal(size=(4, 2000)).astype(np.float32)
    tx = hwa_jax.online_average(1, "replica")
    updates = jax.vmap(lambda p: tx.update(0 * p, tx.init(p), p)[0], axis_name="replica")(params)
    mean = params.astype(np.float64).mean(0)
    unit = np.spacing(np.abs(params).max(0))
    assert (np.abs(params + np.asarray(updates) - mean) / unit).max() <= 2


def test_an_invariant_gradient_meets_varying_weights_under_check_vma():
    # A constant gradient is typed as equal on all devices, the weights are not: both branches must agree.
    tx = optax.chain(optax.sgd(1.0), hwa_jax.online_average(2, "replica"))

    def train(p):
        state = tx.init(p)
        for _ in range(2):
            p, state = _apply(tx, p, state, jnp.ones(()))
        return p

    result = jax.jit(over_shards(train, check_vma=True))(jnp.arange(8.0))
    np.testing.assert_allclose(result, np.full(8, 3.5 - 2.0), rtol=1e-6)


def test_unbatched_weights_and_state_may_enter_a_vmap():
    # All replicas start from one tree, handed in once.
    tx = optax.chain(optax.sgd(1.0), hwa_jax.online_average(1, "replica"))
    step = jax.vmap(lambda p, s, g: _apply(tx, p, s, g), in_axes=(None, None, 0), axis_name="replica")
    params, _ = step(jnp.float32(5.0), tx.init(jnp.float32(5.0)), jnp.array([1.0, 3.0]))
    assert params.tolist() == [3.0, 3.0]


def test_stacked_trees_of_replicate_are_averaged_along_axis_0_only():
    tx = hwa_jax.online_average(1, None)
    params = replicate({"w": jnp.zeros((3, 2))}, 2)
    updates = {"w": jnp.arange(12.0).reshape(2, 3, 2)}
    averaged, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    np.testing.assert_array_equal(averaged["w"], np.broadcast_to(np.arange(6.0).reshape(3, 2) + 3, (2, 3, 2)))
