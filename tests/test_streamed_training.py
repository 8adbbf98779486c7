"""Trainings on streamed images: the numbers of memory, exact resume, any layout, two processes, ResNet-50."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from killed_training import Child, run_through, watched_command
from process_runs import SECONDS, free_port, run
from programs import ROOT
from training_runs import (  # noqa: F401
    SMALL, checkpoint, compilation_cache_dir, compiled_once, exported, rows, set_fields, small_config, small_setup, train,
)

import hwa_jax.data
from hwa_jax.algorithms import hwa
from hwa_jax.data import Split
from hwa_jax.report.dry_run import describe
from hwa_jax.training import setup as training_setup
from hwa_jax.training.ahead_of_time import compile_programs
from hwa_jax.training.setup import prepare
from hwa_jax.training.together import together

pytestmark = pytest.mark.usefixtures("compiled_once")

# 22 training images, 5 steps per epoch; 18 steps are four cycles of 4 and a partial one of 2.
FIELDS = {
    "data.name": "hwa_test_photos", "data.streamed": True, "data.image_size": 8, "data.random_resized_crop": True, "data.flip": True,
    "data.num_train": 0, "model.norm": "batch", "optimizer.momentum": 0.9, "training.batch_size": 4, "training.duration": "18 steps",
    "evaluation.batch_size": 4, "hwa.recalibration_examples": 10,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import tfds_pictures  # noqa: F401, registers the builder

    directory = tmp_path_factory.mktemp("data")
    hwa_jax.data.prepare("hwa_test_photos", directory)
    return str(directory)


@pytest.fixture(scope="module")
def uninterrupted(data_dir, compiled_once, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("uninterrupted")
    train(directory, {**FIELDS, "data.data_dir": data_dir})
    return directory


def in_memory(split):
    examples = [split.example(position) for position in range(split.num_examples)]
    return Split(*(np.stack([example[name] for example in examples]) for name in ("image", "label")))


def assert_same_weights(mine, theirs, rtol=0.0):
    ours, others = exported(mine), exported(theirs)
    assert ours.keys() == others.keys()
    for name, leaf in others.items():
        np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=rtol * np.abs(leaf).max(), err_msg=name)


def test_its_step_compiles_for_devices_that_hold_nothing(data_dir):
    setup = small_setup({**FIELDS, "data.data_dir": data_dir, "model.name": "mlp", "hwa.num_replicas": 2, "num_devices": 2})
    programs = {program.name: program for program in compile_programs(setup, jax.devices()[2:])}
    assert list(programs) == ["step", "evaluation of all", "statistics of all", "mean of all"]
    assert (programs["step"].always, programs["step"].sometimes) == ((), ("all-reduce",))


def test_it_is_the_training_in_memory_bit_for_bit(data_dir, monkeypatch, tmp_path):
    fields = {**FIELDS, "data.data_dir": data_dir, "data.random_resized_crop": False, "hwa.data_mode": "partitioned", "training.batch_size": 2}
    streamed = prepare(small_config(fields))
    splits = {name: in_memory(getattr(streamed.dataset, name)) for name in ("train", "validation", "test")}
    monkeypatch.setattr(training_setup, "load_dataset", lambda config: dataclasses.replace(streamed.dataset, **splits))
    results = hwa.run(streamed, tmp_path / "streamed")
    expected = train(tmp_path / "memory", {**fields, "data.streamed": False})
    assert results["final"] == expected["final"] and set(results["final"]) == {"outer", "hwa"}
    assert_same_weights(tmp_path / "streamed", tmp_path / "memory")
    assert rows(tmp_path / "streamed") == rows(tmp_path / "memory")


def test_a_run_that_goes_on_is_one_that_never_stopped(data_dir, uninterrupted, tmp_path):
    fields = {**FIELDS, "data.data_dir": data_dir}
    train(tmp_path, {**fields, "training.duration": "11 steps"})
    train(tmp_path, fields)
    assert_same_weights(tmp_path, uninterrupted)
    jax.tree.map(np.testing.assert_array_equal, checkpoint(tmp_path), checkpoint(uninterrupted))


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_devices(data_dir, tmp_path):
    # Moments of four images would magnify rounding a thousandfold within 18 steps.
    fields = {**FIELDS, "data.data_dir": data_dir, "model.norm": "none"}
    one = train(tmp_path / "one", fields)
    four = train(tmp_path / "four", {**fields, "num_devices": 4, "hwa.data_parallel": 2})
    assert_same_weights(tmp_path / "four", tmp_path / "one", 1e-5)
    assert four["final"]["hwa"]["test"]["accuracy"] == one["final"]["hwa"]["test"]["accuracy"]


def test_the_device_that_shares_a_batch_receives_its_part_alone(data_dir):
    setup = small_setup({**FIELDS, "data.data_dir": data_dir, "num_devices": 4, "hwa.data_parallel": 2})
    state, (batch_key, noise_key) = setup.initial_state(), setup.keys()
    text = setup.step.lower(state, None, next(setup.splits(0, batch_key)), noise_key, {}).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
    assert "u8[1,2,8,8,3]" in text and "u8[1,4,8,8,3]" not in text


def test_seeds_that_stream_are_trained_one_by_one(data_dir, uninterrupted, tmp_path):
    setup = small_setup({**FIELDS, "data.data_dir": data_dir})
    begin = [functools.partial(hwa.algorithm, setup.with_seed(seed), tmp_path / str(seed)) for seed in (0, 1)]
    together(begin)
    assert_same_weights(tmp_path / "0", uninterrupted)
    first, second = (exported(tmp_path / name) for name in "01")
    assert any((first[name] != second[name]).any() for name in first)


def test_a_dry_run_says_that_images_are_streamed(data_dir):
    text = describe(small_setup({**FIELDS, "data.data_dir": data_dir}), 3)
    assert "22 training, 8 validation, 5 test; streamed" in text


@pytest.mark.slow
def test_what_watches_and_chooses_averages_streams_too(data_dir, tmp_path):
    fields = {"evaluation.averaging_health": True, "hwa.window_size": "auto", "training.ema_decay": 0.9, "model.norm": "none"}
    results = train(tmp_path, {**FIELDS, **fields, "data.data_dir": data_dir})
    assert set(results["final"]) == {"outer", "hwa", "ema"} and results["window_choice"]["split"] == "validation"
    assert rows(tmp_path, kind="health")


@pytest.mark.slow
def test_kills_change_nothing(compilation_cache_dir, tmp_path):  # noqa: F811
    fields = {
        **SMALL, "data.streamed": True, "data.image_size": 8, "data.random_resized_crop": True, "optimizer.momentum": 0.9,
        "training.duration": "14 steps", "checkpoint.every": "3 steps",
    }
    command = watched_command("train_hwa.py", "hwa_digits.py", fields, compilation_cache_dir)
    assert Child(command, tmp_path / "whole").finish() == 0
    run_through(command, tmp_path / "killed", [("step", "within"), ("push", "enter"), ("checkpoint", "exit")], seed=0)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_are_one_training(compilation_cache_dir, tmp_path):  # noqa: F811
    fields = {"data.streamed": True, "data.image_size": 8, "data.random_resized_crop": True}
    run(tmp_path / "two", 2, 2, fields, compiled=compilation_cache_dir)
    run(tmp_path / "one", 1, 4, fields, compiled=compilation_cache_dir)
    assert_same_weights(tmp_path / "two", tmp_path / "one", 1e-5)


@pytest.mark.slow
def test_a_process_reads_its_share_alone(data_dir):
    port = free_port()
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen([sys.executable, ROOT / "tests/streaming_worker.py", str(port), str(number), data_dir], env=environment,
                         stdout=subprocess.PIPE, text=True)
        for number in range(2)
    ]
    said = [json.loads(worker.communicate(timeout=SECONDS)[0].splitlines()[-1]) for worker in workers]
    # Each replica owns 11 of 22 images, and an epoch has two batches of four; the training ends after two epochs.
    shares = [{*mine["train"]} for mine in said]
    assert [len(mine["train"]) for mine in said] == [16, 16] and not shares[0] & shares[1]
    assert len(shares[0] | shares[1]) >= 16
    # Five images in two batches of 32: padding repeats the last one.
    assert {*said[0]["test"]} | {*said[1]["test"]} == {*range(5)}
    assert said[0]["metrics"] == said[1]["metrics"]


@pytest.mark.slow
def test_imagenet_trains_its_network(data_dir, tmp_path):
    from test_configs import load

    config = load(ROOT / "configs" / "hwa_imagenet.py").get_config()
    set_fields(config, {
        "num_devices": 2, "data.name": "hwa_test_photos", "data.data_dir": data_dir, "data.image_size": 32, "data.validation_fraction": 0.2,
        "model.dtype": "float32", "training.batch_size": 8, "training.duration": "4 steps", "schedule.warmup": "1 steps",
        "schedule.milestones": ("50%",), "hwa.sync_period": "2 steps", "evaluation.every": "4 steps", "evaluation.batch_size": 8,
        "evaluation.train_examples": 8, "hwa.recalibration_examples": 12, "checkpoint.every": "2 steps",
    })
    setup = prepare(config)
    results = hwa.run(setup, tmp_path)
    assert results["steps"] == 4 and len(results["window"]) == 2
    weights = exported(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in weights.values())
    # As with 1000 classes, 25,557,032, less the rows of 997 in the last layer.
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(setup.model.init, jax.random.key(0))[0]))
    assert count == 25_557_032 - 997 * 2049
    assert all(0 <= metrics["accuracy"] <= 1 for by_split in results["final"].values() for metrics in by_split.values())
