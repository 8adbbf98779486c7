"""Wall time by activity, summed over restarts."""

import contextlib
import time
from collections.abc import Iterator, Sequence


class Clock:
    """Seconds spent per activity; one activity runs at a time, "training" where none is named.

    Example:
        >>> clock = Clock({"training": 5.0})
        >>> with clock.activity("evaluation"):
        ...     pass
        >>> sorted(clock.seconds())
        ['evaluation', 'training']
    """

    def __init__(self, seconds: dict[str, float] | None = None, *, num_trainings: int = 1):
        """
        Args:
            seconds: what earlier runs of the same training spent.
            num_trainings: how many share the time from now on; what is counted is the part of one.
        """
        self._seconds, self._num_trainings = dict(seconds or {}), num_trainings
        self._current, self._since = "training", time.perf_counter()

    @classmethod
    def shared(cls, clocks: Sequence["Clock"]) -> "Clock":
        """One clock for trainings that go on together; it begins with the mean of what each has spent.

        Example:
            >>> Clock.shared([Clock({"evaluation": 5.0}), Clock({"evaluation": 7.0})]).seconds()["evaluation"]
            6.0
        """
        spent = [clock._seconds for clock in clocks]
        names = {name for seconds in spent for name in seconds}
        means = {name: sum(seconds.get(name, 0.0) for seconds in spent) / len(spent) for name in names}
        return cls(means, num_trainings=len(clocks))

    def skip(self) -> None:
        """The time since the last activity ended counts for nothing."""
        self._since = time.perf_counter()

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
        self._seconds[self._current] = self._seconds.get(self._current, 0.0) + (now - self._since) / self._num_trainings
        self._since = now
        return self._current
