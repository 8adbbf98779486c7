"""Averages in the loss landscape: effects of figures that are chosen here, their report, and one small study from start to end."""

import json

import pytest
from ml_collections import ConfigDict
from programs import ROOT, call
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

from hwa_jax.algorithms import landscape_comparison
from hwa_jax.errors import UserError
from hwa_jax.report.landscape_claims import density, effects, error_barrier, lower_by, share_below
from hwa_jax.report.landscape_comparison import write_comparison

WEIGHTS = {"hwa": ("plain", "offline", "inner", "outer", "HWA"), "swamp": ("particle 0", "average")}


def curvature(value):
    return {"loss": 0.1, "trace": 10 * value, "trace_error": 0.1, "eigenvalues": [value, 0.5 * value], "residuals": [0.0, 0.0],
            "sharpness": 0.01 * value, "sharpness_error": 0.001}


def segment(a, b, barrier):
    return {"from": a, "to": b, "position": [0.0, 0.5, 1.0], "loss": [0.3, 0.3 + barrier, 0.3], "error": [0.1, 0.1 + barrier, 0.1],
            "loss_barrier": barrier, "error_barrier": barrier}


def level(study, flat, barrier, cycle=None, sparsity=0.0):
    """The last of the weights has `flat` times the curvature of the others."""
    names = WEIGHTS[study]
    hull = None if study == "hwa" else {
        "corners": {f"particle {n}": {"loss": loss, "error": 0.1} for n, loss in enumerate((0.2, 0.4))},
        "centre": {"loss": 0.25, "error": 0.1}, "inside": {"loss": [0.25, 0.26, 0.29, 0.5], "error": [0.1] * 4}, "concentration": 1.0,
    }
    return {
        "cycle": cycle, "sparsity": sparsity, "metrics": {name: {"accuracy": 0.9, "nll": 0.3, "ece": 0.0} for name in names},
        "curvature": {name: curvature(flat if name == names[-1] else 1.0) for name in names}, "hull": hull,
        "connectivity": {"compared": [segment("a", "b", barrier), segment("a", "c", 3 * barrier)],
                         "successive": [segment("first", "last", 0.0)] if study == "hwa" else []},
    }


def cells(flat=0.5, barrier=0.005):
    """Three seeds of a flat average; its curvature has a jitter of 2 points, so that intervals have a width."""
    found = []
    for seed, jitter in enumerate((0.0, 0.02, -0.02)):
        about = {"architecture": "mlp", "seed": seed, "num_train": 100, "environment": {"git_commit": None}}
        found += [
            {"study": "hwa", **about, "levels": [level("hwa", flat + jitter, barrier)]},
            {"study": "swamp", **about, "levels": [level("swamp", flat + jitter, barrier, cycle, sparsity) for cycle, sparsity in ((0, 0.0), (2, 0.87))]},
        ]
    return found


def found(claim, text, all_cells, setting="mlp"):
    (effect,) = [e for e in effects(all_cells) if (e.claim, e.text, e.setting) == (claim, text, setting)]
    return effect


def test_a_flatter_average_is_shown_in_percent():
    effect = found("H7", "Hessian trace of HWA below that of plain", cells())
    # 50 % lower, jitter of 2 points: 4.303 * 2 / sqrt(3).
    assert effect.effect.mean == pytest.approx(50.0) and effect.effect.half_width == pytest.approx(4.97, abs=0.01)
    assert (effect.effect.n, effect.unit, effect.verdict) == (3, "%", "shown")
    for name in ("largest eigenvalue", "adaptive sharpness"):
        assert found("H7", f"{name} of HWA below that of outer", cells()).effect.mean == pytest.approx(50.0)
    # Both of these have the same curvature.
    assert found("H7", "Hessian trace of outer below that of inner", cells()).effect.mean == 0


def test_a_sharper_average_contradicts():
    assert found("H7", "Hessian trace of HWA below that of plain", cells(flat=1.5)).verdict == "contradicted"
    assert found("S5", "adaptive sharpness of the average below that of a particle", cells(flat=1.5), "mlp, 13 % left").verdict == "contradicted"


def test_barriers_are_means_over_pairs_against_two_points():
    # 0.5 and 1.5 points: 1 on average, 1 below the limit of 2.
    text = "error barrier between replicas before they meet, below 2 points"
    assert found("H7", text, cells()).effect.mean == pytest.approx(1.0)
    assert found("H7", "error barrier between the window's ends, below 2 points", cells()).effect.mean == pytest.approx(2.0)
    high = found("S5", "error barrier between particles, below 2 points", cells(barrier=0.05), "mlp, 100 % left")
    assert high.effect.mean == pytest.approx(-8.0) and high.verdict == "contradicted"


def test_the_share_of_the_hull_is_that_below_the_corners_mean():
    # Corners 0.2 and 0.4: three of four points are below 0.3.
    one = level("swamp", 0.5, 0.0)
    assert share_below(one) == 75.0 and error_barrier(one, "compared") == 0.0
    assert found("S5", "share of the hull with less loss than the corners, above half", cells(), "mlp, 13 % left").effect.mean == 25.0


def test_levels_and_ratios():
    assert density({"sparsity": 0.0}) == "100 % left" and density({"sparsity": 0.9922}) == "0.78 % left"
    levels = [level("hwa", 0.25, 0.0), level("hwa", 2.0, 0.0)]
    assert lower_by(levels, lambda row: row["trace"], "HWA", "plain") == [75.0, -100.0]


@pytest.mark.parametrize("studies", [("hwa",), ("swamp",), ("hwa", "swamp")])
def test_the_report_has_what_there_is(tmp_path, studies):
    chosen = [cell for cell in cells() if cell["study"] in studies]
    path = write_comparison(chosen, tmp_path, title="Flat", meta={"description": "What it is.", "command": "python made.py"})
    text = path.read_text()
    assert text.startswith("# Flat\n\nWhat it is.") and "python made.py" in text
    assert ("| mlp     | HWA " in text, "13 % left" in text) == ("hwa" in studies, "swamp" in studies)
    for image in [line.split("](")[1][:-1] for line in text.splitlines() if line.startswith("![")]:
        assert (tmp_path / image).stat().st_size > 5000, image
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["cells"]) == 3 * len(studies)
    assert {row["claim"] for row in results["summary"]} == {{"hwa": "H7", "swamp": "S5"}[study] for study in studies}


def small_study():
    """An MLP on digits; trainings of three epochs and a half."""
    config = landscape_comparison.default_study()
    for base in (config.base, config.pruning):
        base.num_devices = 1
        base.model.name = "mlp"
        base.data.update({"num_train": 120, "validation_fraction": 0.25})
        base.training.update({"batch_size": 10, "duration": "3 epochs"})
        base.evaluation.update({"batch_size": 50, "train_examples": 50})
    config.base.training.duration = "26 steps"
    config.base.hwa.window_size = 2
    config.pruning.swamp.update({"num_particles": 2, "fraction": 0.5, "target_sparsity": 0.5, "ticket_duration": "1 epoch", "swa_start": "40%"})
    config.seeds, config.levels = (0,), (1,)
    config.architectures = ConfigDict({
        "mlp": {"instruments": {"examples": 60, "curvature_examples": 40, "positions": 3, "hull_points": 5, "samples": 2, "iterations": 3}},
    })
    return config


def test_an_unknown_network_is_one_clear_line(tmp_path):
    ended = call("compare_landscape.py", f"--config={ROOT}/configs/compare_landscape.py:resnet9", f"--workdir={tmp_path}/run")
    assert (ended.code, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: flag --config=") and line.endswith("resnet9: write one of cnn_s, resnet8 behind the colon")
    assert not (tmp_path / "run").exists()


def test_other_groups_are_refused(tmp_path):
    config = small_study()
    config.architectures = ConfigDict({"mlp": {"model": {"name": "mlp"}}})
    with pytest.raises(UserError, match="architectures.mlp.model: give fields of base, pruning and instruments"):
        landscape_comparison.run(config, tmp_path)
    config.architectures = ConfigDict()
    with pytest.raises(UserError, match="architectures: the study needs at least one"):
        landscape_comparison.run(config, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_a_small_study(tmp_path, monkeypatch):
    made = landscape_comparison.run(small_study(), tmp_path)
    hwa, swamp = made
    assert (hwa["study"], swamp["study"], hwa["num_train"], swamp["num_train"]) == ("hwa", "swamp", 90, 86)
    (one,) = hwa["levels"]
    assert set(one["curvature"]) == set(one["metrics"]) == set(WEIGHTS["hwa"]) and one["hull"] is None
    # One step before a synchronization the replicas differ, and each pair of ends is one segment.
    assert [(pair["from"], pair["to"]) for pair in one["connectivity"]["compared"]] == [("inner 0", "inner 1")]
    assert [(pair["from"], pair["to"]) for pair in one["connectivity"]["successive"]] == [("step 18", "step 26")]
    assert one["curvature"]["inner"]["trace"] != one["curvature"]["outer"]["trace"]
    (level,) = swamp["levels"]
    assert (level["cycle"], level["sparsity"]) == (1, 0.5) and set(level["curvature"]) == set(WEIGHTS["swamp"])
    assert len(level["hull"]["inside"]["loss"]) == 5 and set(level["hull"]["corners"]) == {"particle 0", "particle 1"}
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == ["hwa-mlp-seed0.json", "swamp-mlp-seed0.json"]
    assert not (tmp_path / "scratch").exists()
    # The same call trains nothing again.
    monkeypatch.setattr(landscape_comparison.hwa, "run", None)
    monkeypatch.setattr(landscape_comparison.swamp, "run", None)
    assert landscape_comparison.run(small_study(), tmp_path) == made
    assert len(effects(made)) == 17 + 5
