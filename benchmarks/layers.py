"""Row "layers": dense layers and BatchNorm of N particles in one program against N single ones."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import timing
from hwa_jax import particles
from hwa_jax.models.layers import normalization
from hwa_jax.training.functional import from_nnx
from jax_step import mesh

TITLE = "Dense layers and BatchNorm of N particles: time of ours over N single ones"
NOTE = (
    "Forward and the gradients of weights and inputs, float32. Dense: batch x inputs x outputs; BatchNorm: batch x height x width x "
    "channels. A single layer finds its arrays in the caches, call after call, and in memory that the process holds; those of several "
    "outgrow both, see docs/cpu.md."
)
LAYERS = {
    "dense": ("128x784x300", "128x512x512"),
    "batch_norm": ("64x32x32x16", "128x8x8x64"),
}


def cells(options: Any) -> list[dict[str, Any]]:
    """One per layer, shape and N; a single particle beside none shows what the axis itself costs."""
    return [
        {"row": "layers", "layer": layer, "shape": shape, "num_particles": n}
        for layer, shapes in LAYERS.items() for shape in shapes for n in options.particles
    ]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields the ratio."""
    sides = [_side(cell["layer"], cell["shape"], n) for n in (cell["num_particles"], None)]
    ratio = timing.compare(*sides, weight=cell["num_particles"], repeats=repeats, limit=30.0)
    yield {"ratios": {"N × single": ratio}, "figures": {"ours, ms": 1e3 * ratio["ours_seconds"]}}


def _side(layer: str, shape: str, num_particles: int | None) -> timing.Side:
    """The gradients of `num_particles` layers; None is one layer without a particle axis."""
    gradients, arguments = _layer(layer, [int(size) for size in shape.split("x")])
    if num_particles is not None:
        arguments = particles.replicate(arguments, num_particles)
        gradients = particles.vectorize(gradients, mesh=mesh(num_particles))
    compiled = jax.jit(gradients).lower(*arguments).compile()
    return timing.repeated(lambda: jax.block_until_ready(compiled(*arguments)))


def _layer(layer, sizes):
    """(params, statistics, inputs, cotangents) -> statistics and gradients; and such arguments."""
    if layer == "dense":
        batch, features, outputs = sizes
        inputs, cotangents = (batch, features), (batch, outputs)
        model = from_nnx(lambda rngs: nnx.Linear(features, outputs, rngs=rngs))
    else:
        inputs = cotangents = sizes
        model = from_nnx(lambda rngs: normalization("batch", sizes[-1], dtype=jnp.float32, rngs=rngs))

    def gradients(params, batch_stats, inputs, cotangents):
        _, pull_back, new_stats = jax.vjp(
            lambda params, inputs: model.train(params, batch_stats, inputs, jax.random.key(0)), params, inputs, has_aux=True
        )
        return pull_back(cotangents), new_stats

    arrays = [jax.random.normal(jax.random.key(number), shape) for number, shape in enumerate((inputs, cotangents))]
    return gradients, (*model.init(jax.random.key(0)), *arrays)
