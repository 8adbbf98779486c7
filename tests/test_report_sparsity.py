"""The report of a comparison of pruning, from synthetic cells whose effects are chosen."""

import pytest

from hwa_jax.report.sparse_methods import levels_by_method
from hwa_jax.report.sparsity_comparison import write_comparison
from hwa_jax.report.sparsity_plots import accuracy_plots
from hwa_jax.report.sparsity_tables import cost_table, gate_table, level_table, summary_table, tuning_table
from hwa_jax.report.swamp_claims import effects

SEEDS = range(3)
JITTER = (0.0, 0.001, -0.001)
WEIGHTS = (1000, 500, 100, 40, 20, 10)
TUNING = {
    "grid": [
        {"method": "imp", "seed": 100, "learning_rate": rate, "swa_learning_rate": 0.0, "validation": accuracy}
        for rate, accuracy in ((0.1, 0.8), (0.2, 0.9))
    ],
    "chosen": {"learning_rate": 0.2, "swa_learning_rate": 0.05, "own_learning_rate": 0.1},
}


def metrics(accuracy):
    return {"accuracy": accuracy, "nll": 1 - accuracy, "ece": 0.02}


def splits(accuracy):
    return {"train": metrics(accuracy + 0.05), "validation": metrics(accuracy), "test": metrics(accuracy)}


def cells(method, gains, *, above_particles=None, gate=None):
    """One cell per seed: 90 % dense and falling by the level, plus the gain; the average so far above its particles."""
    found = []
    for seed in SEEDS:
        levels = []
        for number, left in enumerate(WEIGHTS):
            accuracy = 0.9 - 0.01 * number - 0.005 * seed + gains[number] + JITTER[seed] * bool(gains[number])
            beside = None if above_particles is None else splits(accuracy - above_particles[number])
            levels.append({
                "cycle": number, "num_weights": left, "sparsity": 1 - left / WEIGHTS[0], "density_per_layer": {"a/kernel": left / WEIGHTS[0]},
                "num_particles": 1 if beside is None else 4, "solution": "average", "gate": gate, **splits(accuracy), "average": splits(accuracy),
                "particles": beside, "best_particle": beside and splits(accuracy - 0.002), "barrier": beside and {"mean": 0.1, "max": 0.2},
                "epochs": 10.0 * (number + 1), "seconds": 3.0 * (number + 1),
            })
        found.append({"method": method, "seed": seed, "num_train": 100, "model": "mlp", "rates": {}, "environment": {}, "levels": levels, "diverged": None})
    return found


IMP = cells("imp", [0.0] * 6)
SWAMP = cells("swamp", [-0.002, 0, 0.01, 0.02, 0.02, 0.03], above_particles=[-0.01, 0, 0.01, 0.01, 0.01, 0.01])


def found(claim, text, setting, all_cells):
    [effect] = [e for e in effects(all_cells) if e.claim == claim and e.text.startswith(text) and e.setting.startswith(setting)]
    return effect


def test_s1_is_a_paired_difference_at_every_shown_density():
    dense, sparse = (found("S1", "SWAMP - IMP", setting, [*IMP, *SWAMP]) for setting in ("100 %", "1 %"))
    assert dense.effect.mean == pytest.approx(-0.2) and sparse.effect.mean == pytest.approx(3.0)
    # The seeds' own levels, half a point apart, are not in it: t(2, 0.975) * 0.1 / sqrt(3).
    assert sparse.effect.half_width == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)
    assert (dense.verdict, sparse.verdict) == ("not shown", "shown")


def test_s1_grows_from_the_dense_third():
    """Gains of (-0.2, 0), and of (1, 2, 2, 3) after them: 2 - (-0.1)."""
    assert found("S1", "SWAMP - IMP, sparse", "growth", [*IMP, *SWAMP]).effect.mean == pytest.approx(2.1)


@pytest.mark.parametrize(("gain", "verdict"), [(0.0, "shown"), (-0.001, "shown"), (-0.01, "contradicted")])
def test_s2_means_not_much_worse(gain, verdict):
    ours = cells("swamp", [0.0] * 6, above_particles=[0.0] * 6)
    theirs = cells("imp_ensemble", [-gain] * 6)
    for one in theirs:  # no spread beyond the seeds' own
        for level in one["levels"]:
            level["test"]["accuracy"] -= JITTER[one["seed"]] * bool(gain)
    effect = found("S2", "SWAMP - ensemble", "1 %", [*ours, *theirs])
    assert effect.effect.mean == pytest.approx(100 * gain) and effect.verdict == verdict and effect.margin == 0.25


def test_the_parts_and_the_gate_are_means_over_all_levels():
    gains = [0.0, 0.0, 0.03, 0.03, 0.03, 0.03]
    both = [*IMP, *cells("imp_swa", gains), *cells("particles", [0.01] * 6, above_particles=[0.0] * 6)]
    assert found("2×2", "SWA in one particle", "mean", both).effect.mean == pytest.approx(2.0)
    assert found("2×2", "averaging N particles without", "mean", both).effect.mean == pytest.approx(1.0)
    gated = [*SWAMP, *cells("swamp_gated", [g + 0.01 for g in (-0.002, 0, 0.01, 0.02, 0.02, 0.03)], above_particles=[0.0] * 6)]
    assert found("gate", "gated - always", "mean", gated).effect.mean == pytest.approx(1.0)
    few, many = cells("swamp_few", [-0.001] * 6, above_particles=[0.0] * 6), cells("particles_many", [0.0] * 6, above_particles=[0.0] * 6)
    assert found("S3", "SWAMP with fewer", "mean", [*few, *many]).effect.mean == pytest.approx(-0.1)


def test_s6_is_positive_where_the_dense_average_is_below_its_particles():
    dense, sparse = (found("S6", "average and mean particle of SWAMP", setting, SWAMP) for setting in ("100 %", "1 %"))
    assert (dense.effect.mean, dense.verdict) == (pytest.approx(1.0), "shown")
    assert (sparse.effect.mean, sparse.verdict) == (pytest.approx(1.0), "shown")
    assert found("S6", "average and mean particle of SWAMP", "growth", SWAMP).effect.mean == pytest.approx(1.0 - (-0.5))


def test_masks_are_not_compared_where_all_are_dense():
    masks = cells("swamp_mask", [0.0, 0.01, 0.01, 0.01, 0.01, 0.01])
    settings = [e.setting for e in effects([*IMP, *masks]) if e.claim == "S4"]
    assert "100 % left" not in settings and len(settings) == 6
    assert found("S4", "SWAMP's masks", "mean", [*IMP, *masks]).effect.mean == pytest.approx(1.0)


def test_no_claim_without_its_methods():
    assert effects(IMP) == []


def test_summary_says_reference_differences_and_what_excludes_zero():
    lines = {line.split("|")[1].strip(): line for line in summary_table([*IMP, *SWAMP]).splitlines() if line.startswith("|")}
    assert lines["IMP"].count("reference") == 6
    assert "(**+3.00 ± 0.25**)" in lines["SWAMP"] and "(-0.20 ± 0.25)" in lines["SWAMP"]
    assert "(+2.80 ± 0.25)" not in lines["best particle of SWAMP"] and "(**+2.80 ± 0.25**)" in lines["best particle of SWAMP"]


def test_tables_have_a_row_per_level_and_per_method():
    assert len(level_table([*IMP, *SWAMP], "nll").splitlines()) == 2 + len(WEIGHTS)
    [line] = cost_table(cells("imp_ensemble", [0.0] * 6)).splitlines()[2:]
    assert [entry.strip() for entry in line.strip("|").split("|")] == ["ensemble of 2 IMP", "60 ± 0", "18 ± 0", "2"]


def test_gate_table_lists_where_it_closed():
    closed = {"average": 0.5, "particles": [0.5, 0.4], "averaging_hurts": True}
    gated = cells("swamp_gated", [0.0] * 6, above_particles=[0.0] * 6, gate=closed)
    assert len(gate_table(gated).splitlines()) == 2 + 3 * 6 and "0.5000" in gate_table(gated) and "0.4500" in gate_table(gated)
    # "always" measures too, and goes on with the average.
    assert gate_table(cells("swamp", [0.0] * 6, above_particles=[0.0] * 6, gate=closed)) == "The gate never closed."


def test_tuning_table_marks_the_chosen_rate():
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in tuning_table(TUNING).splitlines()[2:]]
    assert rows == [
        ["IMP", "0.1", "–", "100", "80.00", "IMP, rate of its own"], ["IMP", "0.2", "–", "100", "90.00", "all methods"],
    ]


def test_cells_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="two of imp, seed 0"):
        levels_by_method([*IMP, IMP[0]])
    with pytest.raises(ValueError, match="method='pruned' is none of imp, "):
        levels_by_method([IMP[0] | {"method": "pruned"}])
    fewer = IMP[0] | {"method": "swamp", "levels": IMP[0]["levels"][:-1]}
    with pytest.raises(ValueError, match=r"swamp/0: has \[1000, 500, 100, 40, 20\] weights left"):
        levels_by_method([IMP[0], fewer])


def test_a_training_that_diverged_is_named_and_counts_for_nothing(tmp_path):
    broken = IMP[1] | {"levels": [], "diverged": "not finite at step 3"}
    text = write_comparison([IMP[0], broken, IMP[2], *SWAMP], tmp_path, title="", meta={}, tuning=TUNING).read_text()
    assert "- IMP, seed 1: not finite at step 3" in text
    assert found("S1", "SWAMP - IMP", "1 %", [IMP[0], broken, IMP[2], *SWAMP]).effect.n == 2


def test_a_report_of_one_method_needs_nothing_else(tmp_path):
    text = write_comparison(IMP, tmp_path, title="One", meta={"description": "About."}, tuning={"grid": [], "chosen": {}}).read_text()
    assert text.startswith("# One\n\nAbout.") and "## The tuning grid" not in text and "## The claims" not in text
    assert accuracy_plots(IMP, tmp_path) == []
    with pytest.raises(ValueError, match="no finished training"):
        write_comparison([], tmp_path, title="", meta={}, tuning=TUNING)
