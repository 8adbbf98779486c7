"""A training between its start, or resume, and its end: state, checkpoints, log, clock."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hwa_jax.errors import Diverged, UserError
from hwa_jax.storage.json_lines import read_json_lines
from hwa_jax.training import loop, processes, replica_count
from hwa_jax.training.clock import Clock
from hwa_jax.training.loop import Event
from hwa_jax.training.metrics import MetricsWriter, progress_bar
from hwa_jax.training.setup import Setup
from hwa_jax.training.shared_stores import SharedCheckpoints
from hwa_jax.training.step import NEVER, TrainState
from hwa_jax.training.workdir import Workdir

_logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """A stretch of a run with a start of its own: a cycle of pruning, say.

    Attributes:
        checkpoints: the directory of its checkpoints, within the work directory.
        start: () -> the TrainState it starts from.
        total: completed steps at its end.
        number: folded into the keys of batch order and augmentation; None for a run of one part.
        offset: what is added to its steps in the log.
        extra: further arguments of the optimizer's update.
        facts: what every row of its log says.
    """

    checkpoints: str
    start: Callable[[], TrainState]
    total: int
    number: int | None = None
    offset: int = 0
    extra: dict[str, Any] = {}
    facts: dict[str, Any] = {}


class Session:
    """What every algorithm needs around its steps; a context manager.

    Args:
        setup: the pieces.
        workdir: open; its newest whole checkpoint is where the session starts.
        part: which part of a run it is; None: the whole run.

    Attributes:
        part: the one it is.
        state: the stacked TrainState at the start.
        first: completed steps of the part at the start.
        promised: steps of the window's members when the checkpoint was made.
        clock: seconds by activity, restarts included.

    Raises:
        UserError: the run has already done more steps than the configuration asks for.
    """

    def __init__(self, setup: Setup, workdir: Workdir, part: Part | None = None):
        self.setup = setup
        self.part = part = part or Part("checkpoints", setup.initial_state, setup.periods.total)
        self._checkpoints = SharedCheckpoints(workdir.path / part.checkpoints, keep=setup.config.checkpoint.keep)
        self.state, self.first, metadata = self._start()
        self.promised = metadata["window"]
        self.clock = Clock(metadata["seconds"])
        self._writer = processes.on_leader(lambda: self._open_log(workdir))
        if metadata["seconds"]:
            _logger.info("resuming from the checkpoint of step %d", self.first)
        self._log_changes(metadata)
        self._bar = progress_bar(part.total, self.first, str(setup.config.model.name), shown=processes.is_leader())
        self._batch_key, self._noise_key = setup.keys(part.number)
        self._compiled = {}
        with self.clock.activity("compilation"):
            self._indices = setup.epoch_indices(self.state.step, self._batch_key)
        self._splits = setup.splits(self.first, self._batch_key)

    def _open_log(self, workdir):
        # A damaged log is refused before anything is written.
        read_json_lines(workdir.path / "metrics.jsonl")
        workdir.record()
        return MetricsWriter(workdir.path, first=self.part.offset + self.first, tensorboard=self.setup.config.logging.tensorboard)

    def _start(self):
        like, num_replicas = jax.eval_shape(self.part.start), self.setup.num_replicas
        # What an earlier version stored does not say how many replicas: as many as now.
        restored = self._checkpoints.restore(
            like=lambda metadata: replica_count.stored_like(like, metadata.get("num_replicas", num_replicas))
        )
        if restored is None:
            state = self.part.start()
            return state, int(state.step), {"seconds": {}, "window": []}
        if restored.step > self.part.total:
            raise UserError(
                f"training.duration={self.setup.config.training.duration!r} is {self.part.total} steps, "
                f"but the run has already done {restored.step}: give a longer one"
            )
        changes = self._changes(restored.metadata)
        if "num_replicas" in changes:
            self.setup.require_same_epochs(changes["num_replicas"])
            restored = restored._replace(tree=replica_count.restarted(restored.tree, num_replicas, restored.metadata["replica_weights"]))
        if changes:
            # At once, so that configuration and newest checkpoint agree.
            self._checkpoints.save(restored.step, restored.tree, self._metadata(restored.metadata["seconds"], restored.metadata["window"]))
        # A resume from an older checkpoint must not leave a newer one to be found next time.
        self._checkpoints.truncate(after=restored.step)
        return self.setup.place(restored.tree), restored.step, restored.metadata

    def _metadata(self, seconds, window):
        return {"seconds": seconds, "window": list(window), **self._replicas}

    @property
    def _replicas(self):
        """What a resumption may change of them, and the log then tells; None is the default."""
        hwa = self.setup.config.get("hwa", {})
        lists = {name: list(hwa.get(name, ())) or None for name in ("replica_weights", "replica_batch_sizes")}
        return {"num_replicas": self.setup.num_replicas, **lists}

    def _changes(self, metadata):
        """Name -> the value before, of those that are not as they were; what an earlier version did not store has not changed."""
        return {name: metadata[name] for name, now in self._replicas.items() if name in metadata and metadata[name] != now}

    def _log_changes(self, metadata):
        changes, now = self._changes(metadata), self._replicas
        for name, before in changes.items():
            if name == "num_replicas":
                _logger.warning(
                    "%d replicas instead of %d: all of them restart from the outer weights of step %d, with the mean of the optimizers' states",
                    now[name], before, self.first,
                )
            else:
                _logger.warning("hwa.%s=%s instead of %s from step %d on", name, tuple(now[name] or ()), tuple(before or ()), self.first)
        if changes:
            values = {name: now[name] for name in changes} | {f"{name}_before": before for name, before in changes.items()}
            self.write(self.first, "restart" if "num_replicas" in changes else "change", values)

    def run(
        self, *, before: Sequence[Event] = (), after: Sequence[Event] = (), should_stop: Callable[[], bool]
    ) -> tuple[TrainState, bool]:
        """`loop.run` from where the session starts to the end of its part."""
        epoch = Event("epoch", self.begins_epoch, self.begin_epoch)
        return loop.run(
            self.state, self.step, self.steps, before=[epoch, *before], after=after,
            steps_per_call=self.setup.steps_per_call, should_stop=should_stop,
        )

    @property
    def steps(self) -> range:
        """The steps that `run` makes, each as the number of those before it."""
        return range(self.first, self.part.total)

    @property
    def inputs(self) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        """What a step takes besides state and images: indices of the epoch's batches, key, arguments of the update."""
        return self._indices, self._noise_key, self.part.extra

    def step(self, state: TrainState, count: int) -> TrainState:
        """Optimizer steps of all replicas within an epoch; dispatches and returns. `state` is donated."""
        indices, key, extra = self.inputs
        arguments = (state, indices, next(self._splits), key, extra)
        if count not in self._compiled:
            with self.clock.activity("compilation"):
                self._compiled[count] = self.setup.step.lower(*arguments, count=count).compile()
        self.show_progress(count)
        return self._compiled[count](*arguments)

    def show_progress(self, count: int) -> None:
        """Moves the bar by so many steps."""
        self._bar.update(count)

    def begins_epoch(self, done: int) -> bool:
        """Whether the step that makes it `done` is the first of an epoch."""
        return (done - 1) % self.setup.periods.epoch == 0

    def begin_epoch(self, done: int, state: TrainState) -> TrainState:
        """Draws the batches of the epoch that begins."""
        del done
        self._indices = self.setup.epoch_indices(state.step, self._batch_key)
        return state

    def write(self, done: int, kind: str, values: dict[str, Any]) -> None:
        """Adds a row to the log."""
        if self._writer is None:
            return
        step = self.part.offset + done
        self._writer.write({"step": step, "epoch": step / self.setup.periods.epoch, "kind": kind, **self.part.facts, **values})

    def log(self, done: int, state: TrainState) -> TrainState:
        """Writes the training loss and accuracy since the last log, and starts their sums again."""
        state = self.without_lost(done, state)
        progress = processes.to_host(state.progress)
        loss = float(np.mean(progress.loss / progress.steps))
        self.write(done, "train", {
            "loss": loss,
            "accuracy": float(np.mean(progress.correct / (progress.steps * self.setup.config.training.batch_size))),
            "learning_rate": float(self.setup.schedule(done - 1)),
        })
        self._bar.set_postfix(loss=f"{loss:.3f}")
        return state._replace(progress=self.setup.zero_progress())

    def without_lost(self, done: int, state: TrainState) -> TrainState:
        """Stops a diverged training before anything of it is stored; or restarts its lost replicas, where the configuration says so.

        Raises:
            Diverged: the loss or gradient of a replica was not finite, or that of all of them; names replica and step.
        """
        first = processes.to_host(state.progress.first_non_finite)
        lost = np.flatnonzero(first != NEVER)
        if not lost.size:
            return state
        if lost.size == first.size or not self.setup.drops_lost:
            raise Diverged(
                f"loss or gradient of replica {int(first.argmin())} is not finite at step {int(first.min())}: lower "
                f"optimizer.learning_rate={self.setup.config.optimizer.learning_rate}; "
                f"checkpoints kept: {self._checkpoints.steps or 'none'}"
            )

        for replica in lost.tolist():
            _logger.warning(
                "replica %d: loss or gradient is not finite at step %d: dropped, and restarted from the mean of the others at step %d",
                replica, first[replica], done,
            )
            self.write(done, "drop", {"replica": replica, "first_non_finite": int(first[replica])})
        return self.setup.restart_lost(state)

    def checkpoint(self, done: int, state: TrainState, window: Sequence[int] = ()) -> TrainState:
        """Stores the state, and which steps the window holds; durable when it returns."""
        state = self.without_lost(done, state)
        with self.clock.activity("checkpoint"):
            self._checkpoints.save(done, state, self._metadata(self.clock.seconds(), window))
        return state

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_) -> None:
        self._splits.close()
        self._bar.close()
        if self._writer is not None:
            self._writer.close()
