"""Stored runs: evaluated, exported and loaded again, without a trace in the work directory."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import hwa_jax
from hwa_jax.algorithms import hwa, hwa_weights, stored_run
from hwa_jax.errors import UserError
from hwa_jax.report.model_card import model_card
from hwa_jax.storage import safetensors
from hwa_jax.storage.checkpoint import CheckpointStore
from hwa_jax.training.config import default_config
from hwa_jax.training.setup import prepare
from hwa_jax.training.weights import recalibrated
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

PROGRAM = Path(__file__).resolve().parent.parent / "experiments" / "evaluate.py"


def tiny_config():
    """Ten steps; the last one is no synchronization, so that the replicas differ at the end."""
    config = default_config()
    config.num_devices = 1
    config.data.num_train = 300
    config.model.update({"name": "mlp", "norm": "batch"})
    config.training.update({"batch_size": 50, "duration": "2 epochs", "ema_decay": 0.9})
    config.optimizer.learning_rate = 0.02
    config.hwa.update({"sync_period": "4 steps", "window_size": 2})
    config.logging.tensorboard = False
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(work directory, results.json) of a finished run."""
    directory = tmp_path_factory.mktemp("trained") / "run"
    return directory, hwa.train(tiny_config(), directory)


@pytest.fixture(scope="module")
def run(trained):
    return stored_run.open_run(trained[0])


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the work directory, to be changed."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def snapshot(directory):
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in directory.rglob("*")}


def change_config(directory, change):
    path = directory / "config.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_the_figures_are_those_of_the_training(trained, run):
    directory, results = trained
    before = snapshot(directory)
    found = stored_run.evaluate(stored_run.open_run(directory), splits=stored_run.SPLITS)
    assert snapshot(directory) == before
    assert list(found) == ["inner", "inner 0", "inner 1", "outer", "hwa", "ema"]
    for name, by_split in results["final"].items():
        for split, metrics in by_split.items():
            # On another number of devices, so not to the last bit.
            assert found[name][split] == pytest.approx(metrics, abs=1e-6)


def test_inner_weights_one_by_one_and_their_mean(run):
    found = stored_run.evaluate(run, ["inner"], ["test"])
    alone = []
    for k in range(2):
        params, running = jax.tree.map(lambda leaf: np.asarray(leaf)[k], (run.state.params, run.state.batch_stats))
        alone.append(run.setup.evaluator.one(*recalibrated(run.setup, params, running), run.setup.test))
        assert found[f"inner {k}"]["test"] == pytest.approx(alone[k], abs=1e-6)
        # With the statistics that lag behind it is another figure.
        assert abs(run.setup.evaluator.one(params, running, run.setup.test)["nll"] - alone[k]["nll"]) > 1e-3
    assert alone[0]["nll"] != alone[1]["nll"]
    assert found["inner"]["test"]["nll"] == pytest.approx((alone[0]["nll"] + alone[1]["nll"]) / 2, abs=1e-6)


def test_members_newer_than_the_checkpoint_take_no_part(copied, run):
    with hwa.open_window(run.setup, copied) as window:
        window.push(11, jax.tree.map(np.zeros_like, window.member(10)))
    ahead = stored_run.open_run(copied)
    assert run.window.steps == [8, 10] and ahead.window.steps == [10, 11]
    assert stored_run.evaluate(ahead, ["hwa"]) == stored_run.evaluate(run, ["hwa"])


def test_a_run_is_evaluated_where_it_was_not_trained(copied, run):
    def change(record):
        record["config"].update(num_devices=64, init_from="/gone/weights.safetensors")

    change_config(copied, change)
    assert stored_run.evaluate(stored_run.open_run(copied), ["outer"]) == stored_run.evaluate(run, ["outer"])


def without_config(directory):
    (directory / "config.json").unlink()


def without_checkpoints(directory):
    CheckpointStore(directory / "checkpoints").truncate(after=-1)


def of_a_comparison(directory):
    change_config(directory, lambda record: record.update(config={"base": {}}))


def of_other_data(directory):
    change_config(directory, lambda record: record["config"]["data"].update(num_train=280))


def of_another_network(directory):
    change_config(directory, lambda record: record["config"]["model"].update(norm="none"))


def of_wrong_type(directory):
    change_config(directory, lambda record: record["config"]["training"].update(batch_size="many"))


def truncated(directory):
    path = directory / "config.json"
    path.write_text(path.read_text()[:-20])


@pytest.mark.parametrize("spoil, message", [
    (without_config, "run: has no config.json: give the --workdir"),
    (without_checkpoints, "run: has no checkpoint yet"),
    (of_a_comparison, "run: belongs to another program"),
    (of_other_data, "run: the run was made with other data"),
    (of_another_network, "it belongs to another model"),
    (of_wrong_type, "config.json: .*many"),
    (truncated, "config.json is not JSON"),
])
def test_directories_that_are_no_stored_run(copied, spoil, message):
    spoil(copied)
    before = snapshot(copied)
    with pytest.raises(UserError, match=message) as error:
        stored_run.open_run(copied)
    assert "\n" not in str(error.value)
    assert snapshot(copied) == before


def test_weights_and_splits_that_do_not_exist(run, tmp_path):
    with pytest.raises(UserError, match="--weights=slow: this run has inner, outer, hwa, ema"):
        stored_run.evaluate(run, ["slow"])
    with pytest.raises(UserError, match="--split=dev: give some of train, validation, test"):
        stored_run.evaluate(run, splits=["test", "dev"])
    with pytest.raises(UserError, match="--weights=inner: one set per replica"):
        stored_run.export(run, tmp_path / "w.safetensors", "inner")
    with pytest.raises(UserError, match="--weights=slow: this run has outer, hwa, ema"):
        stored_run.export(run, tmp_path / "w.safetensors", "slow")
    assert not list(tmp_path.iterdir())


def metrics_of(logits, labels):
    """Accuracy and NLL in float64."""
    logits = np.asarray(logits, np.float64)
    logs = logits - logits.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    return {"accuracy": np.mean(logits.argmax(1) == labels), "nll": -logs[np.arange(len(labels)), labels].mean()}


@pytest.mark.parametrize("weights", ["outer", "hwa", "ema"])
def test_the_three_lines_of_the_card_give_the_metrics_again(run, tmp_path, monkeypatch, weights):
    facts = stored_run.export(run, tmp_path / "w.safetensors", weights)
    card = model_card(facts, "w.safetensors")
    [lines] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(lines.splitlines()) == 3
    monkeypatch.chdir(tmp_path)
    for split in ("validation", "test"):
        examples = getattr(run.setup.dataset, split)
        names = {"images": examples.images}
        exec(lines, names)
        assert names["logits"].shape == (examples.num_examples, 10) and names["logits"].dtype == np.float32
        again = metrics_of(names["logits"], examples.labels)
        assert {key: facts["metrics"][split][key] for key in again} == pytest.approx(again, abs=1e-6)


def test_the_card_says_what_is_needed_and_nothing_of_this_machine(copied, tmp_path):
    change_config(copied, lambda record: record["config"].update(init_from="/home/me/start.safetensors"))
    change_config(copied, lambda record: record["config"]["data"].update(data_dir="/home/me/data"))
    run = stored_run.open_run(copied)
    facts = stored_run.export(run, tmp_path / "w.safetensors")
    assert safetensors.load_metadata(tmp_path / "w.safetensors") == json.loads(json.dumps(facts))
    card = model_card(facts, "w.safetensors")
    test = facts["metrics"]["test"]
    for needed in (
        run.setup.dataset.fingerprint, jax.__version__, "## Intended use and limits", "270 for training, 30 held out",
        "batch order and augmentation: 0", "| optimizer.learning_rate ", "start.safetensors",
        "K = 2 replicas, averaged every H = 4 steps; window I = 2, here 2 members up to step 10.",
        f"{100 * test['accuracy']:.2f} | {test['nll']:.4f} | {test['ece']:.4f} |",
    ):
        assert needed in card
    assert "/home/me" not in card and "/home/me" not in json.dumps(facts)


def test_a_training_starts_from_an_export(run, tmp_path):
    stored_run.export(run, tmp_path / "w.safetensors", "outer")
    config = tiny_config()
    config.init_from = str(tmp_path / "w.safetensors")
    state = prepare(config).initial_state()
    # The mean of two replicas has BatchNorm statistics of its own.
    expected = recalibrated(run.setup, *hwa_weights.outer_weights(run.setup, run.state))
    for found, one in zip(jax.tree.leaves((state.params, state.batch_stats)), jax.tree.leaves(tuple(expected)), strict=True):
        np.testing.assert_array_equal(found, np.stack([one, one]))


def test_load_predictor_refuses_what_it_cannot_use(trained, tmp_path):
    predict = hwa_jax.load_predictor(trained[0] / "hwa.safetensors")
    with pytest.raises(ValueError, match=r"images are float32\[1, 8, 8, 1\]: give uint8"):
        predict(np.zeros((1, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=r"images are uint8\[8, 8, 1\]: give uint8"):
        predict(np.zeros((8, 8, 1), np.uint8))
    params, batch_stats = hwa_jax.load_weights(trained[0] / "hwa.safetensors")
    safetensors.save_weights(tmp_path / "w.safetensors", params, batch_stats)
    with pytest.raises(UserError, match="does not say which network"):
        hwa_jax.load_predictor(tmp_path / "w.safetensors")
    metadata = safetensors.load_metadata(trained[0] / "hwa.safetensors")
    del params["dense1"]
    safetensors.save_weights(tmp_path / "w.safetensors", params, batch_stats, metadata)
    with pytest.raises(UserError, match="params/dense1/kernel is missing"):
        hwa_jax.load_predictor(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">f2", "<f4", "bfloat16", "bool"])
def test_weights_of_any_byte_order_come_back(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).T.astype(dtype)
    safetensors.save_weights(tmp_path / "w.safetensors", {"kernel": array, "scale": array[2, 1]}, {})
    params, _ = safetensors.load_weights(tmp_path / "w.safetensors")
    assert params["kernel"].dtype == array.dtype.newbyteorder("<") and params["scale"] == array[2, 1]
    np.testing.assert_array_equal(params["kernel"], array)


def test_networks_leave_the_arrays_of_the_caller_alone(run):
    weights = jax.tree.map(np.array, tuple(hwa_weights.outer_weights(run.setup, run.state)))
    before = jax.tree.map(np.copy, weights)
    run.setup.model.moments(*weights, np.ones((4, 8, 8, 1), np.float32))
    run.setup.model.train(*weights, np.ones((4, 8, 8, 1), np.float32), jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, weights, before)


def program(*arguments):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(PROGRAM.parents[1])}
    return subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, env=environment)


def test_the_program(trained, tmp_path):
    directory, results = trained
    before = snapshot(directory)
    done = program(f"--workdir={directory}", "--weights=hwa", "--split=test")
    assert done.returncode == 0, done.stderr
    test = results["final"]["hwa"]["test"]
    assert done.stdout.splitlines()[0] == "step 10 of 10"
    assert done.stdout.splitlines()[2].split()[:3] == ["hwa", "test", f"{100 * test['accuracy']:.2f}"]
    output = tmp_path / "new" / "digits.safetensors"
    done = program("export", f"--workdir={directory}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert 'load_predictor("digits.safetensors")' in output.with_suffix(".md").read_text()
    assert safetensors.load_metadata(output)["metrics"]["test"] == pytest.approx(test, abs=1e-6)
    assert snapshot(directory) == before


@pytest.mark.parametrize("arguments, message", [
    (["publish", "--workdir=x"], "unexpected arguments: publish; flags begin with --, and the commands are: export"),
    (["export", "--workdir=x", "--output={here}/card.safetensors"], "card.md: exists: give another file, or --overwrite"),
    pytest.param(["export", "--workdir=x"], "--output=None: export writes a file whose name ends in", marks=pytest.mark.slow),
])
def test_the_program_says_what_is_wrong_in_one_line(tmp_path, arguments, message):
    (tmp_path / "card.md").write_text("mine")
    done = program(*(a.format(here=tmp_path) for a in arguments))
    assert done.returncode == 2 and re.fullmatch(r"error: [^\n]*\n", done.stderr) and message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"] and (tmp_path / "card.md").read_text() == "mine"
