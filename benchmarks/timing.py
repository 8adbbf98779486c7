"""Comparing two programs in one process: warm-up, alternating turns, medians, memory, and the machine's state."""

import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

# A turn lasts at least this long, so that what the other side left in the caches does not count.
TURN_SECONDS = 0.2

# Between turns: threads of the other side that still spin for work go to sleep.
PAUSE_SECONDS = 0.02

# Makes so many calls, and returns when all of them are done.
Side = Callable[[int], Any]


class NotRun(Exception):
    """Why something was not measured, in a few words."""


def reason(error: Exception) -> str:
    """Why something was not measured, in one line.

    Example:
        >>> reason(NotRun("too slow")), reason(ValueError("first line\\nsecond line"))
        ('too slow', 'ValueError: first line')
    """
    line = next(iter(str(error).splitlines()), "")[:200]
    return line if isinstance(error, NotRun) else f"{type(error).__name__}: {line}"


def repeated(call: Callable[[], Any]) -> Side:
    """The side of a call that returns when it is done.

    Example:
        >>> repeated(lambda: print("call"))(2)
        call
        call
    """

    def side(calls):
        for _ in range(calls):
            call()

    return side


def compare(ours: Side, other: Side, *, repeats: int, limit: float, weight: float = 1.0) -> dict[str, float]:
    """Seconds per call of ours over `weight` times the other's, turn against turn.

    Every round has a turn of each side and gives one ratio, so that a drift of the machine meets both.

    Args:
        ours, other: the first call of a side may compile, and is not counted.
        repeats: number of rounds; fewer where `limit` is over, at least one.
        limit: seconds.
        weight: how many calls of the other do the work of one of ours.

    Returns:
        As `summary`; other_seconds are those of `weight` calls.

    Raises:
        NotRun: one call takes longer than `limit`.

    Example:
        >>> work = repeated(lambda: time.sleep(0.01))
        >>> compare(work, work, repeats=2, limit=60.0)["rounds"]
        2
    """
    sides = [(side, _calls_per_turn(side, limit)) for side in (ours, other)]
    rounds, start = [], time.perf_counter()
    while not rounds or (len(rounds) < repeats and time.perf_counter() - start < limit):
        rounds.append([_turn(*side) for side in sides])
    return summary([first for first, _ in rounds], [weight * second for _, second in rounds])


def summary(ours: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Ratios of seconds that were taken in pairs.

    Returns:
        ratio, low, high: median, least and greatest over the rounds; ours_seconds, other_seconds: medians;
        rounds: how many.

    Example:
        >>> [summary([1.0, 2.0, 9.0], [2.0, 2.0, 2.0])[key] for key in ("ratio", "low", "high", "other_seconds")]
        [1.0, 0.5, 4.5, 2.0]
    """
    ratios = [first / second for first, second in zip(ours, other, strict=True)]
    return {
        "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
        "ours_seconds": statistics.median(ours), "other_seconds": statistics.median(other), "rounds": len(ratios),
    }


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_extra_bytes(call: Callable[[], Any]) -> int | None:
    """How far the resident memory of this process rises above its level while a call runs; None where Linux does not say.

    Memory that the process already holds free counts for nothing.
    """
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present level
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    call()
    return max(0, _status_bytes("VmHWM") - before)


def busy_cores(duration: float = 1.0) -> float | None:
    """How many cores were busy during `duration` seconds of sleep, with whatever else runs; None where Linux does not say."""
    try:
        before = _busy_seconds()
        time.sleep(duration)
        return round((_busy_seconds() - before) / duration, 2)
    except OSError:
        return None


def _calls_per_turn(side, limit):
    side(1)
    taken = seconds(lambda: side(1))
    if taken > limit:
        raise NotRun(f"one call took {taken:.0f} s, over {limit:.0f} s")
    return math.ceil(TURN_SECONDS / taken)


def _turn(side, calls):
    time.sleep(PAUSE_SECONDS)
    return seconds(lambda: side(calls)) / calls


def _status_bytes(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def _busy_seconds():
    user, nice, system, idle, wait, *others = map(int, pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")
