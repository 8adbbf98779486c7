"""Loss and error of many points in weight space, BatchNorm recalibrated at every one of them."""

from collections.abc import Iterable
from typing import Any, Callable, NamedTuple

import jax.numpy as jnp
import numpy as np

from hwa_jax import particles
from hwa_jax.analysis.weight_vectors import combine
from hwa_jax.data import Split
from hwa_jax.training.setup import Setup

CHUNK_SIZE = 16


class PointMetrics(NamedTuple):
    """What P points of weight space do on a split.

    Attributes:
        loss: float64 [P], mean negative log-likelihood, nats.
        error: float64 [P], share of wrong predictions, 0..1.
    """

    loss: np.ndarray
    error: np.ndarray


def evaluate_points(
    setup: Setup,
    stacked: Any,
    batch_stats: Any,
    coefficients: np.ndarray,
    split: Split,
    *,
    chunk_size: int = CHUNK_SIZE,
    progress: Callable[[Iterable], Iterable] = iter,
) -> PointMetrics:
    """Loss and error at the points Σ_v c_pv W_v, with BatchNorm statistics of their own.

    Points are made and evaluated in chunks, all of a chunk together (`jax.vmap`), so that the memory needed does
    not grow with their number. All chunks are of one size, hence one compilation.

    Args:
        setup: network, data and evaluator.
        stacked: parameters that span the space, leaves [V, ...], as `weight_vectors.stack` makes them.
        batch_stats: of the network; their values make no difference. Empty without BatchNorm.
        coefficients: float [P, V], a row per point; at least one.
        split: on the devices, as `setup.validation`.
        chunk_size: points at a time; rounded up to a multiple of the setup's devices.
        progress: wraps the iterable of chunks; `tqdm` for a bar.

    Returns:
        `PointMetrics`.
    """
    num_points, devices = len(coefficients), setup.mesh.size
    size = -(-min(chunk_size, num_points) // devices) * devices
    replicated_stats = particles.put(particles.replicate(batch_stats, size), setup.stacked)
    found = []
    for start in progress(range(0, num_points, size)):
        # The last chunk is filled up with its last point.
        chosen = coefficients[np.minimum(np.arange(start, start + size), num_points - 1)]
        params = particles.put(combine(stacked, jnp.asarray(chosen)), setup.stacked)
        stats, _ = setup.recalibrate(params, replicated_stats, stacked=True)
        found += setup.evaluator.stacked(params, stats, split)
    found = found[:num_points]
    return PointMetrics(np.array([m["nll"] for m in found]), np.array([1 - m["accuracy"] for m in found]))
