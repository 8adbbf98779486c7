"""What hierarchical averaging has to be at the ends of its parameters."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from replicas import LAYOUTS, problem, run

import hwa_jax
from hwa_jax.particles import device_mesh, mean, replicate, vectorize

ONE_REPLICA = {
    "vmap": ("replica", lambda step: jax.vmap(step, axis_name="replica")),
    "shard_map": (("device", "particle"), lambda step: vectorize(step, mesh=device_mesh(jax.devices()[:1]))),
    "stacked": (None, lambda step: step),
}


def _train(tx, lift, params, stacked_init, steps=12):
    def step(params, state, t):
        gradient = jax.tree.map(lambda p: jnp.sin(3 * p + t.astype(p.dtype)), params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step, state, seen = jax.jit(lift(step)), stacked_init(params), []
    for t in range(steps):
        params, state = step(params, state, jnp.full((1,), t))
        seen.append(params)
    return seen


@pytest.mark.parametrize("layout", ["vmap", pytest.param("shard_map", marks=pytest.mark.slow), "stacked"])
def test_one_replica_is_the_plain_optimizer_to_the_last_bit(layout):
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(1, 1000)).astype(np.float32), "b": rng.normal(size=(1, 1000)).astype(ml_dtypes.bfloat16)}
    axis_name, lift = ONE_REPLICA[layout]
    init = lambda tx: tx.init if axis_name is None else jax.vmap(tx.init)
    plain = optax.adam(0.3)
    averaged = hwa_jax.with_online_average(plain, 2, axis_name, optimizer_state="average")
    for a, b in zip(_train(averaged, lift, params, init(averaged)), _train(plain, lift, params, init(plain)), strict=True):
        for name in params:
            np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]))


def test_one_replica_where_adding_the_difference_would_round_otherwise():
    # In bf16 p + ((p + u) - p) is not p + u for these two.
    p, u = jnp.full((1, 1), -1.90921e-08, jnp.bfloat16), jnp.full((1, 1), 1.38767e-07, jnp.bfloat16)
    assert (p + ((p + u) - p).astype(jnp.bfloat16) != p + u).all()
    tx = hwa_jax.online_average(1, None)
    np.testing.assert_array_equal(p + tx.update(u, tx.init(p), p)[0], p + u)


@pytest.mark.parametrize(
    "layout", [name if name == "vmap in shard_map" else pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS]
)
def test_a_period_longer_than_training_leaves_replicas_independent(layout):
    params, data = problem(dtype=np.float32)
    tx = optax.chain(optax.adam(0.1), hwa_jax.online_average(7, LAYOUTS[layout][0]))
    apart, _ = run(layout, tx, params, data, 6)
    plain, _ = run(layout, optax.adam(0.1), params, data, 6)
    # Not to the last bit: alone, the compiler fuses the product in an update with the addition.
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    # What replica 0 does changes no bit of the others.
    other, _ = run(layout, tx, {name: np.concatenate([p[:1] + 9, p[1:]]) for name, p in params.items()}, data, 6)
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a[1:], b[1:])
        assert (a[:1] != b[:1]).all()


def _loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] - batch["y"]) ** 2)


def _regression(num_steps, num_replicas, batch_size=8):
    rng = np.random.default_rng(0)
    params = {"w1": rng.normal(size=(5, 7)), "b1": rng.normal(size=7), "w2": rng.normal(size=(7, 2))}
    shape = (num_steps, num_replicas, batch_size)
    return params, {"x": rng.normal(size=(*shape, 5)), "y": rng.normal(size=(*shape, 2))}


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_period_of_one_is_sgd_on_all_batches_together(momentum):
    with jax.enable_x64(True):
        params, batches = _regression(20, 4)
        tx = optax.chain(optax.sgd(0.1, momentum), hwa_jax.online_average(1, "replica"))

        def step(tx, params, state, batch):
            updates, state = tx.update(jax.grad(_loss)(params, batch), state, params)
            return optax.apply_updates(params, updates), state

        replicas, together = replicate(params, 4), jax.tree.map(jnp.asarray, params)
        state, big_state = jax.vmap(tx.init)(replicas), optax.sgd(0.1, momentum).init(together)
        small = jax.jit(jax.vmap(lambda *args: step(tx, *args), axis_name="replica"))
        big = jax.jit(lambda *args: step(optax.sgd(0.1, momentum), *args))
        for t in range(20):
            batch = jax.tree.map(lambda x: x[t], batches)
            replicas, state = small(replicas, state, batch)
            together, big_state = big(together, big_state, jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batch))
        for name in params:
            moved = np.abs(together[name] - params[name]).max()
            assert moved > 0.1
            error = np.linalg.norm(replicas[name] - together[name]) / np.linalg.norm(together[name])
            assert error <= 1e-12  # the requirement is 1e-6; float64 leaves only rounding


def test_a_window_of_one_is_the_last_outer_weights_and_a_long_one_the_mean_of_all():
    params, data = problem(4, np.float32)
    trajectory, _ = run("vmap", optax.chain(optax.sgd(0.1), hwa_jax.online_average(3, "replica")), params, data, 12)
    outer = [mean(weights) for weights in trajectory[2::3]]
    one, many = hwa_jax.sliding_window(1), hwa_jax.sliding_window(10)
    states = [one.init(outer[0]), many.init(outer[0])]
    for weights in outer:
        states = [one.update(states[0], weights), many.update(states[1], weights)]
    for name in params:
        np.testing.assert_array_equal(one.value(states[0])[name], outer[-1][name])
        wanted = np.mean([np.asarray(weights[name], np.float64) for weights in outer], axis=0)
        np.testing.assert_allclose(many.value(states[1])[name], wanted, rtol=1e-6)
