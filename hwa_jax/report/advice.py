"""What experiments/advise.py prints: costs of communication, where to begin, what a trial costs, and what decides."""

from collections.abc import Sequence

from hwa_jax.analysis.advice import (
    TRIAL_SEEDS, TUNED_RATES, Choice, Job, fastest, link_table, overheads, starting_hwa, starting_swamp, swamp_seconds, trial_cost,
)
from hwa_jax.analysis.communication import Link, bytes_sent
from hwa_jax.report.tables import format_bytes, format_seconds, markdown_table

_LINKS = """\
Overhead is the time of a synchronization by the time of H steps; training waits for it. A ring and a tree all-reduce are
modelled from bandwidth and latency, the faster one counts. An intermittent link is up and down in turn for so long, for all replicas
alike; a synchronization begins at a random moment, and what was sent before an outage is not sent again. A model, not a measurement."""

_DECIDES = """\
- Before anything: `experiments/compare_hwa.py --config=configs/trial.py`, a small network on a subset, minutes on two CPU cores (docs/trial.md).
- The trial below justifies a pilot on all data if the 95 % interval of "HWA - plain, equal steps" lies above zero and your replicas' machines
  are there anyway, or if that of "HWA - offline window, equal compute" does. In the results these were +1.29 ± 0.89 and -0.99 ± 0.50 points
  (SGD, constant rate, 10,000 images): the first held, the second did not, and offline averaging of one longer training was the better use
  of bought compute.
- The pilot justifies scale if the gain holds at the H above, which this link dictates, on three seeds or more."""

_DECIDES_SPARSE = """\
- SWAMP goes on from a cycle to the next while its validation accuracy is within the budget that you set before pruning, and the average is no worse than
  its particles (docs/sparse.md). N particles pay if the cycle beats IMP with N times the epochs: in the results by +0.32 ± 0.15 points at 89 % pruned."""


def describe(job: Job, link: Link, *, model: str, measured: str, swamp: tuple[int, float] | None = None) -> str:
    """The text of the advice.

    Args:
        job: what is trained.
        link: between any two replicas.
        model: name of the network.
        measured: where the time of a step comes from.
        swamp: number of particles and sparsity; None without SWAMP.
    """
    seconds, algorithm = fastest(job, link)
    parts = [
        f"network                 {model}, {format_bytes(job.payload)} of weights and BatchNorm statistics",
        f"step                    {format_seconds(job.step_seconds)}, {measured}; {job.steps_per_epoch:,} steps an epoch, "
        f"{format_seconds(job.training_seconds)} for {job.num_epochs} epochs of one replica",
        f"synchronization         {_synchronization(job, seconds, algorithm)}",
    ]
    if job.num_replicas > 1:
        parts += ["", "## What communication costs", "", _overheads(job, link), "", _links(job, link), "", _LINKS]
    parts += ["", "## Where to begin", "", _choices(starting_hwa(job, link))]
    if swamp:
        parts += ["", _choices(starting_swamp(*swamp))]
    parts += ["", "## What a trial costs", "", *_costs(job, swamp), "", "## What justifies the next stage", "", _DECIDES]
    if swamp:
        parts.append(_DECIDES_SPARSE)
    return "\n".join(parts)


def _synchronization(job, seconds, algorithm):
    if job.num_replicas == 1:
        return "none: one replica"
    return (f"{job.num_replicas} replicas, the busiest sends {format_bytes(bytes_sent(job.payload, job.num_replicas, algorithm))} in a {algorithm}, "
            f"{format_seconds(seconds)} on your link")


def _overheads(job, link):
    rows = [[name, f"{period:,}", _percent(share)] for name, (period, share) in overheads(job, link).items()]
    return markdown_table(["H", "steps", "overhead on your link"], rows, "lrr")


def _links(job, link):
    rows = [
        [row.name, format_seconds(row.seconds), row.algorithm, *(f"{period:,} ({_epochs(period, job)})" for period in row.periods)]
        for row in link_table(job, link)
    ]
    return markdown_table(["link", "synchronization", "by", "smallest H at 5 %, steps", "at 1 %"], rows, "lrlrr")


def _choices(choices: Sequence[Choice]) -> str:
    return "\n".join(f"- {field} = {value}: {reason}" for field, value, reason in choices)


def _costs(job, swamp):
    cost = trial_cost(job)
    yield (f"Plain training, plain and offline averaging {job.num_replicas} times as long, and HWA, each {job.num_epochs} epochs, {TRIAL_SEEDS} seeds, "
           f"{TUNED_RATES} rates tuned on one more:")
    yield (f"{_hours(cost.one_machine)} on one machine that computes the replicas in turn, "
           f"{_hours(cost.replicas_at_once)} with {job.num_replicas} at once.")
    if swamp:
        num_particles, sparsity = swamp
        yield (f"One run of SWAMP to {sparsity:.1%} with {num_particles} particles: {_hours(swamp_seconds(job, num_particles, sparsity))} one after another, "
               f"{_hours(swamp_seconds(job, 1, sparsity))} all at once; they meet once a cycle.")
    yield "Training alone: without evaluation, compilation and waiting for the link."


def _hours(seconds):
    return f"{seconds / 3600:,.2g} hours" if seconds < 360_000 else f"{seconds / 3600:,.0f} hours"


def _percent(share):
    return f"{100 * share:.3g} %" if share < 10 else f"{100 * share:,.0f} %"


def _epochs(period, job):
    epochs = period / job.steps_per_epoch
    return f"{epochs:.2g} epochs" if epochs < 10 else f"{epochs:,.0f} epochs"
