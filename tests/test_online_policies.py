"""What happens to the optimizer's state at an average: local, average, reset."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replicas import LAYOUTS, OPTIMIZERS, K, assert_close, oracle, place, problem, run

from hwa_jax import online_average, with_online_average

POLICIES = ("local", "average", "reset")


def assert_matches_numpy(layout, policy, inner):
    with jax.enable_x64(True):
        params, data = problem()
        tx = with_online_average(OPTIMIZERS[inner](0.1), 3, LAYOUTS[layout][0], optimizer_state=policy, start_step=1)
        trajectory, _ = run(layout, tx, params, data, 8)
        expected = oracle(params, data, 8, every=3, start_step=1, inner=inner, policy=policy)
        for actual, wanted in zip(trajectory, expected, strict=True):
            assert_close(actual, wanted, rtol=1e-12)


@pytest.mark.parametrize(("layout", "policy"), [
    ("shard_map", "reset"),
    ("vmap in shard_map", "average"),
    ("vmap", "local"),
    *(("stacked", policy) for policy in POLICIES),
])
def test_policies_give_the_numbers_of_numpy(layout, policy):
    assert_matches_numpy(layout, policy, "adam")


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["momentum", "adam"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_policies_give_the_numbers_of_numpy_in_every_layout(layout, policy, inner):
    assert_matches_numpy(layout, policy, inner)


def test_local_is_a_chain():
    params, data = problem(2, np.float32)
    wrapped, _ = run("vmap", with_online_average(optax.adam(0.1), 3, "replica"), params, data, 5)
    chained, _ = run("vmap", optax.chain(optax.adam(0.1), online_average(3, "replica")), params, data, 5)
    for a, b in zip(jax.tree.leaves(wrapped), jax.tree.leaves(chained), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layout", ["vmap", "shard_map", "stacked"])
def test_distance_is_how_far_a_replica_was_from_the_mean_it_jumped_to(layout):
    # H=2, rate 0: after two steps replicas 0..7 jump from 0..7 to 3.5; in three equal coordinates, √3 times as far.
    params = {"w": np.arange(8.0, dtype=np.float32)[:, None] * np.ones(3, np.float32)}
    data = {"w": {"a": np.zeros_like(params["w"]), "b": np.zeros_like(params["w"])}}
    tx = with_online_average(optax.sgd(0.0), 2, LAYOUTS[layout][0])
    _, before = run(layout, tx, params, data, 1)
    assert (np.asarray(before.distance) == 0).all()
    _, state = run(layout, tx, params, data, 3)
    each = np.sqrt(3) * np.abs(np.arange(8) - 3.5)
    wanted = each if LAYOUTS[layout][0] else np.sqrt(np.mean(each**2))
    np.testing.assert_allclose(state.distance, wanted, rtol=1e-6)


def _train(inner, policy, steps, every=2, gradient=1.0):
    tx = with_online_average(inner, every, None, optimizer_state=policy)
    params = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(jax.tree.map(lambda w: gradient * jnp.ones_like(w), params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_reset_keeps_schedule_counts_while_adam_counts_again():
    _, state = _train(optax.adam(optax.linear_schedule(0.1, 0.0, 10)), "reset", 5)
    adam, schedule = state.inner_state
    assert schedule.count == 5 and state.count == 5
    assert adam.count == 1  # one step after the average at step 4
    np.testing.assert_allclose(adam.mu["w"], 0.1, rtol=1e-6)  # (1 - 0.9) · 1, once


def test_reset_keeps_injected_hyperparameters_and_their_counts():
    inner = optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(0.1, 0.0, 10), b1=0.5)
    _, state = _train(inner, "reset", 4)
    assert state.inner_state.count == 4
    assert state.inner_state.hyperparams["b1"] == 0.5
    assert float(state.inner_state.hyperparams["learning_rate"]) == pytest.approx(0.07)  # at count 3, the last used
    assert state.inner_state.inner_state[0].count == 0
    assert (np.asarray(state.inner_state.inner_state[0].nu["w"]) == 0).all()


def test_reset_keeps_a_hyperparameter_that_was_set_by_hand():
    tx = with_online_average(optax.inject_hyperparams(optax.adam)(learning_rate=0.1), 1, None, optimizer_state="reset")
    params = {"w": jnp.zeros((2, 3))}
    state = tx.init(params)
    state.inner_state.hyperparams["learning_rate"] = jnp.float32(0.025)
    _, state = tx.update(params, state, params)
    assert float(state.inner_state.hyperparams["learning_rate"]) == pytest.approx(0.025)


def test_reset_keeps_noise_keys_and_gathered_micro_batches():
    _, state = _train(optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(0.1, momentum=0.9)), "reset", 4)
    noise, (trace, _) = state.inner_state
    assert noise.count == 4 and (noise.rng_key != optax.add_noise(0.1, 0.5, key=0).init({}).rng_key).any()
    assert (np.asarray(trace.trace["w"]) == 0).all()
    # H = 1 falls inside an accumulation of 3: the one gradient gathered so far must survive.
    tx = optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation()
    _, state = _train(tx, "reset", 4, every=1)
    assert state.inner_state.mini_step == 1 and state.inner_state.gradient_step == 1
    np.testing.assert_array_equal(state.inner_state.acc_grads["w"], 1.0)
    assert state.inner_state.inner_opt_state[0].count == 0


def test_reset_reaches_states_inside_masks_and_groups():
    inner = optax.multi_transform(
        {"a": optax.adam(optax.constant_schedule(0.1)), "b": optax.masked(optax.adam(0.1), {"w": True})}, {"w": "a"}
    )
    _, state = _train(inner, "reset", 2)
    adam, schedule = state.inner_state.inner_states["a"].inner_state
    assert adam.count == 0 and schedule.count == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_after_an_average_are_not_several_times_the_rate(policy):
    # Under a constant gradient every Adam step is one rate long. Zero moments under a count of 1000 would step
    # 0.65 / sqrt(0.00996 / 0.636) ≈ 5.2 rates ten steps later (0.65 = 1 - 0.9^10, 0.00996 = 1 - 0.999^10).
    tx = with_online_average(optax.adam(0.01), 1000, None, optimizer_state=policy)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jnp.ones_like(params), state, params)
        return (optax.apply_updates(params, updates), state), updates

    params = jnp.zeros((2, 1))
    _, updates = jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), None, length=1030))()
    np.testing.assert_allclose(updates[1000:], -0.01, rtol=1e-3)


def test_average_leaves_unstacked_hyperparameters_and_integers_alone():
    inner = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    tx = with_online_average(inner, 1, None, optimizer_state="average")
    params = {"w": jnp.zeros((2, 3))}
    _, state = tx.update({"w": jnp.array([[1.0] * 3, [3.0] * 3])}, tx.init(params), params)
    assert float(state.inner_state.hyperparams["learning_rate"]) == pytest.approx(0.1)
    assert state.inner_state.inner_state[0].count == 1
    np.testing.assert_allclose(state.inner_state.inner_state[0].mu["w"], 0.2, rtol=1e-6)  # 0.1 · (1 + 3) / 2


def test_average_of_the_state_happens_at_averages_only():
    params, data = problem(2, np.float32)
    tx = with_online_average(optax.sgd(0.1, momentum=0.9), 3, "replica", optimizer_state="average")
    _, between = run("vmap", tx, params, data, 2)
    _, at = run("vmap", tx, params, data, 3)
    assert np.ptp(between.inner_state[0].trace["kernel"], axis=0).min() > 1e-3
    assert np.ptp(at.inner_state[0].trace["kernel"], axis=0).max() == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_states_keep_their_dtypes_and_shapes(policy):
    params, data = problem()
    params["bias"] = params["bias"].astype(jnp.bfloat16)
    tx = with_online_average(optax.adamw(0.1, mu_dtype=jnp.bfloat16), 2, "replica", optimizer_state=policy)
    start = jax.vmap(tx.init)(place("vmap", params))
    _, end = run("vmap", tx, params, data, 2)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert describe(start) == describe(end)
    assert start.count.shape == (K,)
