"""Seeds × particles: the programs for states of several seeds, stacked in front of the particles."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hwa_jax import particles
from hwa_jax.training.step import STATE_AXES, TrainState


class SeedPrograms:
    """What `Setup.step` is for one seed, for S of them that are at the same step.

    Leaves of a stacked TrainState are [S, K, ...], but `step`, which the seeds share.

    Args:
        step: (state, indices, split, key, extra, count=1) -> state, of one seed.
        mesh: over whose devices each seed's particles are cut; the seeds are not.

    Attributes:
        step: the same for states, indices, keys and extras with an axis of seeds in front, the split shared; jitted,
            the state is donated.
        stack: (states, inputs of a step other than state and split) -> both stacked; jitted.
    """

    def __init__(self, step: Callable[..., TrainState], mesh: Mesh):
        def steps(state, indices, split, key, extra, count=1):
            one = functools.partial(step, count=count)
            return jax.vmap(one, in_axes=(STATE_AXES, 0, None, 0, 0), out_axes=STATE_AXES)(state, indices, split, key, extra)

        def shardings(*axis_names):
            return TrainState(*(NamedSharding(mesh, PartitionSpec(*axis_names) if axis == 0 else PartitionSpec()) for axis in STATE_AXES))

        self.step = jax.jit(steps, donate_argnums=0, static_argnames="count")
        self.stack_states = jax.jit(_stack_states, out_shardings=shardings(None, "device"))
        self.stack_inputs = jax.jit(particles.stack)
        self._select = jax.jit(_select, out_shardings=shardings("device"))

    def unstack_states(self, stacked: TrainState, number: int) -> list[TrainState]:
        """The states of the seeds, each in buffers of its own, which may be donated."""
        return [self._select(stacked, jnp.int32(index)) for index in range(number)]


def _stack_states(states: Sequence[TrainState]) -> TrainState:
    return particles.stack([state._replace(step=()) for state in states])._replace(step=states[0].step)


def _select(stacked: TrainState, index: jax.Array) -> TrainState:
    one = jax.tree.map(lambda leaf: leaf[index], stacked._replace(step=()))
    return one._replace(step=jnp.copy(stacked.step))
