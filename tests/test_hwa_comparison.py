"""The comparison program: which trainings it plans, that it resumes by cell, and what its figures are."""

import json

import jax
import numpy as np
import pytest

from hwa_jax.algorithms import hwa, hwa_comparison, hwa_tuning
from hwa_jax.errors import UserError
from hwa_jax.report.aggregation import aggregate
from hwa_jax.report.hwa_claims import effects
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401


def tiny():
    config = hwa_comparison.default_comparison()
    config.base.data.update({"num_train": 240, "validation_fraction": 0.25})
    config.base.model.name = "mlp"
    config.base.num_devices = 1
    config.base.training.update({"batch_size": 60, "duration": "4 epochs", "ema_decay": 0.9})
    config.base.evaluation.every = "4 epochs"
    config.base.hwa.update({"window_size": 2})
    config.base.evaluation.update({"batch_size": 60, "train_examples": 60})
    config.base.checkpoint.every = "4 epochs"
    config.seeds = (0, 1)
    config.seeds_at_once = 2
    config.optimizers = {"sgd": {"learning_rates": (0.001, 0.1), "weight_decays": (0.0,)}}
    config.schedules = ("constant",)
    return config


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison") / "run"


@pytest.fixture(scope="module")
def cells(directory, compiled_once):  # noqa: F811
    """Fourteen trainings of one network: what the first compiles serves the others."""
    return hwa_comparison.run(tiny(), directory)


def chosen(plain=0.1, offline=0.1, hwa_rate=0.1):
    rates = {"plain": plain, "offline": offline, "hwa": hwa_rate}
    return {"sgd/constant": {name: {"learning_rate": rate, "weight_decay": 0.0} for name, rate in rates.items()}}


def test_one_training_serves_plain_and_offline_where_they_chose_alike():
    planned = list(hwa_comparison.trajectories(tiny(), chosen()))
    assert [t.name for t in planned if t.config.seed == 0] == [
        f"{kind}-sgd-constant-seed0" for kind in ("plain", "plain_xk", "hwa", "lookahead", "sam")
    ]
    assert set(planned[0].weights) == {"plain", "ema", "offline_window", "offline_uniform"}


def test_without_an_exponential_average_offline_has_no_such_row():
    config = tiny()
    config.base.training.ema_decay = 0.0
    config.trajectories = ("plain", "plain_xk", "offline_xk")
    short, long = (t for t in hwa_comparison.trajectories(config, chosen()) if t.config.seed == 0)
    assert set(short.weights) == {"plain"} and set(long.weights) == {"plain", "offline_window", "offline_uniform"}


def test_plain_and_offline_train_apart_where_they_chose_differently():
    planned = {t.name: t for t in hwa_comparison.trajectories(tiny(), chosen(offline=0.2, hwa_rate=0.3))}
    rates = {name.split("-")[0]: t.config.optimizer.learning_rate for name, t in planned.items()}
    assert rates == {
        "plain": 0.1, "plain_xk": 0.1, "offline": 0.2, "offline_xk": 0.2, "hwa": 0.3, "lookahead": 0.1, "sam": 0.1
    }
    assert set(planned["plain-sgd-constant-seed0"].weights) == {"plain"}
    assert planned["plain_xk-sgd-constant-seed0"].config.training.duration == "8 epochs"
    assert planned["hwa-sgd-constant-seed0"].config.hwa.num_replicas == 2
    assert planned["offline-sgd-constant-seed0"].config.hwa.num_replicas == 1


def test_studies_vary_hwa_and_the_training_size():
    config = tiny()
    config.variants = {"sync_1": {"sync_period": "1 step", "push_every": "1 epoch"}}
    config.train_sizes = (120,)
    names = [t.name for t in hwa_comparison.trajectories(config, chosen()) if t.config.seed == 1]
    assert names[-4:] == [
        "hwa-sgd-constant-seed1-sync_1", "plain-sgd-constant-seed1-n120", "plain_xk-sgd-constant-seed1-n120",
        "hwa-sgd-constant-seed1-n120",
    ]


def test_tuning_chooses_the_better_rate_and_publishes_the_grid(cells, directory):
    stored = json.loads((directory / "tuning.json").read_text())
    assert [(row["kind"], row["learning_rate"]) for row in stored["grid"]] == [
        ("plain", 0.001), ("plain", 0.1), ("hwa", 0.001), ("hwa", 0.1)
    ]
    # The choice is by validation accuracy: the grid has no other figures. In four epochs a rate of 0.001 learns next to nothing.
    assert {name for row in stored["grid"] for name in row} == {
        "kind", "optimizer", "schedule", "learning_rate", "weight_decay", "seed", "plain", "offline", "hwa"
    }
    assert all(choice["learning_rate"] == 0.1 for choice in hwa_tuning.tuned(directory)["chosen"]["sgd/constant"].values())


def test_every_method_and_seed_has_a_cell(cells):
    assert {(cell["method"], cell["seed"]) for cell in cells} == {
        (method, seed) for seed in (0, 1)
        for method in ("plain", "ema", "offline_window", "offline_uniform", "online", "hwa", "lookahead", "sam")
    }
    assert all(row.verdict for section in aggregate(cells) for row in section.rows)
    assert {effect.claim for effect in effects(cells)} == {"H1", "H2", "H8"}


def test_compute_counts_replicas_and_gradients(cells):
    compute = {(cell["method"], cell["epochs_per_replica"]): cell["compute_epochs"] for cell in cells}
    assert compute[("plain", 4)] == 4 and compute[("plain", 8)] == 8
    assert compute[("hwa", 4)] == 8 and compute[("sam", 4)] == 8


def test_uniform_average_is_the_mean_of_the_later_half(cells, tmp_path):
    """Steps 12 and 16 of 16, averaged here by hand from the stored window and evaluated."""
    trajectory = next(t for t in hwa_comparison.trajectories(tiny(), chosen()) if t.name == "plain-sgd-constant-seed0")
    setup = hwa.prepare(trajectory.config)
    hwa.run(setup, tmp_path / "run")
    with hwa.open_window(setup, tmp_path / "run") as window:
        late = [window.member(step) for step in (9, 12)]
        assert window.stored_steps == [3, 6, 9, 12]
    params = {
        layer: {leaf: np.mean([m.params[layer][leaf] for m in late], axis=0, dtype=np.float64).astype(np.float32) for leaf in leaves}
        for layer, leaves in late[0].params.items()
    }
    expected = setup.evaluator.one(params, {}, setup.test)
    found = next(c for c in cells if (c["method"], c["seed"], c["epochs_per_replica"]) == ("offline_uniform", 0, 4))
    assert found["test"]["accuracy"] == expected["accuracy"]
    assert found["test"]["nll"] == pytest.approx(expected["nll"], rel=1e-5)


def test_finished_cells_are_not_trained_again(cells, directory, monkeypatch):
    (directory / "cells" / "sam-sgd-constant-seed1.json").unlink()
    trained = []
    train = hwa.algorithm
    monkeypatch.setattr(hwa, "algorithm", lambda setup, *args, **kwargs: trained.append(setup.config) or train(setup, *args, **kwargs))
    again = hwa_comparison.run(tiny(), directory)
    assert [(config.optimizer.wrapper, config.seed) for config in trained] == [("sam", 1)]
    # It was trained with seed 0 before, and now alone.
    assert_same_figures(again, cells)
    assert not (directory / "scratch").exists()


def test_seeds_train_together_as_one_by_one(cells, tmp_path, monkeypatch):
    groups, together = [], hwa_comparison.together
    monkeypatch.setattr(hwa_comparison, "together", lambda begin: groups.append(len(begin)) or together(begin))
    config = tiny()
    config.trajectories, config.seeds_at_once = ("plain", "offline", "hwa"), 1
    config.tuning_seeds, config.optimizers.sgd.learning_rates = (), (0.1,)
    found = hwa_comparison.run(config, tmp_path / "run")
    assert groups == [1] * 4
    expected = [cell for cell in cells if cell["epochs_per_replica"] == 4 and cell["method"] not in ("lookahead", "sam")]
    assert_same_figures(found, expected)
    for path in (tmp_path / "run" / "cells").glob("*.json"):
        path.unlink()
    config.seeds_at_once = 2
    assert_same_figures(hwa_comparison.run(config, tmp_path / "run"), expected)
    assert groups[4:] == [2, 2]


def assert_same_figures(found, expected):
    """Cells of the same names and numbers, but for rounding and time."""
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected):
        assert mine.keys() == theirs.keys()
        figures, others = ([leaf for _, leaf in jax.tree.leaves_with_path({**cell, "seconds": 0})] for cell in (mine, theirs))
        assert figures == [pytest.approx(leaf, rel=1e-4) if isinstance(leaf, float) else leaf for leaf in others]


def test_another_base_is_refused_and_more_seeds_are_not(cells, directory):
    config = tiny()
    config.base.hwa.window_size = 3
    with pytest.raises(UserError, match="base.hwa.window_size was 2, now 3"):
        hwa_comparison.run(config, directory)
    config = tiny()
    config.seeds = (0,)
    assert {cell["seed"] for cell in hwa_comparison.run(config, directory)} == {0}


def test_unknown_trajectory_is_named(tmp_path):
    config = tiny()
    config.trajectories = ("plane",)
    with pytest.raises(UserError, match="trajectories='plane': give some of plain"):
        hwa_comparison.run(config, tmp_path / "run")
