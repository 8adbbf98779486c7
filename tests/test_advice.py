"""Advice on K, H, I: against hand-computed numbers, simulations of a broken link, and the reports that it quotes."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwa_jax.analysis import advice
from hwa_jax.analysis.advice import Job
from hwa_jax.analysis.communication import Link, interrupted_seconds, overhead
from hwa_jax.analysis.quantities import parse_bandwidth, parse_seconds
from hwa_jax.errors import UserError
from programs import ROOT, call

# 4 replicas of 1 MB, steps of 0.5 s, 60 an epoch.
JOB = Job(1_000_000, 0.5, 60, 20, 4)
FLAGS = ("--model=cnn_s", "--image=28x28x1", "--bandwidth=100Mbit", "--latency=20ms", "--replicas=4", "--examples=10000", "--batch_size=100")


def simulated_seconds(sync_seconds, up, down, begin):
    """Walks through the phases of a link that has been up since time 0, from `begin` until enough time was spent up."""
    now, left = begin, sync_seconds
    while True:
        cycles, phase = divmod(now, up + down)
        if phase >= up:
            now = (cycles + 1) * (up + down)
            continue
        step = min(left, up - phase)
        now, left = now + step, left - step
        if left <= 1e-12:
            return now - begin
        now = (cycles + 1) * (up + down)


@pytest.mark.parametrize("sync_seconds, up, down", [(1.0, 10.0, 10.0), (25.0, 10.0, 4.0), (3.0, 3.0, 7.0), (0.5, 60.0, 1.0)])
def test_a_broken_link_takes_as_long_as_a_simulation_says(sync_seconds, up, down):
    begins = (np.arange(20_000) + 0.5) * (up + down) / 20_000
    simulated = np.mean([simulated_seconds(sync_seconds, up, down, begin) for begin in begins])
    assert interrupted_seconds(sync_seconds, up, down) == pytest.approx(simulated, rel=1e-3)


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e3), st.floats(0, 1e3))
def test_outages_never_make_it_faster(sync_seconds, up, down):
    assert interrupted_seconds(sync_seconds, up, down) >= sync_seconds * (1 - 1e-12)


def test_the_overhead_table_by_hand():
    # A ring of 4: 6 messages of 250 kB at 12.5 MB/s, each 20 ms late: 6 (0.02 + 0.02) = 0.24 s. A step takes 0.5 s.
    link = Link(bandwidth=12.5e6, latency=0.02)
    shares = {name: share for name, (_, share) in advice.overheads(JOB, link).items()}
    assert shares == pytest.approx({"1 step": 0.48, "10 steps": 0.048, "100 steps": 0.0048, "1 epoch": 0.008})
    yours, *_ = advice.link_table(JOB, link)
    assert (yours.seconds, yours.algorithm, yours.periods) == (pytest.approx(0.24), "ring", (10, 48))


def test_the_tree_is_taken_where_latency_rules():
    # A tree of 8: 6 messages of 1 kB; a ring: 14 of 125 bytes. At 10 ms each the tree is done after 60 ms.
    seconds, name = advice.fastest(JOB._replace(num_replicas=8, payload=1000), Link(bandwidth=1e9, latency=0.01))
    assert name == "tree" and seconds == pytest.approx(0.06, rel=1e-4)


@settings(deadline=None)
@given(st.integers(1, 10**9), st.floats(1e-4, 10), st.integers(1, 5000), st.integers(2, 16), st.floats(1e4, 1e10), st.floats(0, 1))
def test_the_period_to_begin_with_keeps_its_promise(payload, step_seconds, per_epoch, num_replicas, bandwidth, latency):
    job, link = Job(payload, step_seconds, per_epoch, 20, num_replicas), Link(bandwidth, latency)
    period = next(choice for choice in advice.starting_hwa(job, link) if choice.field == "hwa.sync_period")
    steps = int(period.value.split()[0])
    share = overhead(advice.fastest(job, link)[0], step_seconds, steps)
    assert 1 <= steps <= 5 * per_epoch
    if "at most 1 % on this link" in period.reason:
        assert share <= 0.01
    elif "at most 5 %" in period.reason:
        assert share <= 0.05
    else:
        assert steps == 5 * per_epoch and share > 0.05 and "nothing longer was tried" in period.reason


def test_window_and_pushes_belong_together():
    """H = 100 of 60 steps an epoch: a push every 100 steps, 12 in 1200 steps, of which 5 are about 40 %."""
    slow = Link(bandwidth=2e6, latency=0.02)  # 6 (0.02 + 0.125) = 0.87 s: 174 steps at 1 %, rounded up 180
    chosen = {choice.field: choice.value for choice in advice.starting_hwa(JOB, slow)}
    assert chosen["hwa.sync_period"] == "180 steps" and chosen["hwa.push_every"] == "180 steps"
    assert chosen["hwa.window_size"] == "2"  # 1200 // 180 = 6 pushes
    fast = {choice.field: choice.value for choice in advice.starting_hwa(JOB, Link(math.inf, 0.0005))}
    # A tree of 4 rounds of 0.5 ms: 2 ms of a step's 500 are less than 1 %.
    assert fast["hwa.sync_period"] == "1 steps" and fast["hwa.push_every"] == "60 steps" and fast["hwa.window_size"] == "8"


@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.36, 0.5, 0.9, 0.99])
def test_cycles_are_those_of_pruning(sparsity):
    remaining, cycles = 1.0, 1
    while 1 - remaining < sparsity - 1e-9:
        remaining, cycles = remaining * 0.8, cycles + 1
    assert advice.num_cycles(sparsity) == cycles


@pytest.mark.parametrize("text, expected", [
    ("100Mbit", 12.5e6), ("1 Gbit/s", 125e6), ("1Mbit", 125e3), ("56kbit", 7e3), ("12.5MB/s", 12.5e6), ("1e2Mbit", 12.5e6), ("2kB", 2e3),
])
def test_bandwidths(text, expected):
    assert parse_bandwidth(text, "--bandwidth") == expected


@pytest.mark.parametrize("text", ["100", "100 mbit", "100Mibit", "-1Mbit", "0Mbit", "Mbit", "1e999Gbit", "1Gbit/min", "nanMbit", ""])
def test_bandwidths_that_are_none(text):
    with pytest.raises(UserError, match=r"^--bandwidth=.*") as raised:
        parse_bandwidth(text, "--bandwidth")
    assert "\n" not in str(raised.value)


def test_times():
    assert [parse_seconds(text, "x") for text in ("20ms", "50us", "0s", "2min", "1h")] == pytest.approx([0.02, 5e-5, 0, 120, 3600])
    with pytest.raises(UserError, match="--step_time='0ms': must be above 0"):
        parse_seconds("0ms", "--step_time", above_zero=True)


def test_the_program_prints_all_of_it():
    ended = call("advise.py", *FLAGS, "--step_time=10ms", "--num_particles=4", "--sparsity=0.9")
    assert ended.code == 0 and not ended.stderr
    # 33,610 float32 weights; a ring of 4 takes 6 (0.02 + 134,440 / 4 / 12.5e6) = 0.136 s, a tree 4 (0.02 + 134,440 / 12.5e6) = 0.123 s.
    assert "cnn_s, 134 kB" in ended.stdout and "in a tree, 123 ms on your link" in ended.stdout
    assert re.search(r"\| 1 epoch +\| +100 \| +12\.3 % \|", ended.stdout)
    for words in ("1 Mbit/s", "1 h up, 23 h down", "hwa.sync_period = 250 steps", "hwa.window_size", "swamp.num_particles = 4",
                  "## What a trial costs", "## What justifies the next stage"):
        assert words in ended.stdout, words
    # 3 (1 + 2 · 4) + 3 (1 + 4) = 42 trainings of 20 · 100 steps of 10 ms.
    assert "0.23 hours on one machine" in ended.stdout


def test_a_step_is_measured():
    ended = call("advise.py", *FLAGS, "--measure")
    assert ended.code == 0 and "measured here on images of noise, cpu" in ended.stdout


def test_one_replica_needs_no_link():
    ended = call("advise.py", *FLAGS, "--replicas=1", "--step_time=10ms")
    assert ended.code == 0 and "none: one replica" in ended.stdout and "What communication costs" not in ended.stdout
    assert "hwa.sync_period = 100 steps" in ended.stdout


@pytest.mark.parametrize("arguments, message", [
    (["--step_time=10"], "--step_time='10': write a number with a unit"),
    (["--step_time=10ms", "--bandwidth=fast"], "--bandwidth='fast': write a number with a unit (kbit, Mbit"),
    (["--step_time=10ms", "--latency=20"], "--latency='20'"),
    (["--step_time=10ms", "--measure"], "one of the two"),
    ([], "--step_time: give the time of a step"),
    (["--step_time=10ms", "--image=28"], "--image=28: write height, width and channels"),
    (["--step_time=10ms", "--sparsity=0.9"], "SWAMP needs both"),
    (["--step_time=10ms", "--num_particles=2", "--sparsity=1.0"], "--sparsity=1.0: must be above 0 and below 1"),
    (["--step_time=10ms", "--model=resnet21"], "model='resnet21': unknown"),
    (["--step_time=10ms", "--batch_size=20000"], "20000"),
    (["--step_time=10ms", "--replicas=0"], "replicas"),
])
def test_what_does_not_fit_is_one_line(arguments, message):
    ended = call("advise.py", *FLAGS, *arguments)
    assert ended.code == 2 and ended.stderr.startswith("error: ") and message in ended.stderr
    assert ended.stderr.count("\n") == 1 and ended.stdout == ""


@pytest.mark.parametrize("report, figure, claim", [
    ("hwa_fashion_mnist", "+1.29 ± 0.89", "H1    | HWA - plain, equal steps "),
    ("hwa_fashion_mnist", "+0.14 ± 0.43", "H1    | HWA - plain, equal compute "),
    ("hwa_fashion_mnist", "-0.49 ± 0.70", "H1    | HWA - plain, equal steps "),
    ("hwa_fashion_mnist", "-0.99 ± 0.50", "H1    | HWA - offline window, equal compute "),
    ("hwa_fashion_mnist", "+1.94 ± 1.02", "H4    | HWA at H=1 (268 MB) - plain"),
    ("hwa_fashion_mnist", "+1.70 ± 0.91", "H4    | HWA at H=10 (26.8 MB) - plain"),
    ("hwa_fashion_mnist", "+1.16 ± 0.72", "H4    | HWA at H=500 (537 kB) - plain"),
    ("swamp_fashion_mnist", "+0.07 ± 0.11", "S3    | SWAMP with fewer particles - more particles without SWA "),
    ("swamp_fashion_mnist", "+0.32 ± 0.15", "S1    | SWAMP - IMP with N times the epochs "),
    ("swamp_fashion_mnist", "+0.27 ± 0.28", "S1    | SWAMP - IMP "),
    ("swamp_fashion_mnist", "-1.76 ± 1.18", "S1    | SWAMP - IMP "),
])
def test_quoted_figures_are_those_of_the_reports(report, figure, claim):
    text = (ROOT / "results" / report / "report.md").read_text()
    quoted = (ROOT / "hwa_jax/analysis/advice.py").read_text() + (ROOT / "hwa_jax/report/advice.py").read_text()
    assert figure in quoted or figure.removeprefix("-") in quoted
    assert any(figure in line for line in text.splitlines() if f"| {claim}" in line)
