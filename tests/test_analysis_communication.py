"""Communication: bytes and seconds against simulated all-reduces, and the smallest period against a search."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hwa_jax.algorithms.hwa import communication
from hwa_jax.analysis.communication import Link, bytes_sent, overhead, smallest_period, synchronization_seconds
from hwa_jax.errors import UserError
from training_runs import small_setup


def simulated_ring(payload, num_replicas):
    """Bytes that each replica sends: K chunks go round once to be summed and once to be spread."""
    sent = np.zeros(num_replicas)
    for _ in range(2 * (num_replicas - 1)):
        sent += payload / num_replicas
    return sent


def simulated_tree(payload, num_replicas):
    """Bytes that each replica sends in a binomial tree, and the number of rounds."""
    sent, rounds, distance = np.zeros(num_replicas), 0, 1
    while distance < num_replicas:
        for child in range(distance, num_replicas, 2 * distance):
            sent[child] += payload  # up
            sent[child - distance] += payload  # down, later
        rounds, distance = rounds + 2, 2 * distance
    return sent, rounds


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 4, 5, 8, 13])
def test_bytes_and_seconds_equal_a_simulation(num_replicas):
    link = Link(bandwidth=1e6, latency=0.01)
    ring = simulated_ring(6e6, num_replicas)
    assert bytes_sent(6_000_000, num_replicas) == pytest.approx(ring.max())
    # In a ring nobody waits for anybody else: all links are busy in every one of 2 (K - 1) steps.
    assert synchronization_seconds(6_000_000, num_replicas, link) == pytest.approx(2 * (num_replicas - 1) * 0.01 + ring[0] / 1e6)
    tree, rounds = simulated_tree(6e6, num_replicas)
    assert bytes_sent(6_000_000, num_replicas, "tree") == tree.max()
    assert synchronization_seconds(6_000_000, num_replicas, link, "tree") == pytest.approx(rounds * (0.01 + 6.0))


def test_bytes_are_those_that_a_run_reports():
    setup = small_setup({"hwa.num_replicas": 2})
    reported = communication(setup, setup.initial_state())
    payload = reported["bytes_per_synchronization"]
    assert reported["bytes_communicated"] == reported["synchronizations"] * bytes_sent(payload, 2)


def test_bytes_cost_nothing_on_an_infinite_link():
    assert synchronization_seconds(10**9, 4, Link(math.inf, 0.5)) == 3.0


@settings(deadline=None)
@given(st.floats(1e-6, 1e4), st.floats(1e-4, 10.0), st.floats(1e-3, 1.0))
def test_the_smallest_period_is_the_smallest(sync_seconds, step_seconds, limit):
    assume(sync_seconds / (step_seconds * limit) < 1e7)
    period = smallest_period(sync_seconds, step_seconds, limit)
    assert period >= 1 and overhead(sync_seconds, step_seconds, period) <= limit
    assert period == 1 or overhead(sync_seconds, step_seconds, period - 1) > limit


def test_a_quotient_that_rounding_spoils():
    # 0.3 / (0.1 · 1) is 3.0000000000000004 for a computer: 3 steps are enough, and 3 are what it says.
    assert smallest_period(0.3, 1.0, 0.1) == 3


@pytest.mark.parametrize("call, message", [
    (lambda: bytes_sent(-1, 2), "payload=-1: must be at least 0"),
    (lambda: bytes_sent(1, 0), "num_replicas=0: must be a whole number of at least 1"),
    (lambda: bytes_sent(1, 2.5), "num_replicas=2.5: must be a whole number"),
    (lambda: bytes_sent(1, 2, "star"), "algorithm='star': give one of ring, tree"),
    (lambda: synchronization_seconds(1, 2, Link(0.0)), "bandwidth=0.0: must be above 0"),
    (lambda: synchronization_seconds(1, 2, Link(1.0, -1.0)), "latency=-1.0: must be at least 0"),
    (lambda: synchronization_seconds(1, 2, Link(math.nan)), "bandwidth=nan: must be above 0"),
    (lambda: overhead(1.0, 0.0, 1), "step_seconds=0.0: must be above 0"),
    (lambda: overhead(1.0, 1.0, 0), "sync_period=0: must be a whole number"),
    (lambda: smallest_period(math.inf, 1.0, 0.1), "sync_seconds=inf: must be a finite number"),
    (lambda: smallest_period(1.0, 1.0, 0.0), "limit=0.0: must be above 0"),
])
def test_what_is_out_of_range_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
