"""SIGTERM and Ctrl-C as a request to stop between two steps, which several processes take together."""

import itertools
import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interrupted(Exception):
    """Work of several trainings was stopped by a signal; the same call continues."""


def finished(results: dict[str, Any] | None) -> dict[str, Any]:
    """The results of a training that ran to its end.

    Raises:
        Interrupted: a signal stopped it.
    """
    if results is None:
        raise Interrupted
    return results


class Interruption:
    """While it is open, SIGTERM and SIGINT set a flag instead of ending the process.

    A second signal of the kind ends it at once. With several processes a signal to one of them is enough: the
    runtime hears SIGTERM itself, and agrees with the others on a call of `requested` that none has made yet.

    Example:
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     interruption.requested()
        True
    """

    # The runtime knows a call by its number, over the life of the process.
    _calls = itertools.count(1)

    def __init__(self):
        self._signal = None
        self._previous = {}

    def requested(self) -> bool:
        """Whether a signal has come; the same on all processes, which ask equally often."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(self._calls))
        return self._signal is not None

    def __enter__(self) -> "Interruption":
        numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        del frame
        self._signal = number
        signal.signal(number, signal.SIG_DFL)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
