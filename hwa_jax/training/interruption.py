"""SIGTERM and Ctrl-C as a request to stop between two steps."""

import signal
from typing import Any


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

    A second signal of the kind ends it at once.

    Example:
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     interruption.requested()
        True
    """

    def __init__(self):
        self._signal = None
        self._previous = {}

    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        del frame
        self._signal = number
        signal.signal(number, signal.SIG_DFL)
