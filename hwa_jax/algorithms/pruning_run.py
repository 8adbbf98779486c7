"""A run of pruning in cycles: its work directory, its trainings, and what it stores of each cycle.

    ticket/                the matching ticket: one particle after T0 dense steps (Orbax)
    cycles/003/            a finished cycle, whole or absent
      average.safetensors  its mask, a bit per weight, and the average of the particles, see `storage.sparse_weights`
      particle_0.safetensors ...  what was averaged; absent where the average is the one particle
      metrics.json         density, cost, decision of the gate, metrics of all weights on all splits
    checkpoints/           of the ticket's training or the cycle that is running, while it is (Orbax)
    metrics.jsonl          training loss and accuracy, step by step over all cycles
    results.json           written last: all cycles
    weights.safetensors    the final sparse network with its zeros, for `load_predictor`
"""

import logging
import os
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hwa_jax import masks, particles
from hwa_jax.algorithms.cycle_files import Solution, cycle_directory, read_cycle, read_metrics, write_cycle
from hwa_jax.errors import UserError
from hwa_jax.storage import atomic
from hwa_jax.storage.safetensors import named_leaves, save_weights
from hwa_jax.training import processes
from hwa_jax.training.config import SWAMP_MAY_CHANGE_ON_RESUME
from hwa_jax.training.loop import Event
from hwa_jax.training.predictor import description
from hwa_jax.training.session import Part, Session
from hwa_jax.training.shared_stores import SharedCheckpoints
from hwa_jax.training.sparse_setup import SparseSetup, first_particle
from hwa_jax.training.step import TrainState
from hwa_jax.training.together import Algorithm, Request
from hwa_jax.training.weights import Weights, recalibrated
from hwa_jax.training.workdir import Workdir

_logger = logging.getLogger(__name__)


class Trained(NamedTuple):
    """The particles of a cycle at its end.

    Attributes:
        setup: the pieces for this many particles.
        cycle: its number, from 0.
        mask: under which they were trained.
        state: stacked.
        seconds: by activity.
    """

    setup: SparseSetup
    cycle: int
    mask: Any
    state: TrainState
    seconds: dict[str, float]


class PruningRun:
    """What IMP and SWAMP need around their boxes; a context manager that a signal leaves early.

    After SIGTERM or SIGINT the running training makes a checkpoint and the `with` block ends without an error. What
    trains is called by `yield from`, see `hwa_jax.training.together`.

    Args:
        setup: the pieces, for any number of particles.
        directory: the work directory.
        overwrite: start over, deleting what is there.

    Raises:
        UserError: as `Workdir`.
    """

    def __init__(self, setup: SparseSetup, directory: str | os.PathLike, *, overwrite: bool = False):
        self._setups = {setup.num_replicas: setup}
        self.setup, self.config = setup, setup.config
        self._workdir = Workdir(
            directory, setup.config, setup.dataset.fingerprint, overwrite=overwrite, may_change=SWAMP_MAY_CHANGE_ON_RESUME
        )

    def __enter__(self) -> "PruningRun":
        return self

    def __exit__(self, kind, error, traceback) -> bool:
        self._workdir.__exit__()
        return kind is _Stopped

    def results(self) -> dict[str, Any] | None:
        """What a finished run wrote; None if it is not finished, or has a new target."""
        found = self._workdir.results("cycles", "config.swamp.target_sparsity")
        is_reached = found is not None and found["config"]["swamp"]["target_sparsity"] == self.config.swamp.target_sparsity
        return found if is_reached else None

    def train_ticket(self) -> Algorithm[TrainState]:
        """The matching ticket, θ_T0: one particle after T0 steps of dense training; NumPy arrays."""
        store = SharedCheckpoints(self._workdir.path / "ticket", keep=1)
        like = jax.eval_shape(lambda: first_particle(self.setup.initial_state()))
        found = store.restore(like)
        if found is None:
            setup = self._with_particles(1)
            extra = {"mask": particles.put(setup.dense_mask(), setup.replicated)}
            part = Part("checkpoints/ticket", setup.initial_state, setup.periods.ticket, number=0, extra=extra)
            state, _ = yield from self._train(setup, part)
            store.save(setup.periods.ticket, first_particle(processes.to_host(state)), None)
            self._remove(part.checkpoints)
            found = store.restore(like)
        return found.tree

    def train_particles(self, cycle: int, num_particles: int, origin: TrainState, mask: Any) -> Algorithm[Trained]:
        """Trains N particles from θ∘m, T steps; they differ in batch order and augmentation alone."""
        setup = self._with_particles(num_particles)
        state, seconds = yield from self._train(setup, self._part(setup, cycle, origin, mask))
        return Trained(setup, cycle, mask, state, seconds)

    def stored(self, cycle: int, mask: Any) -> Solution | None:
        """What a cycle that is finished found; None if it is not.

        Raises:
            UserError: it was trained under another mask.
        """
        return read_cycle(self._cycle(cycle), mask)

    def store(
        self, trained: Trained, average: Weights, found: Sequence[Weights] = (), *, solution: str = "average",
        gate: dict[str, Any] | None = None,
    ) -> Solution:
        """Evaluates and stores what a cycle found, all of it or nothing.

        Args:
            trained: the particles.
            average: their average.
            found: the particles' weights that were averaged, if that is not the average itself.
            solution: "average", or "particle_0" ...: by whose magnitudes the mask is pruned.
            gate: what the gate measured.
        """
        stored = {"average": average, **{f"particle_{n}": weights for n, weights in enumerate(found)}}
        metrics = self._metrics(trained, stored) | {"solution": solution, "gate": gate}
        stored, about = processes.to_host(stored), {"cycle": trained.cycle, **description(trained.setup)}
        processes.on_leader(lambda: write_cycle(self._cycle(trained.cycle), stored, trained.mask, metrics, about))
        self._remove(self._checkpoints(trained.cycle))
        accuracy = metrics["evaluation"][solution]["validation"]["accuracy"]
        _logger.info("cycle %d: %.1f %% pruned, validation accuracy %.2f %%", trained.cycle, 100 * metrics["sparsity"], 100 * accuracy)
        return self.stored(trained.cycle, trained.mask)

    def is_target(self, cycle: int, mask: Any) -> bool:
        """Whether this cycle, trained under `mask`, is the last.

        Raises:
            UserError: the run has gone beyond the target already.
        """
        target = self.config.swamp.target_sparsity
        if sparsity(mask) < target:
            return False
        following = read_metrics(self._cycle(cycle + 1))
        if following is not None:
            raise UserError(
                f"swamp.target_sparsity={target}: the run has already reached {following['sparsity']:.4f} in cycle {cycle + 1}: "
                "give at least that, or choose another --workdir"
            )
        return True

    def prune(self, cycle: int, weights: Weights, mask: Any) -> Any:
        """The next mask, the same on all processes: `swamp.fraction` of the remaining weights go.

        Raises:
            UserError: NaN weights.
        """
        swamp = self.config.swamp
        pruned = processes.on_leader(lambda: masks.prune(
            weights.params, mask, swamp.fraction, swamp.pruner, keep_one_per_output=swamp.keep_one_per_output,
            key=jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), 3), cycle),
        ))
        return processes.share(pruned, mask)

    def finish(self, cycle: int, solution: Solution) -> dict[str, Any]:
        """Writes results.json and the final network; returns the former's contents."""
        cycles = [read_metrics(self._cycle(number)) for number in range(cycle + 1)]
        facts = {
            "config": self.config.to_dict(), "data_fingerprint": self.setup.dataset.fingerprint, "sparsity": cycles[-1]["sparsity"],
            "final": cycles[-1]["evaluation"],
        }
        about = {"weights": solution.metrics["solution"], **facts, **description(self.setup)}

        def write():
            save_weights(self._workdir.path / "weights.safetensors", *solution.weights, about)
            # What a kill between a cycle and the removal of its checkpoints has left.
            shutil.rmtree(self._workdir.path / "checkpoints", ignore_errors=True)
            # The configuration on record says the new target, where there is one.
            self._workdir.record()
            self._workdir.write_results({**facts, "cycles": cycles})

        processes.on_leader(write)
        return self._workdir.results()

    def _with_particles(self, num_particles):
        if num_particles not in self._setups:
            self._setups[num_particles] = self.setup.with_particles(num_particles)
        return self._setups[num_particles]

    def _part(self, setup, cycle, origin, mask):
        return Part(
            self._checkpoints(cycle), lambda: setup.particles_at(origin, mask), setup.periods.total, number=cycle + 1,
            offset=cycle * setup.periods.cycle, extra={"mask": particles.put(mask, setup.replicated)}, facts={"cycle": cycle},
        )

    def _train(self, setup, part):
        with Session(setup, self._workdir, part) as session:
            periods = setup.periods

            def every(period):
                return lambda done: done % period == 0 or done == part.total

            after = [
                Event("collect", lambda done: setup.swa is not None and periods.is_collected(done), lambda _, state: setup.collect(state)),
                Event("log", every(periods.log), session.log),
                Event("checkpoint", every(periods.checkpoint), session.checkpoint),
            ]
            state, complete = yield Request(session, after)
            if not complete:
                session.checkpoint(int(state.step), state)
                _logger.warning("stopped by a signal at %s: the same command continues", part.checkpoints)
                raise _Stopped
            return state, session.clock.seconds()

    def _metrics(self, trained, stored):
        setup, mask = trained.setup, trained.mask
        splits = {"train": setup.train_sample, "validation": setup.validation, "test": setup.test}
        evaluation = {
            name: {split: setup.evaluator.one(*weights, images) for split, images in splits.items()}
            for name, weights in stored.items()
        }
        last = recalibrated(setup, trained.state.params, trained.state.batch_stats, stacked=True)
        for split, images in splits.items():
            for n, metrics in enumerate(setup.evaluator.stacked(*last, images)):
                evaluation.setdefault(f"last_{n}", {})[split] = metrics
        return {
            "cycle": trained.cycle, "num_particles": setup.num_replicas, "sparsity": sparsity(mask), "num_weights": masks.count(mask),
            "density_per_layer": {name: float(np.mean(np.asarray(keep))) for name, keep in named_leaves(mask).items()},
            "particle_epochs": setup.num_replicas * setup.periods.cycle / setup.periods.epoch,
            "evaluation": evaluation, "seconds": trained.seconds,
        }

    def _cycle(self, number):
        return cycle_directory(self._workdir.path, number)

    def _checkpoints(self, cycle):
        return f"checkpoints/cycle_{cycle:03d}"

    def _remove(self, checkpoints):
        processes.on_leader(lambda: atomic.remove_directory(self._workdir.path / checkpoints))


class _Stopped(Exception):
    """A signal asked the run to stop, and its checkpoint is made."""


def sparsity(mask: Any) -> float:
    """The share of the prunable weights that are gone.

    Example:
        >>> sparsity({"kernel": np.array([True, False, False, False])})
        0.75
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(mask))
    # Not 1 - density, which may miss a target such as 0.9 by its last bit.
    return (size - masks.count(mask)) / size
