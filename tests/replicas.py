"""Replicas for tests: every way of running K of them, and their averaging in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from hwa_jax.particles import device_mesh, vectorize

K = 8


def problem(num_replicas=K, dtype=np.float64):
    """Weights and data of quadratic losses ½ a (p - b)² that differ from replica to replica; leaves [K, ...]."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2), "bias": (2,), "scale": ()}
    make = {name: (num_replicas, *shape) for name, shape in shapes.items()}
    params = {name: rng.normal(size=shape).astype(dtype) for name, shape in make.items()}
    data = {
        name: {"a": rng.uniform(0.5, 1.5, shape).astype(dtype), "b": rng.normal(size=shape).astype(dtype)}
        for name, shape in make.items()
    }
    return params, data


def gradients(params, data):
    return {name: data[name]["a"] * (params[name] - data[name]["b"]) for name in params}


def one_step(tx):
    """A step of one replica (or of stacked ones, since the gradients are elementwise)."""

    def step(params, state, data):
        updates, state = tx.update(gradients(params, data), state, params)
        return optax.apply_updates(params, updates), state

    return step


def over_shards(function, check_vma):
    """`function` of one replica, on one device each."""

    def local(*args):
        out = function(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], out)

    spec = PartitionSpec("replica")
    return jax.shard_map(
        local, mesh=device_mesh(axis_name="replica"), in_specs=spec, out_specs=spec, check_vma=check_vma
    )


def over_two_vmaps(function):
    """`function` of one replica under two named vmaps of 4 and K / 4."""
    twice = jax.vmap(jax.vmap(function, axis_name="inner"), axis_name="outer")

    def flat(*args):
        out = twice(*jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), args))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

    return flat


# name: (axis_name, one replica's function -> a function of K stacked replicas)
LAYOUTS = {
    "vmap": ("replica", lambda function: jax.vmap(function, axis_name="replica")),
    "two vmaps": (("outer", "inner"), over_two_vmaps),
    "pmap": ("replica", lambda function: jax.pmap(function, axis_name="replica")),
    "shard_map": ("replica", lambda function: over_shards(function, check_vma=True)),
    "shard_map unchecked": ("replica", lambda function: over_shards(function, check_vma=False)),
    "vmap in shard_map": (
        ("device", "particle"), lambda function: vectorize(function, mesh=device_mesh(jax.devices()[:4]))
    ),
    "stacked": (None, lambda function: function),
    "stacked and sharded": (None, lambda function: function),
}


def place(layout, tree):
    """Stacked leaves as JAX arrays, on 8 devices where the layout says so."""
    tree = jax.tree.map(jnp.asarray, tree)
    if layout != "stacked and sharded":
        return tree
    return jax.device_put(tree, NamedSharding(device_mesh(), PartitionSpec("device")))


def start(layout, tx, params):
    return tx.init(params) if LAYOUTS[layout][0] is None else jax.vmap(tx.init)(params)


@functools.cache
def compiled(layout, tx):
    """The step of K stacked replicas, traced and compiled once for every (layout, tx)."""
    step = LAYOUTS[layout][1](one_step(tx))
    return step if layout == "pmap" else jax.jit(step)


def run(layout, tx, params, data, num_steps):
    """The weights after every step, NumPy leaves [K, ...], and the last state."""
    step = compiled(layout, tx)
    params, data = place(layout, params), place(layout, data)
    state, trajectory = start(layout, tx, params), []
    for _ in range(num_steps):
        params, state = step(params, state, data)
        trajectory.append(jax.tree.map(np.asarray, params))
    return trajectory, state


def oracle(params, data, num_steps, every, start_step=0, rate=0.1, inner="sgd", policy="local"):
    """What `run` has to give: every replica in float64, averaged as the algorithm box says."""
    params, trajectory, moments, count = dict(params), [], None, 0
    for step in range(1, num_steps + 1):
        moments = moments or {name: (0 * p, 0 * p) for name, p in params.items()}
        grads, count = gradients(params, data), count + 1
        for name, g in grads.items():
            update, moments[name] = _INNER[inner](g, *moments[name], count)
            params[name] = params[name] - rate * update
        if step <= start_step or (step - start_step) % every == 0:
            params = {name: _mean(p) for name, p in params.items()}
            if policy == "average":
                moments = {name: (_mean(m), _mean(v)) for name, (m, v) in moments.items()}
            elif policy == "reset":
                moments, count = None, 0
        trajectory.append(dict(params))
    return trajectory


def _mean(stacked):
    return np.broadcast_to(stacked.mean(0), stacked.shape)


def _momentum(g, m, v, count):
    m = g + 0.9 * m
    return m, (m, v)


def _adam(g, m, v, count):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8), (m, v)


_INNER = {"sgd": lambda g, m, v, count: (g, (m, v)), "momentum": _momentum, "adam": _adam}
OPTIMIZERS = {
    "sgd": lambda rate: optax.sgd(rate),
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": lambda rate: optax.adam(rate),
}


def assert_close(actual, expected, rtol):
    """Leaf by leaf, relative to the largest value of the leaf."""
    for name in expected:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(actual[name], expected[name], rtol=0, atol=rtol * scale, err_msg=name)
