"""The comparison's numbers, verdicts, tables and sentences, from cells with known effects."""

import math
import re

import pytest
from report_cells import cell, paired

from hwa_jax.report.aggregation import aggregate, verdict
from hwa_jax.report.comparison_tables import section_sentences, section_table, summary_table
from hwa_jax.report.statistics import Interval

def rows_of(cells):
    [section] = aggregate(cells)
    return {(row.method, row.comparison): row for row in section.rows}


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        # s = 0.001, t(2, 0.975) = 4.302653: half width 0.002484
        ([0.002, 0.003, 0.004], "better"),
        ([-0.002, -0.003, -0.004], "worse"),
        ([0.001, 0.002, 0.003], "no difference shown"),
        ([-0.003, -0.002, -0.001], "no difference shown"),
        ([0.1], "not judged"),
        ([0.1, math.nan], "not judged"),
    ],
)
def test_verdict_follows_from_the_paired_interval(differences, expected):
    assert rows_of(paired("ema", differences))["ema", "equal_steps"].verdict == expected


def test_difference_by_hand():
    difference = rows_of(paired("ema", [0.002, 0.003, 0.004]))["ema", "equal_steps"].difference
    assert difference.mean == pytest.approx(0.003, rel=1e-9)
    assert difference.half_width == pytest.approx(4.302653 * 0.001 / math.sqrt(3), rel=1e-6)
    assert difference.n == 3


def test_interval_that_touches_zero_shows_no_difference():
    assert verdict(Interval(0.5, 0.5, 5)) == "no difference shown"
    assert verdict(Interval(-0.5, 0.5, 5)) == "no difference shown"


def test_cell_for_both_is_compared_with_two_references():
    # HWA gains 0.02 over plain at equal steps, but plain with twice the epochs gains 0.03.
    cells = [
        made
        for seed in range(3)
        for made in (
            cell("plain", "equal_steps", seed, 0.90),
            cell("plain", "equal_compute", seed, 0.93),
            cell("hwa", "both", seed, 0.92 + 1e-4 * seed),
        )
    ]
    rows = rows_of(cells)
    assert rows["hwa", "equal_steps"].difference.mean == pytest.approx(0.0201)
    assert rows["hwa", "equal_compute"].difference.mean == pytest.approx(-0.0099)
    assert rows["hwa", "equal_steps"].verdict == "better"
    assert rows["hwa", "equal_compute"].verdict == "worse"
    assert rows["plain", "equal_compute"].verdict == "reference"


def test_references_do_not_cross_optimizer_schedule_or_size():
    cells = [cell("plain"), cell("ema", optimizer="adamw"), cell("ema", schedule="cosine")]
    cells.append(cell("ema", num_train=1000))
    sections = aggregate(cells)
    assert [len(section.rows) for section in sections] == [1, 1, 1, 1]
    assert [section.rows[0].difference for section in sections] == [None] * 4


def test_equal_compute_needs_a_reference_of_the_same_compute():
    wide = dict(num_replicas=4, compute_epochs=80.0)
    cells = [
        made
        for seed in range(2)
        for made in (
            cell("plain", "equal_compute", seed, 0.90),
            cell("hwa", "both", seed, 0.91),
            cell("hwa", "both", seed, 0.92, **wide),
        )
    ]
    [section] = aggregate(cells)
    found = {row.label: row for row in section.rows if row.comparison == "equal_compute"}
    assert set(found) == {"plain", "HWA (K=2)", "HWA (K=4)"}
    assert found["HWA (K=2)"].difference.mean == pytest.approx(0.01)
    assert found["HWA (K=4)"].difference is None
    longer = [
        cell("plain", "equal_compute", s, 0.905, epochs_per_replica=80.0, compute_epochs=80.0)
        for s in range(2)
    ]
    [section] = aggregate(cells + longer)
    found = {row.label: row for row in section.rows if row.comparison == "equal_compute"}
    assert found["HWA (K=2)"].difference.mean == pytest.approx(0.01)
    assert found["HWA (K=4)"].difference.mean == pytest.approx(0.015)


def test_settings_a_method_does_not_use_do_not_split_its_rows():
    cells = [cell("plain", seed=0), cell("plain", seed=1, sync_period=7, window_size=None)]
    assert list(rows_of(cells)["plain", "equal_steps"].cells) == [0, 1]


def test_rows_of_methods_with_other_settings_can_be_told_apart_too():
    # The third setting of the online average is its averaging, of HWA its window.
    cells = [cell(method, "both", averaging=averaging) for method in ("online", "hwa") for averaging in (None, "bfloat16")]
    assert [row.label for row in aggregate(cells)[0].rows if row.comparison == "equal_steps"] == [
        "online average (averaging=plain)", "online average (averaging=bfloat16)", "HWA (averaging=plain)", "HWA (averaging=bfloat16)",
    ]


def test_only_seeds_in_common_are_paired():
    cells = [cell("plain", seed=s, accuracy=0.9) for s in (0, 1, 2)]
    cells += [cell("ema", seed=s, accuracy=0.91) for s in (1, 2, 3, 4)]
    row = rows_of(cells)["ema", "equal_steps"]
    assert (row.difference.n, row.measures["test_accuracy"].n) == (2, 4)
    disjoint = rows_of([cell("plain", seed=0), cell("ema", seed=1)])["ema", "equal_steps"]
    assert (disjoint.difference, disjoint.verdict) == (None, "not judged")


def test_measures_by_hand():
    curve = [{"step": e, "epoch": float(e), "accuracy": e / 100, "nll": 1.0} for e in (4, 8, 20)]
    measures = rows_of([cell(curve=curve, accuracy=0.8)])["plain", "equal_steps"].measures
    # Epoch 20/3 lies between 4 and 8, epoch 40/3 between 8 and 20; the curve is a straight line.
    assert measures["validation_accuracy_at_1_3"].mean == pytest.approx(20 / 300)
    assert measures["validation_accuracy_at_2_3"].mean == pytest.approx(40 / 300)
    assert measures["train_test_gap"].mean == pytest.approx(0.05)
    assert measures["compute_epochs"].mean == 20


def test_curve_that_does_not_reach_a_third_is_not_extrapolated():
    for curve in ([], [{"step": 1, "epoch": 10.0, "accuracy": 0.5, "nll": 1.0}]):
        measures = rows_of([cell(curve=curve)])["plain", "equal_steps"].measures
        assert math.isnan(measures["validation_accuracy_at_1_3"].mean)


def test_bad_cells_are_named():
    with pytest.raises(ValueError, match="plain/sgd/constant/3: lacks curve, seconds"):
        aggregate([{k: v for k, v in cell(seed=3).items() if k not in ("curve", "seconds")}])
    with pytest.raises(ValueError, match="comparison='fair' is none of equal_steps"):
        aggregate([cell(comparison="fair")])
    with pytest.raises(ValueError, match="two of .*plain.*, seed 0"):
        aggregate([cell(), cell()])
    with pytest.raises(ValueError, match="two of equal_steps/hwa.*, seed 0"):
        aggregate([cell("hwa", "both"), cell("hwa", "equal_steps")])


def test_golden_section():
    cells = paired("ema", [0.002, 0.003, 0.004]) + [cell("hwa", "both", 0, 0.95)]
    [section] = aggregate(cells)
    lines = section_table(section).splitlines()
    cut = [re.sub(" +", " ", line) for line in lines]
    # The curve lies 30 exp(-6 p) points below its end. Epoch 20/3 is two thirds of the way from 6
    # to 7: 30 (exp(-1.8) + 2 exp(-2.1)) / 3 = 4.10 points; epoch 40/3 a third of the way from 13.
    assert cut[2:] == [
        "| equal steps | plain | 89.00 ± 2.48 | – | 3 | reference | 0.3200 | 0.0300 | 84.90 "
        "| 88.45 | +5.00 | 20.0 | 0 B | 0 | 60.0 |",
        "| equal steps | EMA | 89.30 ± 2.24 | +0.30 ± 0.25 | 3 | better | 0.3200 | 0.0300 | 85.20 "
        "| 88.75 | +5.00 | 20.0 | 0 B | 0 | 60.0 |",
        "| equal steps | HWA | 95.00 (n=1) | +5.00 (n=1) | 1 | not judged | 0.3200 | 0.0300 "
        "| 90.90 | 94.45 | +5.00 | 40.0 | 8 MB | 20 | 120.0 |",
        "| equal compute | HWA | 95.00 (n=1) | – | 1 | not judged | 0.3200 | 0.0300 "
        "| 90.90 | 94.45 | +5.00 | 40.0 | 8 MB | 20 | 120.0 |",
    ]
    assert len({len(line) for line in lines}) == 1
    steps, compute = section_sentences(section)
    assert steps == (
        "At equal steps, by test accuracy in points — better than plain training: EMA (+0.30); "
        "worse than plain training: none; no difference to plain training shown: none. Not judged: "
        "HWA (one seed). Not run: online average, offline window average, offline uniform "
        "average, Lookahead and SAM."
    )
    assert "Not judged: HWA (no plain training of the same budget and seeds)." in compute


GOLDEN_SUMMARY = """\
| Optimizer, learning rate | Method | Test accuracy at equal steps, % | Difference to plain |\
 Test accuracy at equal compute, % | Difference to plain |
| :----------------------- | :----- | ------------------------------: | ------------------: |\
 --------------------------------: | ------------------: |
| SGD, constant            | plain  |                    89.00 ± 2.48 |           reference |\
                                 – |                   – |
| SGD, constant            | EMA    |                    89.30 ± 2.24 |    **+0.30 ± 0.25** |\
                                 – |                   – |

Mean ± half width of the 95 % confidence interval over 3 seeds. Differences are paired by seed, in \
percentage points; bold where the interval excludes zero."""


def test_golden_summary():
    assert summary_table(paired("ema", [0.002, 0.003, 0.004])) == GOLDEN_SUMMARY


def test_summary_says_when_there_is_one_seed_or_several_sizes():
    assert "over one seed (no interval)" in summary_table([cell()])
    table = summary_table([cell(), cell(num_train=1000), cell(num_train=1000, seed=1)])
    assert "SGD, constant, 1,000 training samples" in table
    assert "over 1 to 2 seeds" in table
