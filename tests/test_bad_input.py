"""Bad input: exit code 2, one line on stderr that names field, value and fix; nothing written, nothing lost."""

import fcntl
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest

from programs import ROOT, call
from short_runs import RUN, outside  # noqa: F401
from training_runs import (  # noqa: F401
    SMALL, compilation_cache_dir, compiled_once, exported, listing, rows, train,
)

DIGITS = ROOT / "configs" / "hwa_digits.py"


def overrides(fields):
    return [f"--config.{field}={value}" for field, value in {**SMALL, **RUN, **fields}.items()]


def train_hwa(directory, fields=(), *flags):
    """The program's end, for `directory` as the work directory."""
    return call("train_hwa.py", f"--config={DIGITS}", f"--workdir={directory}", *overrides(dict(fields)), *flags)


def assert_refused(ended, words):
    assert ended.code == 2, ended
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: ") and "Traceback" not in line
    for word in words:
        assert word in line, line
    assert len(line) < 700


# What is written on the command line: fields and values, and what the line must say.
FIELDS = {
    "unknown field": ({"hwa.num_replica": 3}, ["'num_replica'", "'num_replicas'"]),
    "unknown group": ({"hva.num_replicas": 3}, ["'hva'", "config.py"]),
    "letters for a number": ({"hwa.num_replicas": "three"}, ["hwa.num_replicas=three", "int"]),
    "letters for a rate": ({"optimizer.learning_rate": "fast"}, ["optimizer.learning_rate=fast", "float"]),
    "letters for a bool": ({"data.flip": "perhaps"}, ["data.flip=perhaps", "oolean"]),
    "H below 1": ({"hwa.sync_period": "0 steps"}, ["hwa.sync_period='0 steps'", "at least 1"]),
    "H of no step": ({"hwa.sync_period": "0.01 epochs"}, ["hwa.sync_period='0.01 epochs' is 0 steps", "at least 1"]),
    "I below 1": ({"hwa.window_size": 0}, ["hwa.window_size=0", "at least 1"]),
    "K below 1": ({"hwa.num_replicas": 0}, ["hwa.num_replicas=0", "at least 1"]),
    "K over devices": ({"hwa.num_replicas": 3, "num_devices": 2}, ["hwa.num_replicas=3", "2 devices", "num_devices"]),
    "too many devices": ({"num_devices": 99}, ["num_devices=99", "at most 8"]),
    "unknown data": ({"data.name": "digitz"}, ["digitz", "digits"]),
    "missing data": ({"data.name": "cifar10", "data.data_dir": "nowhere"}, ["cifar10", "nowhere", "python -m hwa_jax.data"]),
    "unknown model": ({"model.name": "resnet21"}, ["resnet21", "resnet20"]),
    "unknown norm": ({"model.norm": "layer"}, ["model.norm='layer'", "'batch'"]),
    "unknown dtype": ({"model.dtype": "float16"}, ["model.dtype='float16'", "'bfloat16'"]),
    "unknown optimizer": ({"optimizer.name": "adamx"}, ["optimizer.name='adamx'", "adam"]),
    "optimizer's argument": ({"optimizer.name": "adam", "optimizer.weight_decay": 0.1}, ["optimizer.name='adam'", "weight_decay"]),
    "unknown schedule": ({"schedule.name": "cosin"}, ["schedule.name='cosin'", "cosine"]),
    "unknown wrapper": ({"optimizer.wrapper": "swa"}, ["optimizer.wrapper='swa'", "lookahead"]),
    "unknown policy": ({"hwa.optimizer_state": "keep"}, ["hwa.optimizer_state='keep'", "'local'"]),
    "unknown data mode": ({"hwa.data_mode": "split"}, ["hwa.data_mode='split'", "'shared'"]),
    "batch above data": ({"training.batch_size": 91}, ["batch_size=91", "90"]),
    "no batch": ({"training.batch_size": 0}, ["training.batch_size=0", "at least 1"]),
    "more images than there are": ({"data.num_train": 9999}, ["num_train=9999", "1297"]),
    "no validation": ({"data.validation_fraction": 0.0}, ["data.validation_fraction=0.0", "0.01"]),
    "all validation": ({"data.validation_fraction": 1.5}, ["data.validation_fraction=1.5", "below 1"]),
    "bad duration": ({"training.duration": "long"}, ["training.duration='long'", "20 epochs"]),
    "percent of itself": ({"training.duration": "50%"}, ["training.duration='50%'", "epochs"]),
    "no steps": ({"training.duration": "0 epochs"}, ["training.duration='0 epochs'", "at least 1"]),
    "minutes": ({"checkpoint.every": "5 minutes"}, ["checkpoint.every='5 minutes'", "epochs"]),
    "half a step": ({"logging.every": "1.5 steps"}, ["logging.every='1.5 steps'", "whole"]),
    "push between synchronizations": ({"hwa.push_every": "6 steps"}, ["hwa.push_every='6 steps'", "multiple", "4"]),
    "warm-up beyond the end": ({"schedule.warmup": "16 steps"}, ["schedule.warmup='16 steps'", "less"]),
    "pattern without a match": (
        {"optimizer.weight_decay": 0.1, "optimizer.decay_pattern": "weight"}, ["optimizer.decay_pattern='weight'", "bias"],
    ),
    "pattern that is none": ({"optimizer.weight_decay": 0.1, "optimizer.decay_pattern": "("}, ["optimizer.decay_pattern='('"]),
    "EMA of 1": ({"training.ema_decay": 1.0}, ["training.ema_decay=1.0", "below 1"]),
    "rate that is no number": ({"optimizer.learning_rate": "nan"}, ["optimizer.learning_rate=nan", "at least 0"]),
    "negative seed": ({"seed": -1}, ["seed=-1", "at least 0"]),
    "start from nothing": ({"init_from": "nowhere.safetensors"}, ["nowhere.safetensors", "no such file"]),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields(tmp_path, case):
    fields, words = FIELDS[case]
    assert_refused(train_hwa(tmp_path / "run", fields), words)
    assert listing(tmp_path) == {}


def test_a_dry_run_refuses_too(tmp_path):
    assert_refused(train_hwa(tmp_path / "run", {"hwa.window_size": 0}, "--dry_run"), ["hwa.window_size=0"])
    assert listing(tmp_path) == {}


# Configuration files: their text, and what the line must say.
FILES = {
    "syntax": ("def get_config(:", ["does not load", "syntax", "line 1"]),
    "no get_config": ("config = 3", ["does not load", "get_config"]),
    "import": ("import hwa_jaxx", ["does not load", "hwa_jaxx"]),
    "name": ("def get_config():\n    return configuration", ["does not load", "configuration"]),
    "fields": ("def get_config():\n    return {'seed': 0}", ["is missing", "default_config()"]),
    "unknown field": (
        "from hwa_jax.training.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.hwa.windows_size = 3\n    return config",
        ["'windows_size'", "'window_size'"],
    ),
    "type": (
        "from hwa_jax.training.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.hwa.window_size = 'ten'\n    return config",
        ["window_size", "ten", "int"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_configuration_files(tmp_path, case):
    text, words = FILES[case]
    file = tmp_path / "bad.py"
    file.write_text(text)
    before = listing(tmp_path)
    assert_refused(call("train_hwa.py", f"--config={file}", f"--workdir={tmp_path}/run"), words)
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([f"--config={DIGITS}"], ["--workdir"]), (["--workdir=run"], ["--config"]), ([], ["--config", "--workdir"]),
        (["--config=configs/hwa_digit.py", "--workdir=run"], ["configs/hwa_digit.py", "No such file"]),
        ([f"--config={DIGITS}", "--workdir=run", "--overwriet"], ["overwriet", "overwrite"]),
        ([f"--config={DIGITS}", "--workdir=run", "now"], ["unexpected arguments: now", "--"]),
    ],
    ids=str,
)
def test_flags(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(call("train_hwa.py", *flags), words)
    assert listing(tmp_path) == {}


@pytest.fixture(scope="module")
def half_done(outside, tmp_path_factory):  # noqa: F811
    """The work directory of a run that stopped after 12 of 16 steps."""
    directory = tmp_path_factory.mktemp("half") / "run"
    train(directory, {**RUN, "training.duration": "12 steps"})
    return directory


@pytest.fixture
def run(tmp_path, half_done):
    """A copy of it."""
    return pathlib.Path(shutil.copytree(half_done, tmp_path / "run"))


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_checkpoint(directory, step):
    truncate(directory / "checkpoints" / f"step_{step:08d}.0" / "tree.json")


def replace_window(directory):
    """The window becomes that of a network with BatchNorm."""
    other = directory.parent / "other"
    train(other, {**RUN, "training.duration": "4 steps", "model.norm": "batch"})
    shutil.rmtree(directory / "window")
    shutil.move(other / "window", directory / "window")
    shutil.rmtree(other)


# What has happened to the work directory, the fields of the next call, and what the line must say.
DIRECTORIES = {
    "other configuration": (None, {"hwa.window_size": 9}, ["hwa.window_size was 3, now 9", "--overwrite"]),
    "other data": (None, {"data.seed": 5}, ["data.seed was 0, now 5"]),
    "shorter": (None, {"training.duration": "8 steps"}, ["training.duration='8 steps'", "already done 12", "longer"]),
    "other window": (replace_window, {}, ["window", "params/norm1", "another model"]),
    "no undamaged checkpoint": (
        lambda run: [damage_checkpoint(run, step) for step in (8, 12)], {}, ["every checkpoint is damaged", "[8, 12]"],
    ),
    "configuration damaged": (lambda run: truncate(run / "config.json"), {}, ["config.json is not JSON", "--overwrite"]),
    "configuration of something else": (lambda run: (run / "config.json").write_text("[]"), {}, ["config.json", "--overwrite"]),
    "no configuration": (lambda run: (run / "config.json").unlink(), {}, ["no config.json", "--overwrite"]),
    "log damaged": (lambda run: (run / "metrics.jsonl").write_text("{\n{}\n"), {}, ["metrics.jsonl: line 1", "remove"]),
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_work_directories(run, case):
    damage, fields, words = DIRECTORIES[case]
    if damage:
        damage(run)
    before = listing(run)
    assert_refused(train_hwa(run, fields), words)
    assert listing(run) == before


@pytest.mark.parametrize("place", ["a file", "a file/run", "/proc/run"])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "a file").write_text("mine")
    directory = tmp_path / place
    before = listing(tmp_path)
    assert_refused(train_hwa(directory), [str(directory), "--workdir"])
    assert listing(tmp_path) == before


def test_a_work_directory_in_use(run):
    before = listing(run)
    with open(run / ".lock", "r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_refused(train_hwa(run), [str(run), "another process"])
        assert_refused(train_hwa(run, {}, "--overwrite"), [str(run), "another process"])
    assert listing(run) == before


def write_idx(directory, name, array):
    header = struct.pack(">HBB" + "I" * array.ndim, 0, 8, array.ndim, *array.shape)
    (directory / name).write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("count", "label", "words"), [(40, 12, ["label", "12"]), (0, 0, ["empty", "give at least one"])], ids=["label out of range", "empty split"]
)
def test_data_files(tmp_path, count, label, words):
    files = tmp_path / "files"
    files.mkdir()
    for split in ("train", "t10k"):
        write_idx(files, f"{split}-images-idx3-ubyte", np.zeros((count, 8, 8)))
        write_idx(files, f"{split}-labels-idx1-ubyte", np.full(count, label))
    fields = {"data.name": "fashion_mnist", "data.data_dir": files, "data.num_train": 0}
    assert_refused(train_hwa(tmp_path / "run", fields), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", [None, truncate], ids=["another network", "truncated"])
def test_weights_to_start_from(tmp_path, half_done, damage):
    file = tmp_path / "weights.safetensors"
    shutil.copy(half_done / "hwa.safetensors", file)
    if damage:
        damage(file)
    fields = {"init_from": file, **({} if damage else {"model.norm": "batch"})}
    words = [str(file), "not a complete" if damage else "batch_stats/norm1/mean"]
    assert_refused(train_hwa(tmp_path / "run", fields), words)
    assert listing(tmp_path).keys() == {file.name}


def test_a_damaged_checkpoint_is_passed_over(run, tmp_path, caplog):
    damage_checkpoint(run, 12)
    ended = train_hwa(run)
    assert ended.code == 0
    assert "resuming from the checkpoint of step 8" in ended.stderr
    assert "step 12 is left out" in caplog.text
    train(tmp_path / "whole", RUN)
    whole = exported(tmp_path / "whole")
    for name, leaf in exported(run).items():
        np.testing.assert_array_equal(leaf, whole[name])


def test_a_diverged_training_keeps_what_was_good(tmp_path):
    # The learning rate grows by a factor of 1e30 at step 6.
    fields = {"schedule.name": "step", "schedule.milestones": "('6 steps',)", "schedule.factor": 1e30, "logging.every": "1 steps"}
    ended = train_hwa(tmp_path / "run", fields)
    assert_refused(ended, ["replica ", "is not finite at step 8", "optimizer.learning_rate=0.05", "checkpoints kept: [4]"])
    assert [row["step"] for row in rows(tmp_path / "run", kind="train")] == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step_00000004.0"]


@pytest.mark.parametrize("fields", [{"hwa.num_replicas": 0}, {"optimizer.wrapper": "swa"}, {"hwa.num_replica": 3}], ids=str)
def test_as_a_process(tmp_path, fields):
    command = [sys.executable, "experiments/train_hwa.py", f"--config={DIGITS}", f"--workdir={tmp_path}/run", *overrides(fields)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    [line] = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert listing(tmp_path) == {}
