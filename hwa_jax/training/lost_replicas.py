"""Replicas that are lost to NaN: they take no part in averages, and restart from the outer weights of the others.

A step marks a replica whose loss or gradient is not finite, before it averages (`Progress.first_non_finite`).
Under `hwa.nan_policy="drop"` such a replica counts nothing from then on, and NaN times nothing is nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hwa_jax.replica_mean import is_averaged
from hwa_jax.synchronization import synchronize
from hwa_jax.training.step import NEVER, PARTICLES, TrainState


def restart_lost(state: TrainState, weights: Sequence[float] | None) -> TrainState:
    """One replica inside `particles.vectorize`: as it is, or where it is lost the mean of those that are not.

    The mean is of weights, statistics, optimizer states and sums for the log; counts are the replica's own, which all
    share. Of replicas that have just been averaged it is what they were averaged to.

    Args:
        state: of this replica; one at least is not lost.
        weights: how much each replica counts otherwise; None: all the same.
    """
    healthy = state.progress.is_healthy
    counts = healthy if weights is None else healthy * jnp.asarray(weights)[jax.lax.axis_index(PARTICLES)]

    def choose(own, mean):
        return jnp.where(healthy > 0, own, mean) if is_averaged(own) else own

    state = jax.tree.map(choose, state, synchronize(state, PARTICLES, weights=counts))
    return state._replace(progress=state.progress._replace(first_non_finite=jnp.int32(NEVER)))
