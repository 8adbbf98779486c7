"""The online average in training loops of under 25 lines: a dictionary, a Linen and an Equinox model."""

import inspect

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hwa_jax
from hwa_jax.particles import replicate, unstack

K = 4


def batches(num_steps):
    """Regression batches, one per replica: x [K, 16, 3], y [K, 16]."""
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        x = rng.normal(size=(K, 16, 3)).astype(np.float32)
        yield x, np.sin(x).sum(-1)


def train_dictionary(num_steps):
    params = replicate({"w1": 0.3 * jnp.eye(3, 8), "b1": jnp.zeros(8), "w2": jnp.ones(8) / 8}, K)
    tx = optax.chain(optax.adam(0.03), hwa_jax.online_average(every=10, axis_name="replica"))
    state, losses = jax.vmap(tx.init)(params), []

    def loss_of(params, x, y):
        return jnp.mean((jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] - y) ** 2)

    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    step = jax.jit(jax.vmap(step, axis_name="replica"))
    for x, y in batches(num_steps):
        params, state, loss = step(params, state, x, y)
        losses.append(loss.mean())
    return params, losses


def train_linen(num_steps):
    model = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(1)])
    params = replicate(model.init(jax.random.key(0), jnp.zeros((1, 3))), K)
    tx = hwa_jax.with_online_average(optax.adam(0.03), 10, "replica", optimizer_state="average")
    state, losses = jax.vmap(tx.init)(params), []

    def step(params, state, x, y):
        loss_of = lambda params: jnp.mean((model.apply(params, x)[:, 0] - y) ** 2)
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    step = jax.jit(jax.vmap(step, axis_name="replica"))
    for x, y in batches(num_steps):
        params, state, loss = step(params, state, x, y)
        losses.append(loss.mean())
    return params, losses


def train_equinox(num_steps):
    model = eqx.nn.MLP(3, "scalar", 8, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    params = replicate(params, K)
    tx = optax.chain(optax.adam(0.03), hwa_jax.online_average(every=10, axis_name="replica"))
    state, losses = jax.vmap(tx.init)(params), []

    def step(params, state, x, y):
        loss_of = lambda params: jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)
        loss, grads = eqx.filter_value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(params, updates), state, loss

    step = jax.jit(jax.vmap(step, axis_name="replica"))
    for x, y in batches(num_steps):
        params, state, loss = step(params, state, x, y)
        losses.append(loss.mean())
    return params, losses


@pytest.mark.parametrize("train", [train_dictionary, train_linen, train_equinox])
def test_a_plain_loop(train):
    assert len(inspect.getsource(train).splitlines()) < 25
    params, losses = train(60)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    first, *others = unstack(params)
    for other in others:  # step 60 was an average
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_replicas_of_a_plain_loop_differ_between_averages():
    params, _ = train_dictionary(5)
    assert max(float(np.ptp(leaf, axis=0).max()) for leaf in jax.tree.leaves(params)) > 1e-3
