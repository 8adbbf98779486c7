"""Trainings in which averaging hurts: what is planned, what is true, how alarms are counted, and the report."""

import json

import pytest
from ml_collections import ConfigDict

from hwa_jax.algorithms import averaging_hurts, hwa
from hwa_jax.errors import UserError
from hwa_jax.report.averaging_hurts import alarms, alarms_table, case_table, effects
from pictures import decoded
from programs import call, config_file
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


def tiny():
    config = averaging_hurts.default_study()
    config.description = "Tiny."
    config.base.num_devices = 1
    config.base.data.update({"num_train": 240, "validation_fraction": 0.25})
    config.base.model.name = "mlp"
    config.base.training.update({"batch_size": 30, "duration": "4 epochs"})
    config.base.evaluation.update({"every": "4 epochs", "batch_size": 60, "train_examples": 60})
    config.base.checkpoint.every = "4 epochs"
    config.test_examples, config.positions = 60, 3
    config.subjects = ConfigDict({"mine": {"role": "setting", "seeds": (7,)}, "yours": {"role": "judging", "seeds": (0,), "model": {"name": "mlp"}}})
    config.cases = ConfigDict({
        "healthy": {}, "early": {"optimizer": {"learning_rate": 0.01}},
        "apart": {"training": {"duration": "13 steps"}, "hwa": {"num_replicas": 2, "sync_period": "4 steps"}},
        "stale": {"model": {"norm": "batch"}},
    })
    config.alone = ("apart",)
    return config


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("hurts") / "run"


@pytest.fixture(scope="module")
def ended(directory, compiled_once):  # noqa: F811
    return call("when_averaging_hurts.py", f"--config={config_file(directory.parent, 'test_averaging_hurts')}", f"--workdir={directory}")


@pytest.fixture(scope="module")
def cells(ended, directory):
    return averaging_hurts.run(tiny(), directory)


def cell_of(cells, case, subject="yours"):
    [found] = [cell for cell in cells if (cell["case"], cell["subject"]) == (case, subject)]
    return found


def test_the_report_and_its_plots(ended, directory):
    assert ended.code == 0 and "right silence" in ended.stdout
    text = (directory / "report.md").read_text()
    for name in ("exposure", *(f"{name}_{subject}" for name in ("gap", "sizes", "ends") for subject in ("mine", "yours"))):
        assert f"]({name}.png)" in text
        assert 0.01 < (decoded(directory / f"{name}.png") < 250).any(axis=2).mean() < 0.9
    assert "## yours, for judging" in text and "standard errors of the paired gap" in text
    assert len(json.loads((directory / "results.json").read_text())["cells"]) == 10


def test_what_is_true_is_measured_on_the_test_split(cells, tmp_path):
    setup = hwa.prepare(averaging_hurts.training_of(tiny(), "yours", "healthy", 0))
    results = hwa.run(setup, tmp_path / "run")
    cell = cell_of(cells, "healthy")
    split = setup.test.select(slice(60))
    with hwa.open_window(setup, tmp_path / "run") as window:
        average, latest = (setup.evaluator.one(*window.mean(size=size), split) for size in (10, 1))
    assert cell["pushes"][-1]["test_gap"] == pytest.approx(average["nll"] - latest["nll"], abs=1e-5)
    assert cell["accuracy"]["average"] == average["accuracy"] and cell["accuracy"]["latest"] == latest["accuracy"]
    assert [point["window_size"] for point in cell["by_size"]] == [1, 2, 3, 4] and cell["by_size"][0]["test_gap"] == 0
    assert cell["chosen"] in (1, 2, 3, 4) and results["steps"] == 24
    assert len(cell["path"]["loss"]) == 3 and cell["path"]["loss"][-1] == pytest.approx(latest["nll"], abs=1e-5)


def test_cases_differ_from_the_base_as_they_say(cells):
    assert averaging_hurts.training_of(tiny(), "yours", "early", 0).optimizer.learning_rate == 0.01
    apart = averaging_hurts.training_of(tiny(), "mine", "apart", 7)
    assert (apart.training.duration, apart.training.batch_size, apart.seed) == ("13 steps", 30, 7)
    alone = averaging_hurts.training_of(tiny(), "yours", "apart alone", 0)
    assert (alone.hwa.num_replicas, alone.training.duration, alone.hwa.sync_period) == (1, "13 steps", "4 steps")
    assert cell_of(cells, "apart")["replicas"] is not None and cell_of(cells, "apart alone")["replicas"] is None
    assert cell_of(cells, "healthy")["replicas"] is None
    assert cell_of(cells, "stale")["pushes"][-1]["test_stale_gap"] is not None and cell_of(cells, "early")["pushes"][-1]["test_stale_gap"] is None


def test_finished_cells_are_not_trained_again(cells, directory, monkeypatch):
    monkeypatch.setattr(hwa, "run", lambda *args: pytest.fail("trained"))
    assert averaging_hurts.run(tiny(), directory) == cells


def push(gap, error, said, stale=None, members=2):
    return {"test_gap": gap, "test_gap_error": error, "warnings": said, "test_stale_gap": stale, "ends_gap": None if members == 1 else 0.1}


def test_alarms_are_counted_by_what_is_true():
    pushes = [
        push(0.0, 0.0, [], members=1),  # one member: nothing to judge
        push(0.3, 0.1, ["early"]), push(-0.1, 0.1, ["long"]), push(0.1, 0.1, ["decay"]),
        push(0.3, 0.1, []), push(-0.1, 0.1, ["stale"]), push(0.1, 0.1, ["apart"]), push(0.0, 0.1, ["basins"]),
    ]
    cell = {"subject": "s", "role": "judging", "case": "early", "seed": 0, "pushes": pushes, "replicas": None}
    [counted] = alarms([cell])
    assert counted == {
        "subject": "s", "role": "judging", "kind": "average", "right alarm": 1, "false alarm": 2, "unclear alarm": 1,
        "missed": 1, "right silence": 1, "unclear silence": 1,
    }
    cell |= {"replicas": 0.5, "pushes": [push(0.0, 0.1, [], stale=0.5), push(0.0, 0.1, ["apart", "stale"], stale=0.01)]}
    by_kind = {row["kind"]: row for row in alarms([cell])}
    assert by_kind["stale"]["missed"] == 1 and by_kind["stale"]["false alarm"] == 1 and by_kind["apart"]["right alarm"] == 1
    table = alarms_table([cell, cell | {"subject": "t"}])
    assert table.count("all for judging") == 3


def priced(case, seed, latest, average):
    """The loss costs as many hundredths of a nat as points."""
    return {"subject": "s", "case": case, "seed": seed, "accuracy": {"latest": latest, "average": average}, "pushes": [{"test_gap": latest - average}]}


def test_what_averaging_costs_with_and_without_replicas():
    """Alone 4 and 6 points, in HWA 1 and 2: less by 3 and 4."""
    cells = [
        priced("early", 0, 0.80, 0.79), priced("early", 1, 0.80, 0.78), priced("early alone", 0, 0.70, 0.66), priced("early alone", 1, 0.70, 0.64),
        priced("healthy", 0, 0.8, 0.9), priced("healthy", 1, 0.8, 0.9),
    ]
    alone, ours, less, *in_loss = effects(cells)
    assert [effect.effect.mean for effect in in_loss] == pytest.approx([50, 15, 35]) and {effect.unit for effect in in_loss} == {"10⁻³ nats"}
    assert [effect.effect.mean for effect in (alone, ours, less)] == pytest.approx([5.0, 1.5, 3.5])
    assert (alone.text, less.text) == ("early, offline averaging alone: accuracy cost of averaging", "early: accuracy cost of averaging, alone - HWA")
    assert {(e.claim, e.setting, e.effect.n) for e in (alone, ours, less)} == {("H5", "s", 2)}
    # 12.706 * 0.7071 / sqrt(2) = 6.35 points: two seeds do not show it.
    assert less.effect.half_width == pytest.approx(6.35, abs=0.01) and less.verdict == "not shown"
    assert effects(cells[:2]) == []


def test_one_seed_has_no_interval(cells):
    assert "(n=1)" in case_table(cells) and "nan" not in case_table(cells)


@pytest.mark.parametrize("change, message", [
    (lambda config: config.subjects.mine.update(role="guessing"), "subjects.mine.role='guessing': give one of setting, judging"),
    (lambda config: config.subjects.mine.update(seeds=(0,)), "seed 0 is for setting thresholds and for judging them"),
    (lambda config: config.update(alone=("erly",)), "alone='erly': give some of apart, early, healthy, stale"),
    (lambda config: config.base.evaluation.update(averaging_health=False), "the watch to be on"),
])
def test_studies_that_do_not_fit(tmp_path, change, message):
    config = tiny()
    change(config)
    with pytest.raises(UserError, match=message):
        averaging_hurts.run(config, tmp_path / "run")
