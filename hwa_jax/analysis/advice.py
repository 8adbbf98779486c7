"""What to set on day one, from what is to be trained and the network between its replicas.

Every starting value has a reason, from the committed results where they speak of it (results/hwa_fashion_mnist and
results/swamp_fashion_mnist, small networks on small images: a starting point, not a promise), otherwise from the papers.
"""

import math
from typing import NamedTuple

from hwa_jax.analysis.communication import (
    ALGORITHMS, Link, interrupted_seconds, overhead, smallest_period, synchronization_seconds,
)

LIMITS = (0.05, 0.01)

# The longest period whose accuracy was measured, in epochs.
LONGEST_PERIOD = 5
# In the results the window held the last 8 of 20 pushes, one an epoch.
WINDOW_SHARE = 0.4
# Outages of one kind each: a shaky link, a mobile one, and one that is up for an hour a day. (up, down), seconds.
OUTAGES = ((600.0, 60.0), (60.0, 60.0), (3600.0, 23 * 3600.0))
TRIAL_SEEDS = 3
TUNED_RATES = 3


class Job(NamedTuple):
    """What is to be trained.

    Attributes:
        payload: bytes of one set of weights and BatchNorm statistics.
        step_seconds: of one optimizer step of one replica.
        steps_per_epoch: of one replica.
        num_epochs: of one training.
        num_replicas: K.
    """

    payload: int
    step_seconds: float
    steps_per_epoch: int
    num_epochs: int
    num_replicas: int

    @property
    def training_seconds(self) -> float:
        """Of one replica, without synchronizations."""
        return self.step_seconds * self.steps_per_epoch * self.num_epochs


class Choice(NamedTuple):
    """A field of the configuration, the value to begin with, and why."""

    field: str
    value: str
    reason: str


class LinkRow(NamedTuple):
    """A link, how long one synchronization takes on it, by which all-reduce, and the smallest H under each of `LIMITS`."""

    name: str
    seconds: float
    algorithm: str
    periods: tuple[int, ...]


def fastest(job: Job, link: Link) -> tuple[float, str]:
    """Seconds of one synchronization by the faster all-reduce, and its name.

    Example:
        >>> fastest(Job(1_000_000, 0.5, 100, 20, 4), Link(bandwidth=1e6, latency=0.25))
        (3.0, 'ring')
    """
    return min((synchronization_seconds(job.payload, job.num_replicas, link, name), name) for name in ALGORITHMS)


def overheads(job: Job, link: Link) -> dict[str, tuple[int, float]]:
    """Name -> (H in steps, overhead) for H of 1, 10 and 100 steps and an epoch.

    Example:
        >>> overheads(Job(1_000_000, 0.5, 60, 20, 4), Link(bandwidth=1e6, latency=0.25))["1 epoch"]
        (60, 0.1)
    """
    seconds, _ = fastest(job, link)
    periods = {"1 step": 1, "10 steps": 10, "100 steps": 100, "1 epoch": job.steps_per_epoch}
    return {name: (period, overhead(seconds, job.step_seconds, period)) for name, period in periods.items()}


def link_table(job: Job, link: Link) -> list[LinkRow]:
    """The smallest periods on the link itself, from 1 Gbit/s down to 1 Mbit/s at its latency, and where it comes and goes.

    Intermittent links are those of `OUTAGES` at the bandwidth of the link, by `interrupted_seconds`.

    Example:
        >>> rows = link_table(Job(1_000_000, 0.5, 60, 20, 4), Link(bandwidth=1e6, latency=0.25))
        >>> rows[0]
        LinkRow(name='yours', seconds=3.0, algorithm='ring', periods=(120, 600))
        >>> [row.name for row in rows][-3:]
        ['yours, 10 min up, 1 min down', 'yours, 1 min up, 1 min down', 'yours, 1 h up, 23 h down']
    """
    links = {"yours": link} | {f"{mbit:,} Mbit/s": link._replace(bandwidth=mbit * 125e3) for mbit in (1000, 100, 10, 1)}
    found = {name: fastest(job, one) for name, one in links.items()}
    seconds, algorithm = found["yours"]
    for up, down in OUTAGES:
        name = f"yours, {_hours_or_minutes(up)} up, {_hours_or_minutes(down)} down"
        found[name] = (interrupted_seconds(seconds, up, down), algorithm)
    return [
        LinkRow(name, seconds, algorithm, tuple(smallest_period(seconds, job.step_seconds, limit) for limit in LIMITS))
        for name, (seconds, algorithm) in found.items()
    ]


def starting_hwa(job: Job, link: Link) -> list[Choice]:
    """K, H, I and what belongs to them, for a first run of HWA on this link."""
    period, why = _period(job, fastest(job, link)[0])
    push = period * max(1, round(job.steps_per_epoch / period))
    pushes = max(1, job.steps_per_epoch * job.num_epochs // push)
    window = max(1, round(WINDOW_SHARE * pushes))
    return [
        Choice("hwa.num_replicas", str(job.num_replicas), _replicas(job.num_replicas)),
        Choice("hwa.sync_period", f"{period} steps", why),
        Choice("hwa.push_every", f"{push} steps", "the multiple of H nearest to an epoch: I counts pushes, and the results pushed once an epoch"),
        Choice("hwa.window_size", str(window), f"the last {WINDOW_SHARE:.0%} of {pushes} pushes, as in the results (8 of 20); 'auto' chooses I "
               "on the validation split from the stored window, which costs no training"),
        Choice("hwa.offline_start", "0 steps", "a window this long has left the start behind before the end of training"),
        Choice("schedule.name", "constant", "averaging does what a decaying rate does: SGD gained +1.29 ± 0.89 points over plain at a constant rate, "
               "under a cosine -0.49 ± 0.70 (equal steps)"),
    ]


def starting_swamp(num_particles: int, sparsity: float) -> list[Choice]:
    """N, sparsity and what belongs to them, for a first run of SWAMP.

    Args:
        num_particles: N that is wanted, at least 1.
        sparsity: share of the weights to prune in the end, above 0 and below 1.

    Example:
        >>> [choice.value for choice in starting_swamp(4, 0.9)]
        ['4', '0.2', '0.9', '1 epoch', 'when_safe']
    """
    return [
        Choice("swamp.num_particles", str(num_particles), "each costs a whole training per cycle; 2 to 4 is our range: 2 with SWA were as good "
               "as 8 without (+0.07 ± 0.11 points, mean over all levels)"),
        Choice("swamp.fraction", "0.2", f"small steps keep more, our choice: {num_cycles(sparsity)} cycles to {sparsity:.1%}; 0.36 is two steps "
               "in one, at half the cost"),
        Choice("swamp.target_sparsity", f"{sparsity:g}", _sparsity(sparsity)),
        Choice("swamp.ticket_duration", "1 epoch", "from too early a ticket the particles end in different basins; the results used 1 epoch"),
        Choice("swamp.averaging", "when_safe", "goes on with the best particle wherever the average is worse, as it was in the dense cycle"),
    ]


def num_cycles(sparsity: float, fraction: float = 0.2) -> int:
    """Cycles, the dense one included, until the sparsity is reached when each but the last prunes `fraction` of what remains.

    Example: a fifth of the weights goes in each of the prunings; 0.8 to the 11th power is 0.086.
        >>> num_cycles(0.9), num_cycles(0.2)
        (12, 2)
    """
    # A hair's breadth of rounding must not add a cycle.
    return 1 + math.ceil(math.log(1 - sparsity) / math.log(1 - fraction) - 1e-9)


class Cost(NamedTuple):
    """Seconds of a trial: of all replicas one after another, and with K machines at once."""

    one_machine: float
    replicas_at_once: float


def trial_cost(job: Job) -> Cost:
    """Of a comparison of plain, plain and offline averaging K times as long, and HWA: tuning on one seed, and then `TRIAL_SEEDS`.

    With t the time of one training, one seed of the comparison takes 1 + K + K of them, and a point of tuning 1 + K;
    K machines run HWA's replicas at once, so that each takes one t.

    Example: t is 600 seconds; 3 · (1 + 2 + 2) + 3 · (1 + 2) = 24, and 3 · (1 + 2 + 1) + 3 · (1 + 1) = 18.
        >>> trial_cost(Job(1_000_000, 0.5, 60, 20, 2))
        Cost(one_machine=14400.0, replicas_at_once=10800.0)
    """
    replicas = job.num_replicas
    together = TRIAL_SEEDS * (1 + 2 * replicas) + TUNED_RATES * (1 + replicas)
    at_once = TRIAL_SEEDS * (2 + replicas) + TUNED_RATES * 2
    return Cost(together * job.training_seconds, at_once * job.training_seconds)


def swamp_seconds(job: Job, num_particles: int, sparsity: float) -> float:
    """Of one run of SWAMP, all particles one after another; every cycle trains N for as long as one training.

    Example: 12 cycles of 2 particles of 600 seconds.
        >>> swamp_seconds(Job(1_000_000, 0.5, 60, 20, 1), 2, 0.9)
        14400.0
    """
    return num_cycles(sparsity) * num_particles * job.training_seconds


def _replicas(num_replicas):
    if num_replicas == 1:
        return "one replica is offline averaging alone: no communication, and at equal compute it was the better one with 10,000 images"
    beyond = "" if num_replicas == 2 else "; the sweeps up to K = 4 are at equal steps alone, so run K = 2 beside it"
    return ("each replica costs a whole training: with K = 2 and SGD +1.29 ± 0.89 points over plain at equal steps, +0.14 ± 0.43 at equal "
            f"compute{beyond}")


def _period(job, seconds):
    """H in steps, and the reason."""
    if job.num_replicas == 1:
        return job.steps_per_epoch, "one replica synchronizes with nobody; one push an epoch"
    five, one = (smallest_period(seconds, job.step_seconds, limit) for limit in LIMITS)
    longest = LONGEST_PERIOD * job.steps_per_epoch
    measured = ("shorter was better in the results: H = 1 step +1.94 ± 1.02 points over plain, 10 steps +1.70 ± 0.91, one epoch (100 steps) "
                "+1.29 ± 0.89, 5 epochs +1.16 ± 0.72")
    if one <= longest:
        return min(_rounded_up(one), longest), f"the smallest that costs at most 1 % on this link; {measured}"
    if five <= longest:
        return min(_rounded_up(five), longest), ("5 epochs, the longest that was measured, cost more than 1 %: the smallest that costs at most "
                                                 f"5 %; {measured}")
    share = overhead(seconds, job.step_seconds, longest)
    return longest, f"5 epochs, the longest that was measured, and yet it costs {share:.0%} on this link: nothing longer was tried; {measured}"


def _rounded_up(period):
    """Up to two digits that are not zero."""
    unit = 10 ** max(0, len(str(period)) - 2)
    return -(-period // unit) * unit


def _sparsity(sparsity):
    if sparsity < 0.5:
        return ("little is gained by averaging here: in the dense network SWAMP was worse than IMP by 1.76 ± 1.18 points; one particle (IMP) "
                "is the cheaper start")
    return ("prune stepwise with a check at each step; at 89 % pruned SWAMP beat IMP with the same compute by +0.32 ± 0.15 points, while the difference "
            "to plain IMP, at a quarter of it, was +0.27 ± 0.28")


def _hours_or_minutes(seconds):
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"
