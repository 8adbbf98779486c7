"""What a training writes and reads: log, event files, splits; compiles, finished and extended runs."""

import dataclasses
import json
import shutil
import struct

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from hwa_jax import particles
from hwa_jax.algorithms import hwa
from hwa_jax.data import Split
from hwa_jax.errors import UserError
from hwa_jax.training import loop
from hwa_jax.training.weights import recalibrated
from compilations import compilations
from training_runs import (  # noqa: F401
    checkpoint, compilation_cache_dir, compiled_once, exported, listing, rows, small_config, small_setup, train,
)

pytestmark = pytest.mark.usefixtures("compiled_once")
LOGGED = {"logging.tensorboard": True, "model.norm": "batch", "optimizer.momentum": 0.9, "training.ema_decay": 0.5}


@pytest.fixture(scope="module")
def finished(compiled_once, tmp_path_factory):  # noqa: F811
    """A training of 18 steps, evaluated after 9 and 18, logged after 6, 12 and 18."""
    directory = tmp_path_factory.mktemp("finished")
    return directory, train(directory, LOGGED)


def assert_same_arrays(mine, theirs):
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def test_rows_are_complete(finished):
    directory, results = finished
    for step in (9, 18):
        for weights in ("inner", "outer", "hwa", "ema"):
            for split in ("validation", "train"):
                [row] = rows(directory, step=step, kind="evaluation", weights=weights, split=split)
                assert row["epoch"] == step / 9
                assert 0 <= row["accuracy"] <= 1 and row["nll"] > 0 and 0 <= row["ece"] <= 1
    assert {row["split"] for row in rows(directory, kind="evaluation")} == {"validation", "train"}
    assert len(rows(directory, kind="evaluation")) == 2 * 4 * 2
    assert [row["step"] for row in rows(directory, kind="train")] == [6, 12, 18]
    assert [row["step"] for row in rows(directory, kind="push")] == [4, 8, 12, 16, 18]
    for row in rows(directory, kind="train"):
        assert row["loss"] > 0 and 0 <= row["accuracy"] <= 1 and row["learning_rate"] == pytest.approx(0.05)
    # The whole training split has 90 images, the curves' sample of it 50.
    assert results["final"]["outer"]["validation"] == {
        name: rows(directory, step=18, weights="outer", split="validation")[0][name] for name in ("accuracy", "nll", "ece")
    }


def test_results_say_where_they_come_from(finished):
    directory, results = finished
    assert json.loads((directory / "results.json").read_text()) == results
    assert results["config"] == json.loads((directory / "config.json").read_text())["config"]
    assert results["steps"] == 18 and results["epochs"] == 2 and results["window"] == [12, 16, 18]
    assert set(results["final"]) == {"outer", "hwa", "ema"}
    assert {"training", "evaluation", "compilation", "checkpoint"} <= results["seconds"].keys()
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["jax"] == jax.__version__ and environment["num_devices"] == jax.device_count()


def test_inner_weights_are_measured_one_step_before(finished, tmp_path):
    directory, _ = finished
    # Stopped after 17 steps, one before the evaluation; its own last cycle leaves the replicas as they are.
    setup = small_setup({**LOGGED, "training.duration": "17 steps"})
    hwa.run(setup, tmp_path)
    state = checkpoint(tmp_path)
    replicas = particles.unstack((state.params, state.batch_stats))
    by_replica = [setup.evaluator.one(*recalibrated(setup, *weights), setup.validation) for weights in replicas]
    [row] = rows(directory, step=18, weights="inner", split="validation")
    for name in ("accuracy", "nll", "ece"):
        np.testing.assert_allclose(row[name], np.mean([metrics[name] for metrics in by_replica]), rtol=1e-6)
    assert by_replica[0]["nll"] != by_replica[1]["nll"]
    # With the statistics that lag behind it is another figure.
    lagging = [setup.evaluator.one(*weights, setup.validation)["nll"] for weights in replicas]
    assert abs(row["nll"] - np.mean(lagging)) > 1e-3


def read_events(path):
    """Scalars of a TensorBoard file: {(tag, step): value}; records are length, checksum, data, checksum."""
    content, scalars = path.read_bytes(), {}
    while content:
        [length] = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return scalars


def test_event_files_hold_the_rows(finished):
    directory, _ = finished
    [path] = (directory / "tensorboard").iterdir()
    scalars, expected = read_events(path), {}
    for row in rows(directory):
        tags = [row[name] for name in ("kind", "weights", "split") if name in row]
        for name, value in row.items():
            if name not in ("step", "epoch", "kind", "weights", "split"):
                expected["/".join([*tags, name]), row["step"]] = value
    assert scalars == pytest.approx(expected, rel=1e-6)


def test_the_test_split_takes_no_part_in_curves_and_weights(finished, tmp_path):
    directory, results = finished
    setup = small_setup(LOGGED)
    shuffled = Split(setup.test.images, (setup.test.labels + 1) % 10)
    mine = hwa.run(dataclasses.replace(setup, test=shuffled), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (directory / "metrics.jsonl").read_bytes()
    assert_same_arrays(exported(tmp_path), exported(directory))
    for name, final in results["final"].items():
        for split in ("train", "validation"):
            assert mine["final"][name][split] == final[split]
        assert mine["final"][name]["test"] != final["test"]


def count_compiles(directory, fields):
    with compilations() as names:
        train(directory, fields)
    return len(names)


def test_a_longer_run_compiles_no_more(finished, tmp_path):
    assert count_compiles(tmp_path / "short", LOGGED) > 0
    short = count_compiles(tmp_path / "again", LOGGED)
    long = count_compiles(tmp_path / "long", {**LOGGED, "training.duration": "6 epochs", "logging.every": "1 steps"})
    assert long <= short


def test_a_finished_run_returns_at_once(finished, monkeypatch):
    directory, results = finished
    before = listing(directory)
    monkeypatch.setattr(loop, "run", None)
    assert train(directory, LOGGED) == results
    assert listing(directory) == before
    with pytest.raises(UserError, match="training.duration='1 epochs' is 9 steps, but the run has already done 18"):
        train(directory, {**LOGGED, "training.duration": "1 epochs"})
    assert listing(directory) == before


@pytest.mark.parametrize(("damage", "lacks"), [
    (lambda results: results.pop("steps"), "steps"), (lambda results: results["config"].pop("hwa"), "config.hwa.num_replicas"),
])
def test_damaged_results_are_refused_by_one_line(finished, tmp_path, damage, lacks):
    file = shutil.copytree(finished[0], tmp_path / "run") / "results.json"
    results = json.loads(file.read_text())
    damage(results)
    for content in (results, [], "steps"):
        file.write_text(json.dumps(content))
        with pytest.raises(UserError) as refused:
            train(tmp_path / "run", LOGGED)
        missing = lacks if content is results else "steps"
        assert str(refused.value) == f"{file}: lacks {missing!r}: restore it; or delete it, and the same command writes it anew"


@pytest.mark.parametrize("first", ["2 epochs", "16 steps"], ids=["in a partial cycle", "at a synchronization"])
def test_an_extended_run_equals_a_longer_one(finished, tmp_path, first):
    longer, extended = {**LOGGED, "training.duration": "27 steps"}, tmp_path / "extended"
    train(tmp_path / "longer", longer)
    if first == "2 epochs":
        shutil.copytree(finished[0], extended)
    else:
        train(extended, {**LOGGED, "training.duration": first})
    results = train(extended, longer)
    assert results["steps"] == 27 and results["window"] == [20, 24, 27]
    assert_same_arrays(exported(extended), exported(tmp_path / "longer"))
    mine, theirs = checkpoint(extended), checkpoint(tmp_path / "longer")
    # The log's sums start again where the first run logged its end.
    assert_same_arrays(mine._replace(progress=()), theirs._replace(progress=()))
    assert rows(extended, step=27, kind="evaluation") == rows(tmp_path / "longer", step=27, kind="evaluation")


@pytest.mark.parametrize("lost", [("results.json",), ("results.json", "hwa.safetensors")], ids=len)
def test_a_run_that_died_after_its_last_step_finishes(finished, tmp_path, lost):
    directory, results = finished
    shutil.copytree(directory, tmp_path / "run")
    for name in lost:
        (tmp_path / "run" / name).unlink()
    again = train(tmp_path / "run", LOGGED)
    assert {**again, "seconds": 0} == {**results, "seconds": 0}
    assert_same_arrays(exported(tmp_path / "run"), exported(directory))
    assert rows(tmp_path / "run") == rows(directory)


def test_fields_that_may_change_on_resume(finished, tmp_path):
    directory, results = finished
    shutil.copytree(directory, tmp_path / "run")
    again = train(tmp_path / "run", {**LOGGED, "logging.every": "2 steps", "evaluation.batch_size": 7})
    assert again == results
    with pytest.raises(UserError, match="hwa.window_size was 3, now 4; seed was 0, now 1"):
        train(tmp_path / "run", {**LOGGED, "hwa.window_size": 4, "seed": 1})


def test_overwrite_starts_over(finished, tmp_path):
    directory, results = finished
    shutil.copytree(directory, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("not JSON")
    with pytest.raises(UserError, match="config.json is not JSON.*--overwrite"):
        train(tmp_path / "run", LOGGED)
    again = train(tmp_path / "run", LOGGED, overwrite=True)
    assert {**again, "seconds": 0} == {**results, "seconds": 0}
    assert rows(tmp_path / "run") == rows(directory)


def test_a_failed_overwrite_deletes_nothing(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    before = listing(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        train(tmp_path / "run", {**LOGGED, "init_from": str(tmp_path / "nowhere.safetensors")}, overwrite=True)
    assert listing(tmp_path) == before
