"""The watch over the averages of a training: measures after every push, and says where averaging hurts."""

import functools
import logging
import math

import jax
import numpy as np

from hwa_jax.algorithms import window_choice
from hwa_jax.analysis import averaging_health
from hwa_jax.analysis.averaging_health import Health
from hwa_jax.analysis.connectivity import path_metrics
from hwa_jax.online import is_synchronization_step
from hwa_jax.storage.window_store import WindowStore
from hwa_jax.training.loop import Event
from hwa_jax.training.session import Session
from hwa_jax.training.shared_stores import SharedWindow
from hwa_jax.training.step import TrainState
from hwa_jax.training.weights import Weights, recalibrated

_logger = logging.getLogger(__name__)

# The ends of a segment and its middle.
_POSITIONS = (0.0, 0.5, 1.0)


class HealthWatch:
    """Rows "health" in the log: the fields of `averaging_health.Health`, and "warnings".

    Everything is measured between steps, on the validation split, by programs that the first two pushes compile. What the replicas
    do is measured one step before they are averaged, since that step makes them equal; their spread is in the rows "push".

    Args:
        session: of the training.
        window: of outer weights.
    """

    def __init__(self, session: Session, window: WindowStore | SharedWindow):
        self._session, self._setup, self._window = session, session.setup, window
        self._start = self._cosine = self._inner_loss = None
        self._said = set()
        if self._begins_cycle(session.first):
            self._remember(session.first, session.state)

    def before(self) -> list[Event]:
        """The events before a step: the replicas while they differ."""
        periods = self._setup.periods
        if self._setup.num_replicas == 1 or periods.sync == 1:
            return []
        return [Event("replicas' health", periods.is_push, self._look_at_replicas)]

    def after(self) -> list[Event]:
        """The events after a step; they follow the push."""
        events = [Event("health", self._setup.periods.is_push, self._measure)]
        return [*events, Event("cycle", self._begins_cycle, self._remember)] if self.before() else events

    def _begins_cycle(self, done):
        """Whether a cycle begins after `done` steps that ends in a push."""
        periods = self._setup.periods
        begins = done == 0 or is_synchronization_step(done, periods.sync, periods.sync_start)
        return bool(begins) and periods.is_push(min(done + periods.sync, periods.total))

    def _remember(self, _, state):
        self._start = self._setup.mean_over_replicas(state.params)
        return state

    def _look_at_replicas(self, done, state):
        state = self._session.without_lost(done - 1, state)
        with self._session.clock.activity("evaluation"):
            setup = self._setup
            inner = recalibrated(setup, state.params, state.batch_stats, stacked=True)
            self._inner_loss = np.mean([m["nll"] for m in setup.evaluator.stacked(*inner, setup.validation)])
            # A run that was resumed within a cycle does not know how it began.
            self._cosine = None if self._start is None else float(averaging_health.movement_cosine(state.params, self._start))
            self._start = None
        return state

    def _measure(self, done: int, state: TrainState) -> TrainState:
        jax.block_until_ready(state)
        with self._session.clock.activity("evaluation"):
            health = self._health(done, state)
        found = averaging_health.warnings(health)
        self._session.write(done, "health", {**health._asdict(), "warnings": list(found)})
        for name in found.keys() - self._said:
            _logger.warning("averaging, step %d: %s", done, found[name])
        self._said |= found.keys()
        return state

    def _health(self, done, state):
        setup, split = self._setup, self._setup.validation
        choice = window_choice.choose(setup, self._window, done)
        members = [step for step in self._window.stored_steps if step <= done][-choice.window_size:]
        params, batch_stats = setup.mean_over_replicas((state.params, state.batch_stats))
        latest = recalibrated(setup, params, batch_stats)
        (loss, correct), (latest_loss, latest_correct) = (setup.evaluator.examples(*weights, split) for weights in (choice.weights, latest))
        gaps = loss - latest_loss
        return Health(
            gap=float(gaps.mean()), gap_error=float(gaps.std(ddof=1) / math.sqrt(len(gaps))),
            accuracy_gap=float(correct.mean() - latest_correct.mean()),
            rate_ratio=float(setup.schedule(done - 1) / max(setup.schedule(members[0] - 1), np.finfo(np.float32).tiny)),
            holds_first=members[0] == self._first_push,
            online_gap=None if self._inner_loss is None else float(latest_loss.mean() - self._inner_loss), cosine=self._cosine,
            stale_gap=self._stale_gap(choice.weights.params, batch_stats, loss.mean()), **self._ends(members),
        )

    @functools.cached_property
    def _first_push(self):
        periods = self._setup.periods
        return next(done for done in range(1, periods.total + 1) if periods.is_push(done))

    def _stale_gap(self, params, batch_stats, loss):
        """What it costs to leave the latest weights' running statistics in place."""
        if not jax.tree.leaves(batch_stats):
            return None
        return self._setup.evaluator.one(params, batch_stats, self._setup.validation)["nll"] - float(loss)

    def _ends(self, members):
        """What lies between the oldest and the newest member."""
        if len(members) < 2:
            return {}
        ends = [Weights(*self._window.member(step)) for step in (members[0], members[-1])]
        path = path_metrics(self._setup, *ends, self._setup.validation, _POSITIONS, chunk_size=len(_POSITIONS))
        oldest, middle, newest = path.loss.tolist()
        return {"ends_gap": oldest - newest, "error_barrier": path.error_barrier, "valley": middle - max(oldest, newest)}
