"""The comparison with SWAMP: which trainings it plans, that they are paired, what they cost, and that it resumes by cell."""

import json
import math

import numpy as np
import pytest
from pruning_runs import SMALL_PRUNING

from hwa_jax.algorithms import given_masks, imp, swamp, swamp_comparison, swamp_methods
from hwa_jax.errors import UserError
from hwa_jax.report.sparsity_comparison import write_comparison
from hwa_jax.storage import atomic
from hwa_jax.storage.safetensors import named_leaves
from hwa_jax.training.config import differences
from hwa_jax.training.interruption import Interrupted
from hwa_jax.training.together import alone
from training_runs import compilation_cache_dir, compiled_once, set_fields  # noqa: F401

RATES = {"learning_rate": 0.05, "swa_learning_rate": 0.02}
TICKET = 0.5  # of an epoch of 8 steps; a cycle is one epoch
FEW = ("imp", "swamp", "swamp_plus", "swamp_mask", "one_shot", "random", "imp_early", "imp_ensemble")


def tiny():
    """Three levels, N=3; few is 2 and many is 4."""
    config = swamp_comparison.default_comparison()
    fields = SMALL_PRUNING | {"swamp.num_particles": 3, "swamp.fraction": 0.5, "swamp.target_sparsity": 0.7, "swamp.gate_fraction": 0.1}
    # The gate takes 10 of 99 images.
    set_fields(config.base, fields | {"data.num_train": 132})
    config.seeds, config.plus_cycles, config.many_particles, config.methods = (0,), 1, 4, FEW
    config.learning_rates, config.swa_learning_rates, config.tuning_sparsity = (1e-5, 0.05), (0.02,), 0.7
    return config


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("comparison") / "run"


@pytest.fixture(scope="module")
def cells(directory, compiled_once):  # noqa: F811
    return {cell["method"]: cell for cell in swamp_comparison.run(tiny(), directory)}


def test_methods_differ_in_the_fields_they_are_named_for():
    def swamp_fields(method):
        return swamp_methods.training_of(tiny(), method, 7, RATES).swamp

    imp_long = swamp_methods.training_of(tiny(), "imp_long", 7, RATES)
    assert (imp_long.training.duration, imp_long.seed, imp_long.optimizer.learning_rate) == ("24 steps", 7, 0.05)
    assert {m: (swamp_fields(m).num_particles, swamp_fields(m).swa) for m in ("imp", "imp_swa", "particles", "swamp")} == {
        "imp": (1, False), "imp_swa": (1, True), "particles": (3, False), "swamp": (3, True)
    }
    assert swamp_fields("swamp_plus").num_particles == (1, 3)
    assert swamp_fields("swamp_few").num_particles == 2 and swamp_fields("particles_many").num_particles == 4
    assert swamp_fields("random").pruner == "random" and swamp_fields("imp").pruner == "magnitude"
    assert swamp_fields("swamp_early_gated").averaging == "when_safe" and swamp_fields("swamp_early_gated").ticket_duration == "0 steps"
    assert swamp_fields("swamp").swa_learning_rate == 0.02


def test_every_method_has_a_cell_and_prunes_the_same_number(cells):
    assert set(cells) == set(FEW)
    assert len({tuple(level["num_weights"] for level in cell["levels"]) for cell in cells.values()}) == 1
    assert [round(level["sparsity"], 3) for level in cells["swamp"]["levels"]] == [0.0, 0.5, 0.75]


def test_all_methods_share_the_ticket(cells):
    """The dense network is one and the same wherever one particle is trained from the ticket."""
    dense = [cells[method]["levels"][0]["test"] for method in ("imp", "random", "one_shot", "swamp_mask")]
    assert all(metrics == dense[0] for metrics in dense)
    assert cells["imp_early"]["levels"][0]["test"] != dense[0]
    assert cells["swamp_mask"]["levels"][1]["test"] != cells["imp"]["levels"][1]["test"]


def test_costs_count_what_led_to_a_network(cells):
    def epochs(method):
        return [level["epochs"] for level in cells[method]["levels"]]

    def approx(*cycles):
        return pytest.approx([TICKET + number for number in cycles])

    assert epochs("imp") == approx(1, 2, 3)
    assert epochs("swamp") == approx(3, 6, 9)
    assert epochs("swamp_plus") == approx(1, 4, 7)
    assert epochs("one_shot") == approx(1, 2, 2)
    assert epochs("swamp_mask") == approx(1, 4, 7)
    assert epochs("imp_ensemble") == pytest.approx([2 * value for value in epochs("imp")])


def test_particles_and_barriers_are_there_where_particles_are(cells):
    for method, cell in cells.items():
        for level in cell["levels"]:
            assert (level["barrier"] is None) == (level["best_particle"] is None) == (level["num_particles"] == 1)
            if level["barrier"]:
                assert 0 <= level["barrier"]["mean"] <= level["barrier"]["max"]
                assert level["best_particle"]["validation"]["accuracy"] >= level["particles"]["validation"]["accuracy"] - 1e-12


def test_given_masks_are_those_of_swamp_bit_for_bit(tmp_path, compiled_once):  # noqa: F811
    given, source = (alone(swamp_methods.algorithm(tiny(), method, 0, RATES, tmp_path)) for method in ("swamp_mask", "swamp"))
    for cycle in range(3):
        ours, theirs = (named_leaves(run.weights(cycle, "average")[1]) for run in (given, source))
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_an_ensemble_has_two_different_members(cells):
    ensemble, single = cells["imp_ensemble"]["levels"][1], cells["imp"]["levels"][1]
    assert ensemble["test"] != single["test"]
    # The log of a mean is not below the mean of logs.
    assert ensemble["test"]["nll"] <= ensemble["particles"]["test"]["nll"]


def test_one_shot_masks_are_the_largest_of_the_dense_network(tmp_path, compiled_once):  # noqa: F811
    run = alone(swamp_methods.algorithm(tiny(), "one_shot", 0, RATES, tmp_path))
    [weights, _] = alone(swamp_methods.algorithm(tiny(), "imp", 0, RATES, tmp_path)).weights(0, "average")
    kernels = {name: leaf for name, leaf in named_leaves(weights.params).items() if name.endswith("kernel")}
    magnitudes = np.abs(np.concatenate([leaf.ravel() for leaf in kernels.values()]))
    for number in (1, 2):
        kept = np.concatenate([leaf.ravel() for leaf in named_leaves(run.weights(number, "average")[1]).values()])
        expected = np.zeros(magnitudes.size, bool)
        expected[np.argsort(magnitudes, kind="stable")[-run.cycles[number]["num_weights"]:]] = True
        np.testing.assert_array_equal(kept, expected)


def test_tuning_takes_the_better_rate_and_publishes_the_grid(cells, directory):
    tuning = swamp_comparison.tuned(directory)
    assert [(row["method"], row["learning_rate"], row["seed"]) for row in tuning["grid"]] == [("imp", 1e-5, 100), ("imp", 0.05, 100)]
    # A rate of 0.00001 learns next to nothing in 12 steps.
    assert tuning["grid"][0]["validation"] < tuning["grid"][1]["validation"]
    assert tuning["chosen"] == {"learning_rate": 0.05, "swa_learning_rate": 0.02} == cells["imp"]["rates"]


def test_a_training_that_diverges_is_recorded_and_the_next_one_runs(tmp_path, compiled_once):  # noqa: F811
    config = tiny()
    config.methods, config.learning_rates = ("imp", "random"), (1e30,)
    found = swamp_comparison.run(config, tmp_path / "run")
    assert [(cell["method"], cell["levels"]) for cell in found] == [("imp", []), ("random", [])]
    assert all("is not finite at step" in cell["diverged"] for cell in found)


def test_finished_cells_are_not_trained_again(cells, directory, monkeypatch):
    (directory / "cells" / "swamp_mask-seed0.json").unlink()
    trained = []
    for module in (imp, swamp, given_masks):
        run = module.algorithm
        monkeypatch.setattr(module, "algorithm", lambda setup, *rest, name=module.__name__, run=run: trained.append(name.split(".")[-1]) or run(setup, *rest))
    again = {cell["method"]: cell for cell in swamp_comparison.run(tiny(), directory)}
    # The masks come from SWAMP's training, which was thrown away with its figures written.
    assert trained == ["swamp", "given_masks"]
    assert not (directory / "scratch").exists()

    def untimed(cell):
        return [{name: value for name, value in level.items() if name != "seconds"} for level in cell["levels"]]

    assert untimed(again["swamp_mask"]) == untimed(cells["swamp_mask"])


def test_seeds_train_together_and_what_is_finished_stays(cells, tmp_path, compiled_once):  # noqa: F811
    config = tiny()
    config.learning_rates, config.seeds, config.seeds_at_once, config.methods = (0.05,), (0, 1), 2, ("imp",)
    before = swamp_comparison.run(config, tmp_path / "run")
    (tmp_path / "run" / "cells" / "imp-seed0.json").unlink()
    config.methods = ("imp", "swamp_mask")
    found = swamp_comparison.run(config, tmp_path / "run")
    assert [(cell["seed"], cell["method"]) for cell in found] == [(seed, method) for seed in (0, 1) for method in config.methods]
    assert found[2] == before[1]
    # Seed 0 is trained alone in the other comparison, and imp was here, the second time.
    for mine, theirs in [(before[0], cells["imp"]), (found[0], cells["imp"]), (found[1], cells["swamp_mask"])]:
        assert mine.keys() == theirs.keys()
        for level, expected in zip(mine["levels"], theirs["levels"], strict=True):
            assert {**level, "seconds": 0}.keys() == expected.keys()
            for split in ("train", "validation", "test"):
                assert level[split] == pytest.approx(expected[split], rel=1e-4)
    assert found[3]["levels"][2]["test"] != found[1]["levels"][2]["test"]


def test_another_base_is_refused_and_fewer_methods_are_not(cells, directory):
    config = tiny()
    config.base.swamp.fraction = 0.4
    with pytest.raises(UserError, match="base.swamp.fraction was 0.5, now 0.4"):
        swamp_comparison.run(config, directory)
    config = tiny()
    config.methods = ("imp",)
    assert [cell["method"] for cell in swamp_comparison.run(config, directory)] == ["imp"]


def test_a_comparison_of_an_earlier_version_is_continued():
    stored = tiny().to_dict()
    del stored["base"]["training"]["steps_per_call"]
    assert differences(stored, tiny()) == []
    stored["base"]["training"]["duration"] = "9 steps"
    assert differences(stored, tiny()) == [("base.training.duration", "9 steps", "8 steps")]


def test_the_seed_that_runs_keeps_its_trainings_over_a_restart(tmp_path, monkeypatch):
    config = tiny()
    config.learning_rates, config.seeds, config.seeds_at_once, config.methods = (0.05,), (0, 1), 1, ("imp", "random")
    trained = []

    def cell(config, method, seed, rates, scratch):
        (scratch / method).mkdir(parents=True, exist_ok=True)
        trained.append((method, seed))
        if len(trained) == 4:
            raise Interrupted
        return {"method": method, "seed": seed}
        yield

    monkeypatch.setattr(swamp_comparison, "_cell", cell)
    with pytest.raises(Interrupted):
        swamp_comparison.run(config, tmp_path / "run")
    # The trainings of seed 0 are gone with its last cell, those of seed 1 wait for theirs.
    kept = tmp_path / "run" / "scratch" / "seed1" / "imp"
    assert kept.is_dir() and not (tmp_path / "run" / "scratch" / "seed0").exists()

    def late_cell(*_):
        return {"kept": kept.is_dir()}
        yield

    monkeypatch.setattr(swamp_comparison, "_cell", late_cell)
    assert swamp_comparison.run(config, tmp_path / "run")[-1] == {"kept": True}
    assert not (tmp_path / "run" / "scratch" / "seed1").exists()


def test_tuning_goes_on_after_a_kill_between_a_point_and_its_removal(tmp_path, monkeypatch):
    config = tiny()
    config.methods = ()

    def train(config, method, seed, rates, scratch):
        directory = scratch / method
        # As a work directory of another configuration would.
        assert not directory.exists()
        directory.mkdir(parents=True)
        cycle = {"sparsity": 0.75, "solution": "average", "evaluation": {"average": {"validation": {"accuracy": rates["learning_rate"]}}}}
        return swamp_methods.PrunedRun(None, directory, [cycle], [[]])
        yield

    def killed(directory):
        raise Interrupted

    monkeypatch.setattr(swamp_comparison, "algorithm", train)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(atomic, "remove_directory", killed)
        swamp_comparison.run(config, tmp_path / "run")
    swamp_comparison.run(config, tmp_path / "run")
    assert [row["validation"] for row in swamp_comparison.tuned(tmp_path / "run")["grid"]] == [1e-5, 0.05]


@pytest.mark.slow
def test_all_methods_run_and_are_reported(cells, directory, tmp_path):
    config = tiny()
    config.methods = swamp_comparison.default_comparison().methods
    everything = swamp_comparison.run(config, directory)
    found = {cell["method"]: cell["levels"] for cell in everything}
    assert set(found) == {*swamp_methods.fields_of(tiny()), "imp_ensemble", "imp_best"}
    # Three networks, of which the best is no worse than the one that is also reported alone.
    for best, one in zip(found["imp_best"], found["imp"]):
        assert best["validation"]["accuracy"] >= one["validation"]["accuracy"] and best["epochs"] == 3 * one["epochs"]
    assert [level["epochs"] for level in found["imp_long"]] == [level["epochs"] for level in found["swamp"]]
    assert [level["num_particles"] for level in found["particles_many"]] == [4, 4, 4]
    gates = [level["gate"] for level in found["swamp_early_gated"]]
    assert [gate["averaging_hurts"] for gate in gates] == [np.mean(gate["particles"]) < gate["average"] for gate in gates]
    write_comparison(everything, tmp_path, title="T", meta={}, tuning=swamp_comparison.tuned(directory))
    assert (tmp_path / "accuracy_parts.png").stat().st_size and (tmp_path / "accuracy_early.png").stat().st_size


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"methods": ("impp",)}, "methods='impp': give some of imp, "),
        ({"tuning_sparsity": 0.75}, "tuning_sparsity=0.75: must be at least 0 and at most base.swamp.target_sparsity=0.7"),
        ({"base.swamp.num_particles": (1, 4)}, r"base.swamp.num_particles=\(1, 4\): give a whole number of at least 2"),
        ({"base.swamp.swa": False}, "base.swamp.swa=False: must be True"),
        ({"base.swamp.averaging": "when_safe"}, "base.swamp.averaging='when_safe': must be 'always'"),
        ({"base.swamp.gate_fraction": 0.0}, "base.swamp.gate_fraction=0.0: the gated methods need one"),
        ({"seeds_at_once": -1}, "seeds_at_once=-1: must be at least 0"),
        ({"seeds": (100,)}, r"tuning_seeds=\(100,\): 100 is also one of seeds"),
    ],
)
def test_fields_that_do_not_fit_are_named(tmp_path, fields, message):
    config = set_fields(tiny(), fields)
    with pytest.raises(UserError, match=message):
        swamp_comparison.run(config, tmp_path / "run")


def test_the_report_is_written_from_real_cells(cells, directory, tmp_path):
    tuning = swamp_comparison.tuned(directory)
    path = write_comparison(list(cells.values()), tmp_path, title="T", meta={"command": "python x"}, tuning=tuning)
    text = path.read_text()
    assert "| SWAMP " in text and "## The claims of the SWAMP paper" in text and "**SWAMP+**" in text and "N particles, SGD" not in text
    assert all((tmp_path / name).stat().st_size for name in (
        "accuracy.png", "accuracy_masks.png", "average_minus_particles.png", "barrier.png", "density_per_layer.png",
    ))
    results = json.loads((tmp_path / "results.json").read_text())
    assert math.isclose(results["cells"][0]["levels"][0]["sparsity"], 0.0)
