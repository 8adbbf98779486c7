"""The lengths of a training in optimizer steps."""

import dataclasses

from ml_collections import ConfigDict

from hwa_jax.errors import UserError
from hwa_jax.training.duration import Duration


@dataclasses.dataclass(frozen=True)
class Periods:
    """The lengths of a training in optimizer steps; K, H and the rest as the configuration says."""

    epoch: int
    total: int
    sync: int
    push: int
    sync_start: int
    offline_start: int
    evaluation: int
    checkpoint: int
    log: int

    @classmethod
    def of(cls, config: ConfigDict, steps_per_epoch: int) -> "Periods":
        """Reads all durations.

        Raises:
            UserError: no steps at all, a period below one step, or pushes where no outer weights exist.
        """
        whole = Duration.parse(config.training.duration, "training.duration")
        if whole.unit == "percent":
            raise UserError(f"training.duration={config.training.duration!r}: percent of what? give steps or epochs")
        total = whole.steps(steps_per_epoch)

        def steps(field, least=1):
            group, name = field.split(".")
            length = Duration.parse(config[group][name], field).steps(steps_per_epoch, total)
            if length < least:
                raise UserError(f"{field}={config[group][name]!r} is {length} steps: must be at least {least}")
            return length

        if total < 1:
            raise UserError(f"training.duration={config.training.duration!r} is {total} steps: must be at least 1")
        sync = steps("hwa.sync_period")
        push = steps("hwa.push_every") if config.hwa.push_every else sync
        if push % sync:
            raise UserError(
                f"hwa.push_every={config.hwa.push_every!r} is {push} steps: must be a multiple of "
                f"hwa.sync_period, {sync} steps, since outer weights exist only there"
            )
        return cls(
            steps_per_epoch, total, sync, push, steps("hwa.sync_start", 0), steps("hwa.offline_start", 0),
            steps("evaluation.every"), steps("checkpoint.every"), steps("logging.every"),
        )

    def is_regular_push(self, done: int) -> bool:
        """Whether outer weights join the window after `done` steps, were training to go on."""
        return done > self.sync_start and (done - self.sync_start) % self.push == 0 and done >= self.offline_start

    def is_push(self, done: int) -> bool:
        """As `is_regular_push`; the last, perhaps partial, cycle is pushed too."""
        return self.is_regular_push(done) or done == self.total


@dataclasses.dataclass(frozen=True)
class CyclePeriods:
    """The lengths of pruning in cycles, in optimizer steps.

    Steps count from the start of the ticket's training, T0 steps; a cycle goes from there to T0 + T, and the next one
    is rewound to T0. Learning-rate schedules span these T0 + T steps; SWA's start is counted within the cycle.
    """

    epoch: int
    ticket: int
    cycle: int
    swa_start: int
    swa_period: int
    checkpoint: int
    log: int

    @classmethod
    def of(cls, config: ConfigDict, steps_per_epoch: int) -> "CyclePeriods":
        """Reads all durations.

        Raises:
            UserError: no steps at all, a period below one step, or a cycle that ends before SWA collects weights.
        """

        def steps(field, least=1, total=None):
            group, name = field.split(".")
            duration = Duration.parse(config[group][name], field)
            if total is None and duration.unit == "percent":
                raise UserError(f"{field}={config[group][name]!r}: percent of what? give steps or epochs")
            length = duration.steps(steps_per_epoch, total)
            if length < least:
                raise UserError(f"{field}={config[group][name]!r} is {length} steps: must be at least {least}")
            return length

        cycle = steps("training.duration")
        periods = cls(
            steps_per_epoch, steps("swamp.ticket_duration", 0), cycle, steps("swamp.swa_start", 0, cycle),
            steps("swamp.swa_period", 1, cycle), steps("checkpoint.every", 1, cycle), steps("logging.every", 1, cycle),
        )
        if config.swamp.swa and periods.swa_start + periods.swa_period > cycle:
            raise UserError(
                f"swamp.swa_start={config.swamp.swa_start!r}, swamp.swa_period={config.swamp.swa_period!r}: a cycle of {cycle} "
                "steps ends before the first weights are averaged; start earlier, or shorten the period"
            )
        return periods

    @property
    def total(self) -> int:
        """Completed steps at the end of a cycle, T0 + T."""
        return self.ticket + self.cycle

    def is_collected(self, done: int) -> bool:
        """Whether the weights after `done` steps join a particle's SWA average."""
        since = done - self.ticket - self.swa_start
        return since > 0 and since % self.swa_period == 0
