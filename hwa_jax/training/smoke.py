"""Short checks of the library on whatever devices are there, each against NumPy or against itself.

They need no data set, no network and no configuration, and raise `AssertionError`, or what JAX raises, where something is wrong.
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hwa_jax import masks, online_average, particles, sparse_update, synchronize
from hwa_jax.storage.checkpoint import CheckpointStore
from hwa_jax.storage.window_store import WindowStore

_AXES = ("device", "particle")
_SHAPES = {"kernel": (48, 16), "bias": (16,)}
# H, the learning rate, and steps that do not end with an average.
_PERIOD, _RATE, _STEPS = 3, 0.25, 10
# Sums of a few float32 numbers, in any order.
_RTOL = 1e-5


def devices() -> str:
    """Every local device multiplies two matrices as NumPy does; says which they are."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 64, 64)).astype(np.float32)
    for device in jax.local_devices():
        product = jnp.dot(jax.device_put(first, device), jax.device_put(second, device), precision="highest")
        np.testing.assert_allclose(product, np.float64(first) @ second, rtol=0, atol=1e-4)
    kinds = sorted({device.device_kind for device in jax.local_devices()})
    return f"{jax.local_device_count()} × {', '.join(kinds)} ({jax.default_backend()}), JAX {jax.__version__}"


def sync() -> str:
    """`online_average` over all local devices with two replicas on each, and under `vmap` on one device."""
    mesh = particles.device_mesh(jax.local_devices())
    num_replicas = 2 * mesh.size
    starts = _weights(num_replicas)
    expected = _averaged_by_numpy(starts)
    for name, placed in {"mesh": mesh, "vmap": particles.device_mesh(jax.local_devices()[:1])}.items():
        step, init = _training(placed)
        weights, state = starts, init(starts)
        for _ in range(_STEPS):
            weights, state = step(weights, state)
        _require_close(weights, expected, name)
        same = jax.jit(particles.vectorize(lambda tree: synchronize(tree, _AXES), mesh=placed))(weights)
        for leaf in map(np.asarray, jax.tree.leaves(same)):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    return f"{num_replicas} replicas over {mesh.size} device(s), and on one"


def window() -> str:
    """Pushes from the device, a restart, and the mean of the last members."""
    members = [particles.unstack(_weights(4))[index] for index in range(4)]
    with tempfile.TemporaryDirectory() as directory:
        with WindowStore(directory, size=3) as opened:
            for step, member in enumerate(members, 1):
                opened.push(step, member)
        with WindowStore(directory, size=3) as opened:
            assert opened.steps == [2, 3, 4], opened.steps
            _require_close(opened.mean(), jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64), *members[1:]), "mean")
    return "4 pushed, reopened, mean of the last 3"


def pruning() -> str:
    """The smallest weights go, exactly so many, and stay exactly zero under Adam with weight decay."""
    weights = jax.tree.map(lambda leaf: leaf[0], _weights(1))
    mask = masks.prune_by_magnitude(weights, masks.ones(weights), fraction=0.75)
    magnitudes = np.abs(np.asarray(weights["kernel"]))
    expected = magnitudes > np.sort(magnitudes, axis=None)[round(0.75 * magnitudes.size) - 1]
    np.testing.assert_array_equal(mask["kernel"], expected)
    optimizer = sparse_update(optax.adamw(_RATE))

    @jax.jit
    def step(weights, state, mask):
        updates, state = optimizer.update(jax.tree.map(lambda leaf: leaf - 1, weights), state, weights, mask=mask)
        return optax.apply_updates(weights, updates), state

    state = optimizer.init(weights)
    for _ in range(_STEPS):
        weights, state = step(weights, state, mask)
    for tree in (weights, state[0].mu, state[0].nu):
        kernel = np.asarray(tree["kernel"])
        assert not kernel[~expected].any() and kernel[expected].all(), "weights or moments outside of the mask are not zero"
    return f"{masks.count(mask)} of {magnitudes.size} weights left, the others exactly 0"


def resume() -> str:
    """A training that is stored, forgotten, compiled anew and continued ends bit for bit as one that was not."""
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        whole = _run(directory / "whole", stop=_STEPS)
        _run(directory / "parts", stop=_STEPS // 2)
        jax.clear_caches()
        again = _run(directory / "parts", stop=_STEPS)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    return f"interrupted after {_STEPS // 2} of {_STEPS} steps: weights, optimizer and window equal bit for bit"


CHECKS: dict[str, Callable[[], str]] = {"devices": devices, "sync": sync, "window": window, "masks": pruning, "resume": resume}


def _weights(num_replicas):
    """Stacked NumPy weights, all different."""
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(num_replicas, *shape)).astype(np.float32) for name, shape in _SHAPES.items()}


def _training(mesh):
    """(step, init) of all replicas; replica r draws its weights towards r."""
    optimizer = optax.chain(optax.sgd(_RATE), online_average(_PERIOD, _AXES))

    def step(weights, state):
        gradient = jax.tree.map(lambda leaf: leaf - jax.lax.axis_index(_AXES), weights)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    return jax.jit(particles.vectorize(step, mesh=mesh)), jax.jit(particles.vectorize(optimizer.init, mesh=mesh))


def _averaged_by_numpy(starts):
    """The same training in float64."""
    weights = {name: np.float64(leaf) for name, leaf in starts.items()}
    for done in range(1, _STEPS + 1):
        for name, leaf in weights.items():
            number = np.arange(len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1))
            leaf = leaf - _RATE * (leaf - number)
            weights[name] = np.broadcast_to(leaf.mean(axis=0), leaf.shape) if done % _PERIOD == 0 else leaf
    return weights


def _run(directory, stop):
    """A training up to a step, from its newest checkpoint where there is one: (weights, optimizer, mean of the window)."""
    mesh = particles.device_mesh(jax.local_devices())
    step, init = _training(mesh)
    weights = _weights(2 * mesh.size)
    checkpoints = CheckpointStore(directory / "checkpoints")
    restored = checkpoints.restore(like=(weights, jax.eval_shape(init, weights)))
    first, (weights, state) = (restored.step, restored.tree) if restored else (0, (weights, init(weights)))
    with WindowStore(directory / "window", size=2) as members:
        for done in range(first + 1, stop + 1):
            weights, state = step(weights, state)
            if done % _PERIOD == 0:
                members.push(done, jax.jit(particles.mean)(weights))
        members.wait()
        checkpoints.save(stop, (weights, state))
        return jax.tree.map(np.asarray, (weights, state, members.mean()))


def _require_close(found: Any, expected: Any, name: str):
    compare = functools.partial(np.testing.assert_allclose, rtol=_RTOL, atol=_RTOL, err_msg=name)
    jax.tree.map(compare, found, expected)
