"""Is averaging doing any good here? What is measured at every push, and the plain sentences that follow from it.

Every threshold is a constant below, with where it comes from.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Standard errors of a paired difference beyond which it is not chance. It is asked after every push: at 2, healthy trainings of the
# subjects for setting (configs/averaging_hurts.py) were called worse that were not on the test split.
SIGNIFICANT = 3.0
# The error barrier below which Frankle et al. (2020, section 2) call two networks linearly connected.
CONNECTED = 0.02
# Share of the rate at the window's oldest weights. Our choice: a cosine falls so far within the last half of its way,
# a step of the usual factor 0.1 at once.
RATE_FELL = 0.5
# Nats that statistics which were not recomputed may cost before it is said. Our choice, about a point of accuracy.
STALE = 0.03
# Nats by which the mean of the replicas may be worse than they are one step before. Our choice, likewise.
APART = 0.03


class Health(NamedTuple):
    """What was measured after a push, on images held out of training; BatchNorm recalibrated unless it says otherwise.

    Attributes:
        gap: loss of the averaged (HWA) weights minus that of the latest outer weights, nats; below zero averaging gains.
        gap_error: its standard error, paired over images, nats.
        accuracy_gap: accuracy of the averaged weights minus that of the latest, -1..1.
        ends_gap: loss of the window's oldest member minus that of the newest, nats; None with one member.
        error_barrier: on the segment between these two, 0..1; see `connectivity.barrier`.
        valley: loss half way between them minus that of the worse end, nats; above zero the two lie in different basins.
        rate_ratio: learning rate now by that at the oldest member.
        holds_first: whether the window still holds the first push of the run.
        cosine: between the replicas' movements in this cycle, the mean over pairs; None with one replica, where H is 1, or where the run was
            resumed within the cycle.
        online_gap: loss of the outer weights minus the mean of the replicas' one step before, nats; None likewise.
        stale_gap: loss of the averaged weights with the latest weights' running BatchNorm statistics, as a program has them that swaps
            the weights alone, minus that with recomputed ones, nats; None without BatchNorm.
    """

    gap: float
    gap_error: float
    accuracy_gap: float
    ends_gap: float | None = None
    error_barrier: float | None = None
    valley: float | None = None
    rate_ratio: float = 1.0
    holds_first: bool = False
    cosine: float | None = None
    online_gap: float | None = None
    stale_gap: float | None = None


def is_worse(health: Health) -> bool:
    """Whether the averaged weights are worse than the latest ones, beyond chance.

    Example:
        >>> is_worse(Health(gap=0.02, gap_error=0.005, accuracy_gap=-0.01)), is_worse(Health(0.01, 0.005, -0.01))
        (True, False)
    """
    return health.gap > SIGNIFICANT * health.gap_error


def warnings(health: Health) -> dict[str, str]:
    """What is wrong, each by a short name and as a sentence that says what to change; empty where averaging does no harm.

    Example:
        >>> warnings(Health(gap=0.02, gap_error=0.005, accuracy_gap=-0.01, ends_gap=0.3, holds_first=True))["early"][:70]
        'the average of the window is worse than the latest weights (+0.0200 na'
        >>> warnings(Health(gap=-0.02, gap_error=0.005, accuracy_gap=0.01))
        {}
    """
    found = {}
    if is_worse(health):
        cause, change = _cause(health)
        found[cause] = f"the average of the window is worse than the latest weights ({health.gap:+.4f} nats on held-out images): {change}"
    if health.online_gap is not None and health.online_gap > APART:
        found["apart"] = (f"the mean of the replicas is worse than they are ({health.online_gap:+.4f} nats on held-out images): they drift apart, "
                          "synchronize more often (hwa.sync_period) or lower optimizer.learning_rate")
    if health.stale_gap is not None and health.stale_gap > STALE:
        found["stale"] = (f"with the latest weights' BatchNorm statistics instead of its own the average is worse by {health.stale_gap:.4f} nats: "
                          "recompute them on training images wherever these weights are used, as the files of this run have them")
    return found


def _cause(health):
    """Of an average that is worse: a name, and what to change. The first that fits."""
    if health.rate_ratio < RATE_FELL:
        return "decay", (f"the learning rate has fallen to {health.rate_ratio:.0%} of what it was at the window's oldest weights; average only weights "
                         "of the low rate (hwa.offline_start, or a smaller hwa.window_size), or keep the rate constant (schedule.name)")
    if health.error_barrier is not None and health.valley > 0 and health.error_barrier > CONNECTED:
        return "basins", (f"between the window's ends lies a barrier of {100 * health.error_barrier:.1f} points; shorten hwa.window_size, or lower "
                          "optimizer.learning_rate")
    if health.holds_first:
        return "early", ("the window still holds the first weights, from before the network had settled; start later (hwa.offline_start), or "
                         "train on until they have left it")
    return "long", "the window reaches back to weights that were worse; shorten hwa.window_size, or let it be chosen ('auto')"


@jax.jit
def movement_cosine(stacked: Any, start: Any) -> jax.Array:
    """The mean cosine between the replicas' movements since they were equal, over pairs.

    Args:
        stacked: weights of K replicas, at least 2, leaves [K, ...].
        start: the weights that all of them began with.

    Returns:
        float32 scalar in -1..1; NaN where a replica has not moved. 1: all moved alike, and averaging them changes nothing but
        what a longer step would; 0: they moved independently.

    Example:
        >>> float(movement_cosine({"w": jnp.array([[1.0, 0.0], [0.0, 1.0]])}, {"w": jnp.zeros(2)}))
        0.0
    """
    flat = [
        (leaf - origin).reshape(leaf.shape[0], -1).astype(jnp.float32)
        for leaf, origin in zip(jax.tree.leaves(stacked), jax.tree.leaves(start)) if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    products = sum(movement @ movement.T for movement in flat)
    lengths = jnp.sqrt(jnp.diag(products))
    pairs = list(itertools.combinations(range(len(lengths)), 2))
    return sum(products[i, j] / (lengths[i] * lengths[j]) for i, j in pairs) / len(pairs)
