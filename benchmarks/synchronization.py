"""Row "synchronization": what HWA adds to K replicas that train side by side, evaluation and recalibration excluded."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import timing
from hwa_jax import particles
from hwa_jax.online import synchronize, with_online_average
from hwa_jax.training.step import PARTICLES
from jax_step import Program, mesh, optimizer

TITLE = "Synchronization: HWA over K plain replicas"
NOTE = (
    "ResNet-20. Timed alone: the optimizer's update with the average due, with the average not due, and without HWA, and the "
    "average of the BatchNorm statistics. What HWA adds in H steps is divided by H steps of K plain replicas; an epoch is "
    "390 steps (50,000 images, batch 128)."
)
MODEL, EPOCH = "resnet20", 50_000 // 128
PERIODS = {"H = 10": 10, "H = 1 epoch": EPOCH}


def cells(options: Any) -> list[dict[str, Any]]:
    """One per K."""
    return [{"row": "synchronization", "num_replicas": k} for k in (2, 4)]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields milliseconds of the parts, and the overheads made of them."""
    num_replicas = cell["num_replicas"]
    program = Program(MODEL, num_replicas)
    params, batch_stats, _ = program.state
    params, batch_stats = jax.tree.map(jnp.copy, (params, batch_stats))
    plain = _update(optimizer(), params)
    # Period 1 is always due, the other never within these calls.
    due, not_due = (_update(with_online_average(optimizer(), every, PARTICLES), params) for every in (1, 2**30))
    average = _side(lambda tree: synchronize(tree, PARTICLES), batch_stats)
    options = {"repeats": repeats, "limit": 30.0}
    step = timing.compare(program, plain, **options)["ours_seconds"]
    yield {"figures": {"K plain replicas, ms a step": 1e3 * step}}
    pairs = [timing.compare(side, plain, **options) for side in (due, not_due)]
    extra_due, extra_not_due = (pair["ours_seconds"] - pair["other_seconds"] for pair in pairs)
    statistics = timing.compare(average, plain, **options)["ours_seconds"]
    yield {"figures": {
        "average of weights, ms": 1e3 * extra_due, "average of statistics, ms": 1e3 * statistics,
        "between averages, ms a step": 1e3 * extra_not_due,
    }}
    for name, period in PERIODS.items():
        extra = extra_due + statistics + (period - 1) * max(0.0, extra_not_due)
        yield {"figures": {f"HWA / plain, {name}": 1 + extra / (period * step)}}


def _update(transform, params):
    """The side of an optimizer's update of all replicas, applied to the weights."""
    state = jax.vmap(transform.init)(params)

    def update(params, state):
        updates, state = transform.update(params, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    return _side(update, params, state)


def _side(function, *arguments):
    mapped = jax.jit(particles.vectorize(function, mesh=mesh(particles.count(arguments))))
    compiled = mapped.lower(*arguments).compile()
    return timing.repeated(lambda: jax.block_until_ready(compiled(*arguments)))
