"""I, the length of the window: as the configuration says, or chosen on the validation split from the stored members.

Choosing costs an average and an evaluation for each candidate, and no training.
"""

import math
from typing import Any, NamedTuple

from hwa_jax import particles
from hwa_jax.storage.window_store import WindowStore
from hwa_jax.training.config import AUTO
from hwa_jax.training.setup import Setup
from hwa_jax.training.shared_stores import SharedWindow
from hwa_jax.training.weights import Weights, recalibrated


class WindowChoice(NamedTuple):
    """The HWA weights and how many members they average.

    Attributes:
        window_size: I, or fewer where the window holds fewer.
        weights: their mean, with BatchNorm statistics recomputed on training images.
        curve: of a choice, {"window_size", "accuracy", "nll"} on the validation split for every candidate; else empty.
    """

    window_size: int
    weights: Weights
    curve: list[dict[str, Any]]

    @property
    def facts(self) -> dict[str, Any]:
        """What results say of a choice; nothing where I was given."""
        return {"window_choice": {"window_size": self.window_size, "split": "validation", "curve": self.curve}} if self.curve else {}


def longest(setup: Setup) -> int:
    """How many members the window may average: I; where it is chosen, `hwa.keep_pushes` or, if that is 0, all of the run."""
    hwa, periods = setup.config.hwa, setup.periods
    if hwa.window_size != AUTO:
        return hwa.window_size
    # The last, partial cycle is pushed as well.
    return hwa.keep_pushes or periods.total // periods.push + 1


def candidates(num_members: int) -> list[int]:
    """Window lengths in steps of about a factor of the square root of 2, the whole window among them.

    Example:
        >>> candidates(1), candidates(20)
        ([1], [1, 2, 3, 4, 6, 8, 11, 16, 20])
    """
    lengths = {round(2 ** (half / 2)) for half in range(2 * math.ceil(math.log2(num_members)) + 1)}
    return sorted({length for length in lengths if length < num_members} | {num_members})


def choose(setup: Setup, window: WindowStore | SharedWindow, done: int) -> WindowChoice:
    """The HWA weights after `done` steps.

    Where `hwa.window_size` is "auto", I is the candidate with the highest validation accuracy, the one with the lower
    negative log-likelihood among equals. A choice on the validation split: its validation accuracy is an optimistic one.

    Args:
        setup: the pieces of the training.
        window: of outer weights, with a member of at most `done` steps.
        done: completed steps.
    """
    members = [step for step in window.stored_steps if step <= done][-longest(setup):]
    if setup.config.hwa.window_size != AUTO:
        return WindowChoice(len(members), _average(setup, window, len(members), done), [])
    curve, best = [], None
    for size in candidates(len(members)):
        weights = _average(setup, window, size, done)
        metrics = setup.evaluator.one(*weights, setup.validation)
        curve.append({"window_size": size, "accuracy": metrics["accuracy"], "nll": metrics["nll"]})
        quality = (metrics["accuracy"], -metrics["nll"])
        if best is None or quality > best[0]:
            best = (quality, size, weights)
    return WindowChoice(best[1], best[2], curve)


def _average(setup, window, size, done):
    return recalibrated(setup, *particles.put(window.mean(size=size, upto=done), setup.replicated))
