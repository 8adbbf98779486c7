"""Effects of the HWA paper's claims from synthetic cells whose differences are chosen."""

import pytest
from report_cells import cell

from hwa_jax.report.comparison_tables import tuning_table
from hwa_jax.report.claims import effects_table
from hwa_jax.report.hwa_claims import effects

SEEDS = range(3)
JITTER = (0.0, 0.001, -0.001)


def cells(method, gain, comparison="equal_steps", **fields):
    return [cell(method, comparison, seed, 0.9 - 0.01 * seed + gain + JITTER[seed], **fields) for seed in SEEDS]


def main_cells(**fields):
    return [
        *[cell("plain", "equal_steps", seed, 0.9 - 0.01 * seed, **fields) for seed in SEEDS],
        *[cell("plain", "equal_compute", seed, 0.91 - 0.01 * seed, **fields) for seed in SEEDS],
        *cells("offline_window", 0.01, **fields), *cells("online", 0.005, "both", **fields), *cells("hwa", 0.02, "both", **fields),
    ]


def found(claim, text, all_cells):
    (effect,) = [e for e in effects(all_cells) if e.claim == claim and e.text.startswith(text)]
    return effect


def test_h1_differences_are_paired_points():
    effect = found("H1", "HWA - plain, equal steps", main_cells())
    assert effect.effect.mean == pytest.approx(2.0)
    assert (effect.effect.n, effect.unit, effect.verdict) == (3, "points", "shown")
    assert found("H1", "HWA - plain, equal compute", main_cells()).effect.mean == pytest.approx(1.0)
    # Both carry the same jitter, so their difference has no spread.
    assert found("H1", "HWA - online", main_cells()).effect.half_width == pytest.approx(0.0, abs=1e-9)


def test_a_loss_is_said_to_contradict():
    losing = [*main_cells()[:6], *cells("hwa", -0.02, "both")]
    assert found("H1", "HWA - plain, equal steps", losing).verdict == "contradicted"


def test_one_seed_is_not_judged():
    single = [c for c in main_cells() if c["seed"] == 0]
    assert {effect.verdict for effect in effects(single)} == {"not judged"}


def test_adamw_is_h9():
    assert {e.claim for e in effects(main_cells(optimizer="adamw"))} == {"H2", "H8", "H9"}


def test_h3_pairs_constant_hwa_with_cosine_plain():
    cosine = [{**c, "schedule": "cosine", "test": {**c["test"], "accuracy": c["test"]["accuracy"] + 0.03}} for c in main_cells()]
    effect = found("H3", "HWA constant - plain cosine, equal steps", [*main_cells(), *cosine])
    assert effect.effect.mean == pytest.approx(2.0 - 3.0)
    assert effect.verdict == "contradicted"


def test_h4_compares_periods_with_the_shortest():
    rare = cells("hwa", 0.01, "both", sync_period=900, bytes_communicated=1000)
    assert found("H4", "HWA at H=900 (1 kB) - HWA at H=90", [*main_cells(), *rare]).effect.mean == pytest.approx(-1.0)
    assert found("H4", "HWA at H=900 (1 kB) - plain", [*main_cells(), *rare]).effect.mean == pytest.approx(1.0)
    assert found("H4", "HWA at H=90 (8 MB) - plain", [*main_cells(), *rare]).effect.mean == pytest.approx(2.0)
    # The study's cells take no part in H1.
    assert found("H1", "HWA - plain, equal steps", [*main_cells(), *rare]).effect.mean == pytest.approx(2.0)


def test_h10_has_every_size():
    # One epoch of 1000 images has 10 steps.
    small = main_cells(num_train=1000, sync_period=10)
    settings = [e.setting for e in effects([*main_cells(), *small]) if e.claim == "H10"]
    assert settings == ["SGD, constant, 1000 images"] * 2 + ["SGD, constant, 9000 images"] * 2


def test_h2_counts_steps_to_plains_last_accuracy():
    # HWA reaches 0.8 at a quarter of its curve, plain at the end: 75 % of the steps apart. Alike, they are 0 apart.
    plain = [cell("plain", seed=s, curve=[{"step": i, "epoch": i, "accuracy": 0.2 * i, "nll": 1} for i in (1, 2, 3, 4)]) for s in SEEDS]
    hwa = [cell("hwa", "both", s, curve=[{"step": i, "epoch": i, "accuracy": 0.8, "nll": 1} for i in (1, 2, 3, 4)]) for s in SEEDS]
    assert found("H2", "steps to plain's", [*plain, *hwa]).effect.mean == pytest.approx(75.0)
    alike = [{**c, "method": "hwa", "comparison": "both", "num_replicas": 2} for c in plain]
    assert found("H2", "steps to plain's", [*plain, *alike]).effect.mean == pytest.approx(0.0)


def test_h8_gap_and_steadiness():
    def curve(values):
        return [{"step": i, "epoch": i, "accuracy": v, "nll": 1} for i, v in enumerate(values, 1)]

    plain = [cell("plain", seed=s, curve=curve((0.1, 0.2, 0.80, 0.82))) for s in SEEDS]
    hwa = [cell("hwa", "both", s, curve=curve((0.1, 0.2, 0.81, 0.81)), train={"accuracy": 0.91}) for s in SEEDS]
    # The sample deviation of 0.80 and 0.82 is 0.02 / sqrt(2).
    assert found("H8", "standard deviation", [*plain, *hwa]).effect.mean == pytest.approx(2 / 2**0.5)
    assert found("H8", "gap", [*plain, *hwa]).effect.mean == pytest.approx(5.0 - 1.0)


def test_table_lists_all_effects_and_no_hwa_is_no_effect():
    assert len(effects_table(effects(main_cells())).splitlines()) == 2 + len(effects(main_cells()))
    assert effects(cells("plain", 0.0)) == []


def test_tuning_table_marks_the_best_point_for_each():
    point = {"optimizer": "sgd", "schedule": "constant", "weight_decay": 0.0}
    grid = [
        {**point, "learning_rate": 0.1, "seed": 1, "plain": 0.5, "offline": 0.9},
        {**point, "learning_rate": 0.1, "seed": 2, "plain": 0.7, "offline": 0.9},
        {**point, "learning_rate": 0.2, "seed": 1, "plain": 0.55, "offline": 0.95},
        {**point, "learning_rate": 0.2, "seed": 1, "hwa": 0.8},
    ]
    rows = [[cell.strip() for cell in line.strip("|").split("|")][2:] for line in tuning_table(grid).splitlines()[2:]]
    # The means over seeds are 0.60 and 0.55.
    assert rows == [["0.1", "0.0", "**60.00**", "90.00", "–"], ["0.2", "0.0", "55.00", "**95.00**", "**80.00**"]]


def test_a_diverged_training_is_left_out():
    broken = {"accuracy": None, "nll": None, "ece": None}
    cells_with_gap = [{**c, "test": broken, "curve": []} if (c["method"], c["seed"]) == ("hwa", 2) else c for c in main_cells()]
    assert found("H1", "HWA - plain, equal steps", cells_with_gap).effect.n == 2
