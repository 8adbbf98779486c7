r"""Hierarchical Weight Averaging: the training.

    for cycle e = 0, 1, ...:
        for t = 0 .. H-1, all replicas k = 1..K in parallel, each in its own batch order:
            W^k_{e,t+1} = optimizer_step(W^k_{e,t}, batch_k)                    inner weights
        W̄_e = (1/K) Σ_k W^k_{e,H}                                               outer weights, pushed to the window
        W^k_{e+1,0} = W̄_e                                                       every replica restarts from them
        W̿_e = (1/min(I, e+1)) Σ_{i=max(0, e-I+1)..e} W̄_i                        HWA weights, never fed back

The two loops are one loop over steps here: the average and the restart happen inside the step, by the
transform `with_online_average`; the window is on disk. A last cycle that is shorter than H is averaged
and pushed as well, so the HWA weights hold everything that was learned; the replicas themselves are left
as they are, and at a constant rate a run that is extended continues as if it had never stopped.

K = 1 is offline averaging alone, I = 1 is online averaging alone, both 1 is the inner optimizer.
"""

import functools
import json
import logging
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from hwa_jax import particles
from hwa_jax.algorithms import window_choice
from hwa_jax.algorithms.health_watch import HealthWatch
from hwa_jax.algorithms.hwa_weights import all_weights, average_metrics, hwa_choice, outer_weights
from hwa_jax.errors import Diverged, UserError
from hwa_jax.online import is_synchronization_step, synchronize
from hwa_jax.storage.safetensors import save_weights
from hwa_jax.storage.window_store import WindowStore
from hwa_jax.training import processes
from hwa_jax.training.loop import Event
from hwa_jax.training.predictor import description
from hwa_jax.training.session import Session
from hwa_jax.training.setup import Setup, prepare
from hwa_jax.training.shared_stores import SharedWindow
from hwa_jax.training.step import PARTICLES, TrainState
from hwa_jax.training.together import Algorithm, Request, alone
from hwa_jax.training.weights import recalibrated
from hwa_jax.training.workdir import Workdir

_logger = logging.getLogger(__name__)


def train(config: ConfigDict, directory: str | os.PathLike, *, overwrite: bool = False) -> dict[str, Any] | None:
    """Trains by HWA; the same call continues an interrupted run, and returns at once from a finished one.

    Args:
        config: as `hwa_jax.training.config.default_config`.
        directory: the work directory; see `hwa_jax.training.workdir` for what lies there.
        overwrite: start over, deleting what is there.

    Returns:
        The contents of results.json; None if a signal stopped the run (a checkpoint was made, and the
        same call continues).

    Raises:
        UserError: configuration, data, devices or work directory do not fit, or the training diverged.
    """
    return run(prepare(config), directory, overwrite=overwrite)


def run(setup: Setup, directory: str | os.PathLike, *, overwrite: bool = False) -> dict[str, Any] | None:
    """`train`, for callers that have prepared the pieces and go on to use them."""
    return alone(algorithm(setup, directory, overwrite=overwrite))


def algorithm(setup: Setup, directory: str | os.PathLike, *, overwrite: bool = False) -> Algorithm[dict[str, Any] | None]:
    """`run`, as `hwa_jax.training.together` trains several seeds."""
    with Workdir(directory, setup.config, setup.dataset.fingerprint, overwrite=overwrite) as workdir:
        finished = workdir.results("steps", "final", "config.hwa.num_replicas")
        if finished is not None and finished["steps"] == setup.periods.total:
            _require_same_replicas(finished, setup)
            return finished
        with open_window(setup, workdir.path) as window, Session(setup, workdir) as session:
            hwa = _Hwa(session, window)
            state, complete = yield Request(session, hwa.after(), hwa.before())
            return hwa.finish(workdir, state) if complete else hwa.stop(state)


def num_kept(setup: Setup) -> int:
    """How many members of the window stay on disk: what resuming needs, or what re-sweeps asked for."""
    checkpoint = setup.config.checkpoint
    # A resume may fall back to the oldest checkpoint, and finds the window of that moment.
    pushes_behind = math.ceil(checkpoint.keep * setup.periods.checkpoint / setup.periods.push) + 1
    return max(window_choice.longest(setup) + pushes_behind, setup.config.hwa.keep_pushes)


def open_window(setup: Setup, directory: os.PathLike) -> WindowStore | SharedWindow:
    """The window in a work directory.

    Raises:
        UserError: it holds weights of another network; names the first leaf that differs.
    """
    like = jax.eval_shape(lambda: outer_weights(setup, setup.initial_state()))
    if jax.process_count() > 1:
        return SharedWindow(directory / "window", window_choice.longest(setup), keep=num_kept(setup), like=like)
    window = WindowStore(directory / "window", window_choice.longest(setup), keep=num_kept(setup))
    window.require_like(like)
    return window


def communication(setup: Setup, state: TrainState) -> dict[str, int]:
    """Synchronizations of a whole run, and the bytes that each replica sends for them in ring all-reduces.

    `hwa.sync_dtype` is the weights' alone: statistics and optimizer states travel in their own dtypes. XLA:CPU, which
    has no bf16 all-reduce, sends twice as much for the weights then. Gradients of `hwa.data_parallel` do not count.
    """
    periods, num_replicas = setup.periods, setup.num_replicas
    synchronizations = sum(
        bool(is_synchronization_step(done, periods.sync, periods.sync_start)) for done in range(1, periods.total + 1)
    ) if num_replicas > 1 else 0
    averaged = [state.batch_stats]
    if setup.config.hwa.optimizer_state == "average":
        averaged.append([x for x in jax.tree.leaves(state.opt_state.inner_state) if jnp.issubdtype(x.dtype, jnp.inexact)])
    payload = sum(leaf.nbytes for leaf in jax.tree.leaves(averaged))
    for leaf in jax.tree.leaves(state.params):
        payload += leaf.size * jnp.dtype(setup.config.hwa.sync_dtype or leaf.dtype).itemsize
    payload //= num_replicas
    return {
        "synchronizations": synchronizations,
        "bytes_per_synchronization": payload,
        "bytes_communicated": synchronizations * 2 * payload * (num_replicas - 1) // num_replicas,
    }


def _require_same_replicas(finished, setup):
    """Results of other replicas are not what was asked for."""
    stored, asked = finished["config"]["hwa"], setup.config.hwa.to_dict()
    for field in ("num_replicas", "replica_weights", "replica_batch_sizes"):
        # JSON has lists; results of an earlier version do not have every field.
        if json.dumps(stored.get(field, ())) != json.dumps(asked[field]):
            raise UserError(
                f"hwa.{field}={asked[field]}: the run is finished, with {stored.get(field, ())}: give a longer training.duration to go on with "
                "another value, or choose another --workdir"
            )


class _Hwa:
    """What happens between the steps of HWA."""

    def __init__(self, session: Session, window: WindowStore | SharedWindow):
        self._session, self._setup, self._window = session, session.setup, window
        self._inner_metrics = None
        self._watch = HealthWatch(session, window) if session.setup.config.evaluation.averaging_health else None
        # Drop what an uninterrupted run would not have: newer members, and the last partial cycle of a shorter run.
        kept = [s for s in window.stored_steps if s <= session.first and self._setup.periods.is_push(s)]
        window.truncate(after=max(kept, default=0))
        lost = sorted(set(session.promised) - set(kept))
        if lost:
            _logger.warning("the window has lost its members of steps %s: HWA averages fewer than it should", lost)

    def before(self) -> list[Event]:
        """The events before a step."""
        watched = self._watch.before() if self._watch else []
        if self._setup.num_replicas == 1:
            return watched
        return [Event("inner evaluation", self._every(self._setup.periods.evaluation), self._evaluate_inner), *watched]

    def after(self) -> list[Event]:
        """The events after a step, in their order."""
        periods = self._setup.periods
        # A synchronization that has nothing to do here would only end a call of several steps.
        is_needed = self._setup.num_replicas > 1 and bool(self._setup.drops_lost or jax.tree.leaves(self._session.state.batch_stats))
        return [
            Event("synchronization", lambda done: is_needed and self._is_synchronization(done), self._synchronize),
            Event("push", periods.is_push, self._push),
            *(self._watch.after() if self._watch else ()),
            Event("evaluation", self._every(periods.evaluation), self._evaluate),
            Event("log", self._every(periods.log), self._session.log),
            Event("checkpoint", self._every(periods.checkpoint), self._checkpoint),
        ]

    def _is_synchronization(self, done):
        return is_synchronization_step(done, self._setup.periods.sync, self._setup.periods.sync_start)

    def _every(self, period):
        return lambda done: done % period == 0 or done == self._setup.periods.total

    @functools.cached_property
    def _average_batch_stats(self):
        weights = self._setup.replica_weights

        def average(tree):
            weight = weights and jnp.asarray(weights)[jax.lax.axis_index(PARTICLES)]
            return synchronize(tree, PARTICLES, weights=weight)

        return jax.jit(particles.vectorize(average, mesh=self._setup.mesh), donate_argnums=0)

    def _synchronize(self, done, state):
        """What the step itself has not averaged."""
        if self._setup.drops_lost:
            state = self._session.without_lost(done, state)
        return state._replace(batch_stats=self._average_batch_stats(state.batch_stats))

    def _push(self, done, state):
        state = self._session.without_lost(done, state)
        self._window.push(done, outer_weights(self._setup, state))
        self._session.write(done, "push", {"spread": self._spread(done, state)})
        return state

    def _spread(self, done, state):
        """How far the replicas lay from the outer weights, before a synchronization made them equal."""
        if not self._is_synchronization(done):
            return float(particles.spread(state.params))
        return float(np.sqrt(np.mean(np.square(processes.to_host(state.opt_state.distance), dtype=np.float64))))

    def _evaluate_inner(self, done, state):
        """The replicas one step before, since at a synchronization they have just been made equal."""
        state = self._session.without_lost(done - 1, state)
        with self._evaluating(state):
            try:
                inner = recalibrated(self._setup, state.params, state.batch_stats, stacked=True)
            except Diverged:
                if not self._setup.drops_lost:
                    raise
                # By its last update; the step that comes now finds and drops it, and there is nothing to measure before.
                self._inner_metrics = {}
                return state
            self._inner_metrics = {
                name: average_metrics(self._setup.evaluator.stacked(*inner, split)) for name, split in self._curve_splits.items()
            }
        return state

    def _evaluate(self, done, state):
        state = self._session.without_lost(done, state)
        evaluator = self._setup.evaluator
        with self._evaluating(state):
            choice = hwa_choice(self._setup, state, self._window)
            evaluated = {
                name: {key: evaluator.one(*weights, split) for key, split in self._curve_splits.items()}
                for name, weights in all_weights(self._setup, state, choice).items()
            }
        if choice is not None and choice.curve:
            self._session.write(done, "window", {"window_size": choice.window_size})
        evaluated["inner"] = evaluated["outer"] if self._inner_metrics is None else self._inner_metrics
        for name, by_split in evaluated.items():
            for split, values in by_split.items():
                self._session.write(done, "evaluation", {"weights": name, "split": split, **values})
        return state

    def _evaluating(self, state):
        # Steps that were dispatched ahead are training, not evaluation.
        jax.block_until_ready(state)
        return self._session.clock.activity("evaluation")

    @property
    def _curve_splits(self):
        # The test split takes no part in curves.
        return {"validation": self._setup.validation, "train": self._setup.train_sample}

    def _checkpoint(self, done, state):
        # A checkpoint promises the window up to its step.
        self._window.wait()
        return self._session.checkpoint(done, state, self._window.steps)

    def stop(self, state: TrainState) -> None:
        """After a signal: a checkpoint of this very step."""
        done = int(state.step)
        self._checkpoint(done, state)
        _logger.warning("stopped by a signal after step %d of %d: the same command continues", done, self._setup.periods.total)

    def finish(self, workdir: Workdir, state: TrainState) -> dict[str, Any]:
        """The final table: all weights on the whole training, validation and test splits."""
        setup = self._setup
        with self._evaluating(state):
            choice = hwa_choice(setup, state, self._window)
            weights = all_weights(setup, state, choice)
            final = {name: setup.evaluate(these) for name, these in weights.items()}
        facts = {
            "config": setup.config.to_dict(), "data_fingerprint": setup.dataset.fingerprint, "steps": setup.periods.total,
            "epochs": setup.periods.total / setup.periods.epoch, "window": self._window.steps[-choice.window_size:], **choice.facts, "final": final,
        }
        results = {**facts, **communication(setup, state), "seconds": self._session.clock.seconds()}

        def write():
            save_weights(workdir.path / "hwa.safetensors", *weights["hwa"], {"weights": "hwa", **facts, **description(setup)})
            workdir.write_results(results)

        processes.on_leader(write)
        return workdir.results()
