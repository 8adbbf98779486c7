r"""What averaging K replicas costs: bytes, seconds, and the period that keeps them below a given share.

An all-reduce of S bytes over K replicas, each link with latency α (seconds) and bandwidth B (bytes per second):

            steps                          the busiest replica sends    seconds
    ring    2 (K - 1), of S / K bytes      2 (K - 1) / K · S            2 (K - 1) (α + S / (K B))
    tree    2 ⌈log2 K⌉, of S bytes         ⌈log2 K⌉ · S                 2 ⌈log2 K⌉ (α + S / B)

The tree is binomial, up to one replica and down again. The ring sends fewer bytes, the tree waits fewer times.
Training waits for the average, so with H steps of s seconds between two of them the overhead is t / (H s).

References:
    Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in MPICH, 2005.
"""

import math
from typing import NamedTuple

from hwa_jax.errors import UserError

ALGORITHMS = ("ring", "tree")


class Link(NamedTuple):
    """A connection between replicas.

    Attributes:
        bandwidth: bytes per second in each direction; infinite where bytes cost nothing.
        latency: seconds before the first byte arrives; between CPU hosts the round trip that ping shows, since Gloo's
            receiver first says that it is ready (measured: benchmarks/communication_namespaces.py).
    """

    bandwidth: float
    latency: float = 0.0


def bytes_sent(payload: int, num_replicas: int, algorithm: str = "ring") -> float:
    """Bytes that the busiest replica sends for one synchronization; in a ring all are equally busy.

    Args:
        payload: S, bytes of what is averaged; of a run, `hwa.communication(...)["bytes_per_synchronization"]`.
        num_replicas: K.
        algorithm: "ring" or "tree".

    Raises:
        UserError: an argument out of range; names it.

    Example:
        >>> bytes_sent(1_000_000, 4), bytes_sent(1_000_000, 4, "tree"), bytes_sent(1_000_000, 1)
        (1500000.0, 2000000.0, 0.0)
    """
    _check(algorithm, payload=payload, num_replicas=num_replicas)
    return 2 * (num_replicas - 1) * payload / num_replicas if algorithm == "ring" else float(_depth(num_replicas) * payload)


def synchronization_seconds(payload: int, num_replicas: int, link: Link, algorithm: str = "ring") -> float:
    """Seconds that one synchronization takes, by the model above.

    Args:
        payload, num_replicas, algorithm: as `bytes_sent`.
        link: between any two replicas.

    Raises:
        UserError: an argument out of range; names it.

    Example:
        >>> synchronization_seconds(1_000_000, 4, Link(bandwidth=1e6, latency=0.25))  # 6 · (0.25 + 0.25)
        3.0
        >>> synchronization_seconds(1_000_000, 4, Link(bandwidth=1e6, latency=0.25), "tree")  # 4 · (0.25 + 1)
        5.0
    """
    _check(algorithm, payload=payload, num_replicas=num_replicas, bandwidth=link.bandwidth, latency=link.latency)
    if algorithm == "ring":
        return 2 * (num_replicas - 1) * (link.latency + payload / num_replicas / link.bandwidth)
    return 2 * _depth(num_replicas) * (link.latency + payload / link.bandwidth)


def interrupted_seconds(sync_seconds: float, up_seconds: float, down_seconds: float) -> float:
    r"""Mean seconds until a synchronization has ended over a link that comes and goes.

    The link is up for U seconds and down for D in turn, for all replicas alike; a synchronization that takes t seconds over a link that
    is always up begins at a random moment, and what was sent before an outage is not sent again. It begins while the link is
    up with probability U / (U + D) and then meets t / U outages in the mean; otherwise it waits D / 2 in the mean
    and meets ⌈t / U⌉ - 1 more:

        U / (U + D) · (t + D t / U)  +  D / (U + D) · (D / 2 + t + D (⌈t / U⌉ - 1))

    Replicas that go on training while they wait, or that choose the moment, wait less.

    Args:
        sync_seconds: t; at 0 there is nothing to send, and no waiting.
        up_seconds, down_seconds: U and D.

    Raises:
        UserError: an argument out of range; names it.

    Example:
        >>> interrupted_seconds(1.0, up_seconds=10.0, down_seconds=10.0)  # 0.5 · (1 + 1) + 0.5 · (5 + 1)
        4.0
        >>> interrupted_seconds(1.0, up_seconds=10.0, down_seconds=0.0), interrupted_seconds(0.0, 10.0, 10.0)
        (1.0, 0.0)
    """
    _check(sync_seconds=sync_seconds, up_seconds=up_seconds, down_seconds=down_seconds)
    if not sync_seconds:
        return 0.0
    up_share = up_seconds / (up_seconds + down_seconds)
    begun_up = sync_seconds * (1 + down_seconds / up_seconds)
    begun_down = down_seconds / 2 + sync_seconds + down_seconds * (math.ceil(sync_seconds / up_seconds) - 1)
    return up_share * begun_up + (1 - up_share) * begun_down


def overhead(sync_seconds: float, step_seconds: float, sync_period: int) -> float:
    """Time spent synchronizing per time spent training: t / (H s); 0.01 is 1 %.

    Args:
        sync_seconds: t, of one synchronization.
        step_seconds: s, of one optimizer step.
        sync_period: H, in steps.

    Raises:
        UserError: an argument out of range; names it.

    Example:
        >>> overhead(2.0, 0.5, 100)
        0.04
    """
    _check(sync_seconds=sync_seconds, step_seconds=step_seconds, sync_period=sync_period)
    return sync_seconds / (sync_period * step_seconds)


def smallest_period(sync_seconds: float, step_seconds: float, limit: float) -> int:
    """The smallest H, in steps, whose overhead is at most `limit`.

    Args:
        sync_seconds, step_seconds: as `overhead`.
        limit: above 0; 0.01 is 1 %.

    Raises:
        UserError: an argument out of range; names it.

    Example:
        >>> smallest_period(2.0, 0.5, 0.01), smallest_period(0.0, 0.5, 0.01)
        (400, 1)
    """
    _check(sync_seconds=sync_seconds, step_seconds=step_seconds, limit=limit)
    period = max(1, math.ceil(sync_seconds / (limit * step_seconds)))
    # The quotient is rounded: one less may do, or one more be needed.
    while period > 1 and overhead(sync_seconds, step_seconds, period - 1) <= limit:
        period -= 1
    while overhead(sync_seconds, step_seconds, period) > limit:
        period += 1
    return period


def _depth(num_replicas):
    """⌈log2 K⌉, in whole numbers."""
    return (num_replicas - 1).bit_length()


_MAY_BE_ZERO = ("payload", "latency", "sync_seconds", "down_seconds")


def _check(algorithm=ALGORITHMS[0], **values):
    if algorithm not in ALGORITHMS:
        raise UserError(f"algorithm={algorithm!r}: give one of {', '.join(ALGORITHMS)}")
    for name, value in values.items():
        if name in ("num_replicas", "sync_period") and not (type(value) is int and value >= 1):
            raise UserError(f"{name}={value}: must be a whole number of at least 1")
        if name != "bandwidth" and not math.isfinite(value):
            raise UserError(f"{name}={value}: must be a finite number")
        if not (value >= 0 if name in _MAY_BE_ZERO else value > 0):
            raise UserError(f"{name}={value}: must be {'at least' if name in _MAY_BE_ZERO else 'above'} 0")
