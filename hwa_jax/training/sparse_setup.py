"""The pieces of pruning in cycles: those of any training, and particles, mask and held-out images."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from hwa_jax import masks, particles
from hwa_jax.data import Dataset, Split, batches, subsets
from hwa_jax.errors import UserError
from hwa_jax.offline import Average, uniform_average
from hwa_jax.optimizer_state import reset_state
from hwa_jax.sparsity.update import sparse_update
from hwa_jax.training.config import default_swamp_config, validate
from hwa_jax.training.datasets import load_dataset
from hwa_jax.training.devices import particle_mesh
from hwa_jax.training.optimizers import make_optimizer, make_schedule
from hwa_jax.training.periods import CyclePeriods
from hwa_jax.training.setup import Setup, pieces
from hwa_jax.training.step import Progress, TrainState


class PlannedCycle(NamedTuple):
    """What is known of a cycle before it is trained.

    Attributes:
        num_particles: N.
        num_weights: prunable weights that remain in it.
        sparsity: the share of them that is gone.
    """

    num_particles: int
    num_weights: int
    sparsity: float


@dataclasses.dataclass(frozen=True)
class SparseSetup(Setup):
    """The pieces of a training of N particles under one mask.

    Attributes:
        held_out: training images that no step sees, on which an average is compared with its particles. They
            are neither validation nor test images; a fraction of the training split, stratified by class.
        swa: the average of one particle's weights over time, or None.
    """

    held_out: Split
    swa: Average | None

    def with_particles(self, num_particles: int) -> "SparseSetup":
        """The same for another N, on the most devices that N particles can be cut over evenly."""
        return _build(self.config, self.dataset, jax.device_get(self.held_out), num_particles)

    def dense_mask(self) -> Any:
        """The mask under which all weights remain.

        Raises:
            UserError: `swamp.prunable` matches nothing.
        """
        params, _ = jax.eval_shape(self.model.init, jax.random.key(0))
        return masks.ones(params, self.config.swamp.prunable or None)

    def plan(self) -> list[PlannedCycle]:
        """All cycles, up to the first one at or above the target sparsity.

        Raises:
            UserError: nothing is left to prune before the target is reached.
        """
        swamp, schedule, cycles = self.config.swamp, particle_schedule(self.config), []
        for count in masks.planned_counts(
            self.dense_mask(), swamp.fraction, swamp.pruner, keep_one_per_output=swamp.keep_one_per_output
        ):
            size = cycles[0].num_weights if cycles else count
            cycles.append(PlannedCycle(schedule[min(len(cycles), len(schedule) - 1)], count, (size - count) / size))
            if cycles[-1].sparsity >= swamp.target_sparsity:
                return cycles
        raise UserError(
            f"swamp.fraction={swamp.fraction}: of the {count} weights that remain in cycle {len(cycles) - 1} none would go, and "
            f"swamp.target_sparsity={swamp.target_sparsity} is not reached: raise the one or lower the other"
        )

    def particles_at(self, origin: TrainState, mask: Any) -> TrainState:
        """N equal particles at one particle's state, its weights θ∘m; nothing collected by SWA yet.

        Args:
            origin: unstacked.
            mask: of its weights.
        """
        params = masks.apply(mask, origin.params)
        one = origin._replace(params=params, ema=self.swa.init(params) if self.swa else (), progress=Progress.zero())
        return self.place(particles.replicate(one, self.num_replicas)._replace(step=one.step))

    def restarted(self, ticket: TrainState, params: Any, batch_stats: Any) -> TrainState:
        """One particle at other weights than the ticket's: step and schedule as there, no momentum yet."""
        opt_state = reset_state(ticket.opt_state, self.optimizer.init(params))
        return ticket._replace(params=params, batch_stats=batch_stats, opt_state=opt_state)

    @functools.cached_property
    def collect(self):
        """State -> state with the particles' weights added to their SWA averages; jitted, the state is donated."""
        mapped = particles.vectorize(self.swa.update, mesh=self.mesh)
        return jax.jit(lambda state: state._replace(ema=mapped(state.ema, state.params)), donate_argnums=0)


def first_particle(state: TrainState) -> TrainState:
    """The state of one particle of stacked ones, unstacked."""
    return jax.tree.map(lambda leaf: leaf[0], state._replace(step=()))._replace(step=state.step)


def prepare(config: ConfigDict) -> SparseSetup:
    """Reads the data and builds everything for the largest N of the configuration; writes nothing.

    Raises:
        UserError: a field, data set or device count that does not fit; one line.
    """
    validate(config, default_swamp_config)
    dataset, swamp = load_dataset(config), config.swamp
    if swamp.averaging == "when_safe" and not swamp.gate_fraction:
        raise UserError("swamp.gate_fraction=0.0: swamp.averaging='when_safe' compares on held-out images, give 0.05 for example")
    num_held_out = round(swamp.gate_fraction * dataset.train.num_examples)
    chosen, rest = subsets.stratified_choice(dataset.train.labels, num_held_out, np.random.RandomState(config.data.seed))
    held_out, dataset = dataset.train.select(chosen), dataclasses.replace(dataset, train=dataset.train.select(rest))
    setup = _build(config, dataset, held_out, max(particle_schedule(config)))
    # What does not fit the network is said before anything is written.
    jax.eval_shape(setup.initial_state)
    setup.plan()
    return setup


def particle_schedule(config: ConfigDict) -> tuple[int, ...]:
    """N of the first cycles; the last one holds from there on.

    Raises:
        UserError: `swamp.num_particles` is neither a whole number nor a tuple of them, each at least 1.

    Example:
        >>> from hwa_jax.training.config import default_swamp_config
        >>> particle_schedule(default_swamp_config())
        (4,)
    """
    value = config.swamp.num_particles
    schedule = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if not schedule or not all(type(n) is int and n >= 1 for n in schedule):
        raise UserError(f"swamp.num_particles={value!r}: give a whole number of at least 1, or a tuple of them, one for each cycle")
    return schedule


def _build(config: ConfigDict, dataset: Dataset, held_out: Split, num_particles: int) -> SparseSetup:
    swamp = config.swamp
    mesh = particle_mesh(config, num_particles)
    periods = CyclePeriods.of(config, batches.steps_per_epoch(dataset.train.num_examples, config.training.batch_size))
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, periods.epoch, periods.total)
    if swamp.swa:
        schedule = _with_swa(schedule, periods.ticket + periods.swa_start, swamp.swa_learning_rate)
    common = pieces(config, dataset, mesh, swamp.recalibration_examples)
    setup = SparseSetup(
        **common, schedule=schedule, periods=periods, optimizer=sparse_update(make_optimizer(config.optimizer, schedule)),
        num_replicas=num_particles, data_mode="shared", ema=None, held_out=held_out, swa=uniform_average() if swamp.swa else None,
    )
    return dataclasses.replace(setup, held_out=batches.to_device(held_out, setup.replicated))


def _with_swa(schedule: optax.Schedule, start: int, learning_rate: float) -> optax.Schedule:
    return lambda step: jnp.where(step < start, schedule(step), learning_rate)
