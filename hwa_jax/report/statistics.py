"""Means over seeds with Student confidence intervals, and paired differences."""

import dataclasses
import math
from collections.abc import Hashable, Iterable, Mapping

import numpy as np
from scipy.special import stdtrit


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and the half width of its confidence interval, in the unit of the values.

    Attributes:
        mean: arithmetic mean of the ``n`` values.
        half_width: the interval is ``mean - half_width`` to ``mean + half_width``;
            nan when ``n`` is 1, because one value says nothing of the spread.
        n: number of values, or of pairs.
    """

    mean: float
    half_width: float
    n: int

    @property
    def low(self) -> float:
        """Lower end of the interval; nan when n is 1."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval; nan when n is 1."""
        return self.mean + self.half_width


def mean_ci(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean of independent values and its two-sided confidence interval.

    half_width = t(n - 1, (1 + confidence) / 2) * s / sqrt(n), with s the sample standard
    deviation (divisor n - 1) and t the quantile of Student's distribution.

    Args:
        values: n >= 1 numbers of any real dtype; the arithmetic is float64.
        confidence: coverage, strictly between 0 and 1.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).

    References:
        Student, "The probable error of a mean", Biometrika 6, 1908.

    Example:
        >>> interval = mean_ci([1.0, 2.0, 3.0])
        >>> interval.mean, round(interval.half_width, 4), interval.n
        (2.0, 2.4841, 3)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie strictly between 0 and 1")
    numbers = np.asarray(list(values), dtype=np.float64)
    n = numbers.size
    if n == 0:
        raise ValueError("values is empty: a mean needs at least one value")
    mean = float(numbers.mean())
    if n == 1:
        return Interval(mean, math.nan, 1)
    quantile = stdtrit(n - 1, (1 + confidence) / 2)
    return Interval(mean, float(quantile * numbers.std(ddof=1) / math.sqrt(n)), n)


def paired_difference(
    a: Mapping[Hashable, float], b: Mapping[Hashable, float], confidence: float = 0.95
) -> Interval:
    """Mean of a - b over the seeds that both have, with its confidence interval.

    Pairing removes what a seed does to both sides alike (initial weights, data split), so
    the interval can be much narrower than those of a and b would suggest.

    Args:
        a: value of each seed.
        b: value of each seed to compare with.
        confidence: coverage, strictly between 0 and 1.

    Raises:
        ValueError: a and b have no seed in common.

    Example:
        >>> paired_difference({0: 0.92, 1: 0.93, 7: 0.1}, {0: 0.90, 1: 0.91}).n
        2
    """
    seeds = [seed for seed in a if seed in b]
    if not seeds:
        raise ValueError(
            f"no seed in common: a has {sorted(map(str, a))}, b has {sorted(map(str, b))}"
        )
    return mean_ci([a[seed] - b[seed] for seed in seeds], confidence)
