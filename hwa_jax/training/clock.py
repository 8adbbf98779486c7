"""Wall time by activity, summed over restarts."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds spent per activity; one activity runs at a time, "training" where none is named.

    Example:
        >>> clock = Clock({"training": 5.0})
        >>> with clock.activity("evaluation"):
        ...     pass
        >>> sorted(clock.seconds())
        ['evaluation', 'training']
    """

    def __init__(self, seconds: dict[str, float] | None = None):
        """
        Args:
            seconds: what earlier runs of the same training spent.
        """
        self._seconds = dict(seconds or {})
        self._current, self._since = "training", time.perf_counter()

    @contextlib.contextmanager
    def activity(self, name: str) -> Iterator[None]:
        """Counts the time inside the block for `name`."""
        outer, self._current = self._switch(), name
        try:
            yield
        finally:
            self._switch()
            self._current = outer

    def seconds(self) -> dict[str, float]:
        """Seconds per activity up to now, earlier runs included."""
        self._switch()
        return dict(self._seconds)

    def _switch(self):
        now = time.perf_counter()
        self._seconds[self._current] = self._seconds.get(self._current, 0.0) + now - self._since
        self._since = now
        return self._current
