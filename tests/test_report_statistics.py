"""Intervals against hand-computed values, scipy's distribution and their own coverage."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from hwa_jax.report.statistics import Interval, mean_ci, paired_difference

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


def test_mean_ci_by_hand():
    # 2, 4, 6, 8: mean 5; s^2 = (9 + 1 + 1 + 9) / 3 = 20/3; standard error sqrt(20/3/4) = 1.290994;
    # t(3, 0.975) = 3.182446 from a printed table, so the half width is 4.108528.
    interval = mean_ci([2, 4, 6, 8])
    assert interval.mean == 5.0
    assert interval.n == 4
    assert interval.half_width == pytest.approx(3.182446 * 1.290994, rel=1e-6)
    assert (interval.low, interval.high) == (5 - interval.half_width, 5 + interval.half_width)


def test_one_value_has_no_half_width():
    interval = mean_ci([0.25])
    assert (interval.mean, interval.n) == (0.25, 1)
    assert math.isnan(interval.half_width)


@given(VALUES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_mean_ci_agrees_with_scipy(values, confidence):
    interval = mean_ci(values, confidence)
    error = scipy.stats.sem(values)
    expected = scipy.stats.t.ppf((1 + confidence) / 2, df=len(values) - 1) * error
    assert interval.mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12)
    assert interval.half_width == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [mean_ci(rng.normal(3.0, 2.0, 5)) for _ in range(4000)]
    hits = np.mean([interval.low <= 3.0 <= interval.high for interval in intervals])
    # Standard deviation of the frequency: sqrt(0.95 * 0.05 / 4000) = 0.0034.
    assert abs(hits - 0.95) < 4 * 0.0034


def test_float16_values_are_averaged_in_float64():
    values = np.full(3, 0.1, np.float16)
    assert mean_ci(values).mean == float(np.float16(0.1))


@pytest.mark.parametrize("confidence", [0, 1, -0.1, 95, math.nan])
def test_confidence_outside_its_range_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence="):
        mean_ci([1.0, 2.0], confidence)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="empty"):
        mean_ci([])


def test_paired_difference_by_hand():
    # Seeds 0, 1, 2 are common: differences 1, 2, 3; mean 2, s = 1, t(2, 0.975) = 4.302653.
    a = {2: 13.0, 0: 11.0, 1: 22.0, 9: 1e9}
    b = {0: 10.0, 1: 20.0, 2: 10.0, 7: -1e9}
    difference = paired_difference(a, b)
    assert (difference.mean, difference.n) == (2.0, 3)
    assert difference.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_pairing_removes_what_the_seeds_have_in_common():
    b = {seed: 100.0 * seed for seed in range(5)}
    a = {seed: value + 1 + 0.01 * (-1) ** seed for seed, value in b.items()}
    assert paired_difference(a, b).half_width < 0.05
    assert mean_ci(a.values()).half_width > 100


@given(st.dictionaries(st.integers(0, 9), st.floats(-10, 10), min_size=1))
def test_difference_with_itself_is_zero_and_changes_sign_when_swapped(a):
    b = {seed: value / 3 + seed for seed, value in a.items()}
    assert paired_difference(a, a).mean == 0
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.mean == -back.mean
    assert forth.n == back.n == len(a)


def test_one_common_seed_gives_a_mean_without_interval():
    difference = paired_difference({0: 1.0, 1: 5.0}, {1: 3.0})
    assert (difference.mean, difference.n) == (2.0, 1)
    assert math.isnan(difference.half_width)


def test_no_common_seed_is_refused_and_the_seeds_are_named():
    with pytest.raises(ValueError, match=r"a has \['0'\], b has \['1', '2'\]"):
        paired_difference({0: 1.0}, {1: 3.0, 2: 3.0})


def test_interval_cannot_be_changed():
    with pytest.raises(AttributeError):
        Interval(1.0, 0.5, 3).mean = 2.0
