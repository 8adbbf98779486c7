"""The sweep: which trainings it needs, what it averages afterwards, that it resumes by cell, and the region of the best."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwa_jax.algorithms import hwa, hwa_sweep
from hwa_jax.errors import UserError
from hwa_jax.report.heat_maps import HeatMap, heat_map
from hwa_jax.report.sweep import Setting, accuracies, best_table, effects, region, write_sweep
from hwa_jax.training.weights import recalibrated
from pictures import decoded
from programs import call, config_file
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


def tiny():
    config = hwa_sweep.default_sweep()
    config.base.data.update({"num_train": 240, "validation_fraction": 0.25})
    config.base.model.name = "mlp"
    config.base.num_devices = 1
    config.base.training.update({"batch_size": 60, "duration": "4 epochs"})
    config.base.hwa.window_size = 2
    config.base.evaluation.update({"every": "4 epochs", "batch_size": 60, "train_examples": 60})
    config.base.checkpoint.every = "4 epochs"
    config.seeds, config.num_replicas, config.sync_periods, config.schedules = (0, 1), (1, 2), ("1 step", "2 epochs"), ("constant",)
    config.strides, config.starts = (1, 2), ("0%", "50%")
    return config


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep") / "run"


@pytest.fixture(scope="module")
def cells(directory, compiled_once):  # noqa: F811
    return hwa_sweep.run(tiny(), directory)


def test_one_replica_needs_one_period(cells):
    """3 steps an epoch; K = 2 with H of 1 step and of 2 epochs, which is pushed every 2 epochs."""
    assert [(c["seed"], c["num_replicas"], c["sync_period"], c["push_period"]) for c in cells] == [
        (seed, *rest) for seed in (0, 1) for rest in ((1, 3, 3), (2, 1, 3), (2, 6, 6))
    ]


def test_windows_are_means_of_stored_members(cells, tmp_path):
    """Members of 3, 6, 9 and 12 steps. I = 2 with stride 2: of 6 and 12."""
    setup = hwa.prepare(hwa_sweep.training_of(tiny(), 1, "1 epoch", "constant", 1))
    results = hwa.run(setup, tmp_path / "run")
    with hwa.open_window(setup, tmp_path / "run") as window:
        assert window.stored_steps == [3, 6, 9, 12]
        members = [window.member(step) for step in (6, 12)]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *members)
    [cell] = [c for c in cells if (c["seed"], c["num_replicas"]) == (1, 1)]
    found = {(w["window_size"], w["stride"]): w for w in cell["windows"]}
    assert set(found) == {(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2)}
    expected = setup.evaluator.one(*recalibrated(setup, *mean), setup.validation)
    assert found[2, 2]["nll"] == pytest.approx(expected["nll"], rel=1e-5)
    assert found[2, 1]["accuracy"] == results["final"]["hwa"]["validation"]["accuracy"]
    assert found[1, 1]["accuracy"] == found[1, 2]["accuracy"] == results["final"]["outer"]["validation"]["accuracy"]
    assert cell["test"]["base"] == results["final"]["hwa"]["test"]["accuracy"] and cell["test"]["outer"] == results["final"]["outer"]["test"]["accuracy"]
    # From the start on all four; from half on, later than 6 steps, two: every second of them is one.
    assert cell["starts"] == {"0%": {"1": 4, "2": 2}, "50%": {"1": 2, "2": 1}}


def test_finished_cells_are_not_trained_again(cells, directory, monkeypatch):
    (directory / "cells" / "k2-h1_step-constant-seed1.json").unlink()
    trained, train = [], hwa.run
    monkeypatch.setattr(hwa, "run", lambda setup, *args: trained.append(setup.config.seed) or train(setup, *args))
    again = hwa_sweep.run(tiny(), directory)
    assert trained == [1]
    assert [{**cell, "seconds": 0} for cell in again] == [{**cell, "seconds": 0} for cell in cells]
    assert not (directory / "scratch").exists()


def test_a_training_that_diverged_is_a_cell_without_windows(cells, directory, tmp_path):
    config = tiny()
    config.base.optimizer.learning_rate = 1e30
    config.seeds, config.num_replicas = (0,), (1,)
    [cell] = hwa_sweep.run(config, tmp_path / "run")
    assert cell["windows"] == [] and "not finite" in cell["diverged"]
    text = write_sweep([*cells, cell | {"num_replicas": 9}], tmp_path / "report", title="t", window_size=2, meta={"description": "d"}).read_text()
    assert "Diverged, and left out above: K=9, H=3, constant, seed 0." in text
    assert "| constant | –" in best_table([cell])


def test_the_report_has_heat_maps_of_every_cut(cells, tmp_path):
    report = write_sweep(cells, tmp_path / "report", title="A sweep", window_size=2, meta={"description": "d", "command": "c"})
    text = report.read_text()
    pictures = sorted(path.name for path in report.parent.glob("*.png"))
    assert pictures == [f"constant_{name}.png" for name in (
        "num_replicas_sync_period", "start_stride", "window_size_num_replicas", "window_size_stride", "window_size_sync_period")]
    for name in pictures:
        assert f"]({name})" in text and 0.01 < (decoded(report.parent / name) < 250).any(axis=2).mean() < 0.95
    assert "K=2, H=6, I=2 - the best" in text and "| constant |" in text
    assert len(json.loads((report.parent / "results.json").read_text())["cells"]) == 6


def test_the_program(tmp_path):
    file = config_file(tmp_path, "test_hwa_sweep")
    ended = call("sweep_hwa.py", f"--config={file}", f"--workdir={tmp_path / 'run'}", "--config.seeds=(0,)", "--config.num_replicas=(1,)")
    assert ended.code == 0 and "| schedule |" in ended.stdout and (tmp_path / "run" / "report.md").exists()


POINT = Setting("constant", 2, 1, 4, 1)


def test_the_region_by_hand():
    """Differences to the best: -1, -1 (n = 2, no spread: outside) and 0, -2 (mean -1, half width 12.7: inside)."""
    outside, inside = POINT._replace(window_size=2), POINT._replace(window_size=8)
    found = region({POINT: {0: 90.0, 1: 92.0}, outside: {0: 89.0, 1: 91.0}, inside: {0: 90.0, 1: 90.0}}, "constant")
    assert found.best == POINT and [found.contains(s) for s in (POINT, outside, inside)] == [True, False, True]


def test_effects_of_the_page_by_hand():
    """On validation I = 8 is 10 points worse than I = 4 in both seeds: one of two settings is as good as the best."""
    about = {"schedule": "constant", "num_replicas": 2, "sync_period": 1, "diverged": None}
    windows = [{"window_size": 4, "stride": 1, "accuracy": 0.9}, {"window_size": 8, "stride": 1, "accuracy": 0.8}]
    cells = [about | {"seed": seed, "windows": windows, "test": {"outer": 0.8, "base": base, "chosen": 0.9}} for seed, base in ((0, 0.81), (1, 0.83))]
    (share,) = effects([*cells, about | {"seed": 2, "windows": [], "diverged": "at step 3"}])
    assert (share.text, share.setting, share.effect.mean, share.effect.n) == ("settings as good as the best, 1 of 2", "constant", 50.0, 2)
    assert share.verdict == "not judged"


def test_the_test_table_says_how_many_were_averaged(tmp_path):
    """I = 8: the training with H = 150 has 4 pushes, that with H = 30 has 20."""
    cells = [
        {"schedule": "constant", "num_replicas": 2, "sync_period": period, "seed": seed, "num_train": 3000, "environment": {"git_commit": None}, "diverged": None,
         "windows": [{"window_size": size, "stride": stride, "accuracy": 0.9} for size, stride in ((1, 1), (pushes, 1), (pushes // 2, 2))],
         "starts": {"0%": {"1": pushes, "2": pushes // 2}}, "test": {"outer": 0.8, "base": 0.81, "chosen": 0.82}}
        for period, pushes in ((30, 20), (150, 4)) for seed in (0, 1)
    ]
    text = write_sweep(cells, tmp_path, title="Sweep", window_size=8, meta={"description": "Two trainings."}).read_text()
    lines = [[entry.strip() for entry in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| constant |  2 |")]
    assert [line[2:6] for line in lines] == [["30", "80.00 ± 0.00", "8", "+1.00 ± 0.00"], ["150", "80.00 ± 0.00", "all 4", "+1.00 ± 0.00"]]


def test_settings_without_all_seeds_are_not_the_best():
    lucky = POINT._replace(stride=2)
    found = region({POINT: {0: 90.0, 1: 92.0}, lucky: {0: 99.0}}, "constant")
    assert found.best == POINT and lucky not in found.differences
    assert region({POINT: {0: 90.0}}, "cosine") is None


@given(st.dictionaries(st.integers(1, 9), st.lists(st.floats(0, 100), min_size=3, max_size=3), min_size=1))
def test_the_best_is_in_its_own_region_and_has_the_highest_mean(values):
    settings_ = {POINT._replace(window_size=size): dict(enumerate(seeds)) for size, seeds in values.items()}
    found = region(settings_, "constant")
    assert found.contains(found.best)
    assert np.mean(list(settings_[found.best].values())) == max(np.mean(list(seeds.values())) for seeds in settings_.values())


def test_accuracies_are_percent_by_setting_and_seed():
    cell = {"schedule": "constant", "num_replicas": 2, "sync_period": 1, "seed": 3, "windows": [{"window_size": 4, "stride": 1, "accuracy": 0.5}]}
    assert accuracies([cell]) == {POINT: {3: 50.0}}


def test_a_heat_map_marks_and_leaves_gaps(tmp_path):
    values = np.array([[90.0, np.nan], [80.0, 91.0]])
    panel = HeatMap("K", ["1", "2"], "H", ["1", "10"], values, values > 90.5)
    path = heat_map(panel, tmp_path / "map.png", title="t", subtitle="s", label="%")
    assert (decoded(path) < 250).any()


@pytest.mark.parametrize("fields, words", [
    ({"seeds": ()}, "seeds=()"), ({"strides": (2,)}, "strides=(2,)"), ({"strides": (1, 0)}, "strides=(1, 0)"),
    ({"starts": ("3 epochs",)}, "starts='3 epochs'"), ({"sync_periods": ("often",)}, "sync_periods='often'"),
])
def test_fields_that_do_not_fit(tmp_path, fields, words):
    config = tiny()
    config.update(fields)
    with pytest.raises(UserError) as raised:
        hwa_sweep.run(config, tmp_path / "run")
    assert words in str(raised.value)


def test_windows_of_a_base_that_does_not_keep_them_are_refused(tmp_path):
    config = tiny()
    config.base.hwa.keep_pushes = 3
    with pytest.raises(UserError, match="base.hwa.keep_pushes=3"):
        hwa_sweep.run(config, tmp_path / "run")
