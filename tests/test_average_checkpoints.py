"""Averages of checkpoints that others made: against NumPy, with BatchNorm recomputed, by the program."""

import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import averaged, files, member
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import hwa_jax
from hwa_jax import offline
from hwa_jax.algorithms import checkpoint_average
from hwa_jax.algorithms.stored_run import for_evaluation
from hwa_jax.errors import UserError
from hwa_jax.storage import found_checkpoints, safetensors
from hwa_jax.training.config import default_config
from hwa_jax.training.functional import as_pairs
from hwa_jax.training.predictor import description
from hwa_jax.training.setup import prepare

PROGRAM = Path(__file__).resolve().parent.parent / "experiments" / "average_checkpoints.py"


# ema 0.5: 1 -> (1 + 2) / 2 = 1.5 -> (1.5 + 6) / 2 = 3.75. Order 100, 10, 9 would give 2.5.
@pytest.mark.parametrize("kind, options, expected", [
    ("uniform", {}, 3.0), ("ema", {"decay": 0.5}, 3.75), ("ema", {"decay": 0.0}, 6.0), ("window", {"size": 1}, 6.0),
    ("window", {"size": 2}, 4.0), ("window", {"size": 99}, 3.0),
])
def test_averages_computed_by_hand(files, kind, options, expected):
    arrays, header = averaged(files, kind, **options)
    np.testing.assert_array_equal(arrays["fc.weight"], np.full((3, 2), expected, np.float32))
    np.testing.assert_array_equal(arrays["half"], np.full(2, expected, ml_dtypes.bfloat16))
    # Counters and masks have no mean: the newest.
    assert arrays["num_batches_tracked"] == 60 and arrays["num_batches_tracked"].shape == ()
    assert arrays["mask"].tolist() == [True, True]
    assert {name: array.dtype for name, array in arrays.items()} == {name: array.dtype for name, array in member(1).items()}
    assert header == {"format": "pt"}


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
    kind=st.sampled_from(["uniform", "ema", "window"]), decay=st.floats(0, 0.999), size=st.integers(1, 8),
)
def test_agrees_with_the_averages_of_training(tmp_path_factory, values, kind, decay, size):
    directory = tmp_path_factory.mktemp("members")
    for step, row in enumerate(values):
        save_file({"w": np.array(row, np.float32)}, directory / f"{step}.safetensors")
    options = {"ema": {"decay": decay}, "window": {"size": size}}.get(kind, {})
    found = averaged(f"{directory}/*", kind, **options).arrays["w"]
    with jax.enable_x64(True):
        average = {
            "uniform": offline.uniform_average, "ema": lambda: offline.exponential_average(decay),
            "window": lambda: offline.sliding_window(size),
        }[kind]()
        members = [jnp.array(row, jnp.float64) for row in values]
        state = average.init(members[0])
        for one in members[1:] if kind == "ema" else members:
            state = average.update(state, one)
        expected = np.asarray(average.value(state))
    # One rounding to float32, and that of the float64 sums where they cancel.
    np.testing.assert_allclose(found, expected, rtol=2**-24, atol=1e-9)


@pytest.mark.parametrize("kind, options, message", [
    ("ema", {"decay": 1.0}, "decay=1.0: must be at least 0 and below 1"),
    ("ema", {"decay": -0.1}, "decay=-0.1: must be"),
    ("ema", {"decay": float("nan")}, "decay=nan: must be"),
    ("ema", {}, "average='ema': give decay"),
    ("window", {}, "average='window': give size"),
    ("window", {"size": 0}, "size=0: must be at least 1"),
    ("uniform", {"decay": 0.9}, "decay=0.9: belongs to average='ema'"),
    ("ema", {"decay": 0.9, "size": 2}, "size=2: belongs to average='window'"),
])
def test_bad_averages(kind, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        checkpoint_average.shares(kind, 3, **options)


def test_memory_does_not_grow_with_the_number_of_checkpoints(tmp_path):
    for step in range(10):
        save_file({"w": np.full((500, 500), step, np.float32)}, tmp_path / f"{step}.safetensors")
    paths = found_checkpoints.find(f"{tmp_path}/*")
    peaks = []
    for count in (2, 10):
        tracemalloc.start()
        checkpoint_average.average(paths[:count], [1.0] * count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] < 6 * 500 * 500 * 4


@pytest.fixture(scope="module")
def setup():
    config = default_config()
    config.data.num_train = 200
    config.model.update({"name": "mlp", "norm": "batch"})
    config.training.batch_size = 180  # all training images: moments of one batch are the oracle
    return prepare(for_evaluation(config))


@pytest.fixture
def exports(setup, tmp_path):
    """Two files as `evaluate.py export` writes them, of random weights."""
    for seed in (1, 2):
        weights = setup.model.init(jax.random.key(seed))
        safetensors.save_weights(tmp_path / f"{seed}.safetensors", *weights, {"metrics": {}, **description(setup)})
    return str(tmp_path / "?.safetensors")


def test_batch_norm_is_recomputed_where_network_and_data_are_given(setup, exports, tmp_path):
    average = averaged(exports)
    about = {"average": "uniform"}
    metrics = checkpoint_average.save_recalibrated(average, tmp_path / "average.safetensors", about, setup)
    params, batch_stats = safetensors.load_weights(tmp_path / "average.safetensors")
    for name, leaf in safetensors.named_leaves({"params": params}).items():
        np.testing.assert_array_equal(leaf, average.arrays[name])
    oracle = setup.model.moments(params, batch_stats, normalized(setup, setup.dataset.train.images))
    for found, expected in zip(jax.tree.leaves(as_pairs(batch_stats)), jax.tree.leaves(oracle), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert metrics == setup.evaluator.one(params, batch_stats, setup.validation)
    assert safetensors.load_metadata(tmp_path / "average.safetensors")["average"] == about


def normalized(setup, images):
    return (np.float32(images) / 255 - setup.dataset.mean) / setup.dataset.std


def test_an_average_of_exports_loads_as_they_do(setup, exports, tmp_path):
    average = averaged(exports)
    checkpoint_average.save(average, tmp_path / "average.safetensors", {"average": "uniform"})
    images = setup.dataset.test.images[:5]
    logits = hwa_jax.load_predictor(tmp_path / "average.safetensors")(images)
    weights = safetensors.as_weights("", average.arrays)
    np.testing.assert_allclose(logits, setup.model.predict(*weights, normalized(setup, images)), rtol=1e-5, atol=1e-5)
    # The metrics of one member are not those of the average.
    assert "metrics" not in safetensors.load_metadata(tmp_path / "average.safetensors")


def test_weights_of_another_network_are_refused(setup, files, exports, tmp_path):
    with pytest.raises(UserError, match="fc.weight is neither params/... nor batch_stats/"):
        checkpoint_average.save_recalibrated(averaged(files), tmp_path / "average.safetensors", {}, setup)
    average = averaged(exports)
    name = sorted(average.arrays)[-1]
    average.arrays[name] = average.arrays[name][:1]
    with pytest.raises(UserError, match=rf"{name} is float32\[1"):
        checkpoint_average.save_recalibrated(average, tmp_path / "average.safetensors", {}, setup)
    assert not (tmp_path / "average.safetensors").exists()


def program(*arguments):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | {"PYTHONPATH": str(PROGRAM.parents[1])}
    return subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, env=environment)


def test_the_program(files, tmp_path):
    output = tmp_path / "made" / "averages"
    done = program(f"--checkpoints={files}", "--average=ema", "--decay=0.5", f"--output={output}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 of 3 checkpoints, from" in done.stdout
    np.testing.assert_array_equal(load_file(output / "average.safetensors")["fc.weight"], np.full((3, 2), 3.75, np.float32))
    about = safetensors.load_metadata(output / "average.safetensors")["average"]
    assert (about["average"], about["decay"], len(about["checkpoints"])) == ("ema", 0.5, 3)


@pytest.mark.parametrize("arguments, message", [
    pytest.param(["--output={here}/model_9.safetensors"], "exists", marks=pytest.mark.slow),
    (["--output={here}/model_9.safetensors", "--overwrite"], "is one of the --checkpoints"),
])
def test_the_program_replaces_nothing_by_accident(files, tmp_path, arguments, message):
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = program(f"--checkpoints={files}", *(a.format(here=tmp_path) for a in arguments))
    assert done.returncode == 2 and re.fullmatch(r"error: [^\n]*\n", done.stderr) and message in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
