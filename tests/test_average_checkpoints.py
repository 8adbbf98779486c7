"""Averages of checkpoints that others made: against NumPy, in both formats, and with bad input."""

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
import orbax.checkpoint as ocp
import pytest
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

PROGRAM = Path(__file__).parent.parent / "experiments" / "average_checkpoints.py"


def member(value):
    """A checkpoint as PyTorch names them; the mean of the floating arrays is the mean of the values."""
    return {
        "fc.weight": np.full((3, 2), value, np.float32),
        "half": np.full(2, value, ml_dtypes.bfloat16),
        "num_batches_tracked": np.array(10 * value, np.int64),
        "mask": np.array([value > 4, True]),
    }


@pytest.fixture
def files(tmp_path):
    """Values 1, 2, 6 in this order of steps; not the order of the letters."""
    for step, value in ((9, 1), (10, 2), (100, 6)):
        save_file(member(value), tmp_path / f"model_{step}.safetensors", {"format": "pt"})
    return str(tmp_path / "model_*.safetensors")


def averaged(pattern, kind="uniform", **options):
    paths = found_checkpoints.find(pattern)
    shares = checkpoint_average.shares(kind, len(paths), **options)
    return checkpoint_average.average(paths[-len(shares):], shares)


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


def orbax_tree(value):
    return {
        "params": {"dense": {"kernel": jnp.full((2, 3), value, jnp.float32), "bias": jnp.full(3, value, jnp.bfloat16)}},
        "opt": [jnp.full(2, value, jnp.float32), None, {}], "step": jnp.int32(value), "rate": 0.5 * value, "count": 7 * value,
    }


def save_standard(directory, step, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / f"ckpt_{step}", tree)


def save_pytree(directory, step, tree):
    ocp.PyTreeCheckpointer().save(directory / f"ckpt_{step}", {**tree, "name": "a tokenizer"})


def save_without_ocdbt(directory, step, tree):
    ocp.PyTreeCheckpointer(use_ocdbt=False).save(directory / f"ckpt_{step}", tree)


def save_by_manager(directory, step, tree):
    with ocp.CheckpointManager(directory) as manager:
        manager.save(step, args=ocp.args.StandardSave(tree))


def save_composite(directory, step, tree):
    with ocp.CheckpointManager(directory) as manager:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(tree), notes=ocp.args.JsonSave({"a": 1})))


@pytest.mark.parametrize("save", [save_standard, save_pytree, save_without_ocdbt, save_by_manager, save_composite])
def test_reads_what_orbax_writes(tmp_path, save):
    for step, value in ((9, 1), (10, 2), (100, 6)):
        save(tmp_path, step, orbax_tree(value))
    arrays = averaged(f"{tmp_path}/*", "window", size=2).arrays
    expected = {  # the mean of 2 and 6, the newest of integers
        "params/dense/kernel": np.full((2, 3), 4, np.float32), "params/dense/bias": np.full(3, 4, ml_dtypes.bfloat16),
        "opt/0": np.full(2, 4, np.float32), "step": np.int32(6), "rate": np.float64(2), "count": np.int64(42),
    }
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)


def test_orbax_arrays_that_were_spread_over_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    for step in (1, 2):
        save_standard(tmp_path, step, {"w": jax.device_put(jnp.arange(16.0) * step, sharding)})
    np.testing.assert_array_equal(averaged(f"{tmp_path}/*").arrays["w"], np.arange(16) * np.float32(1.5))


def test_a_damaged_orbax_checkpoint_is_named_in_one_quiet_line(tmp_path, capfd):
    path = tmp_path / "ckpt_1"
    ocp.PyTreeCheckpointer().save(path, {"a": np.arange(30000.0), "b": np.ones(3)})
    refused = 0
    for victim in sorted(p for p in path.rglob("*") if p.is_file()):
        whole = victim.read_bytes()
        victim.write_bytes(whole[: len(whole) // 2])
        try:
            found = found_checkpoints.read(str(path)).arrays
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # a file that holds none of the arrays
            np.testing.assert_array_equal(found["a"], np.arange(30000.0))
            np.testing.assert_array_equal(found["b"], np.ones(3))
        victim.write_bytes(whole)
    assert refused >= 3
    assert "Traceback" not in capfd.readouterr().err


def break_nothing(directory):
    return directory / "none_*"


def break_by_nan(directory):
    save_file({**member(3), "fc.weight": np.full((3, 2), np.nan, np.float32)}, directory / "model_11.safetensors")


def break_by_infinity(directory):
    save_file({**member(3), "half": np.full(2, np.inf, ml_dtypes.bfloat16)}, directory / "model_11.safetensors")


def break_by_shape(directory):
    save_file({**member(3), "fc.weight": np.zeros((3, 4), np.float32)}, directory / "model_11.safetensors")


def break_by_dtype(directory):
    save_file({**member(3), "half": np.zeros(2, np.float16)}, directory / "model_11.safetensors")


def break_by_missing(directory):
    save_file({"half": member(3)["half"]}, directory / "model_11.safetensors")


def break_by_emptiness(directory):
    save_file({}, directory / "model_1.safetensors")


def break_by_truncation(directory):
    path = directory / "model_10.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def break_by_pickle(directory):
    (directory / "model_11.safetensors").write_bytes(b"\x80\x02}q\x00." * 20)


def break_by_directory(directory):
    (directory / "model_11.safetensors").mkdir()


def break_by_mixture(directory):
    save_pytree(directory, 1, orbax_tree(1))
    return directory / "*"


def break_by_unfinished(directory):
    save_pytree(directory, 1, orbax_tree(1))
    (directory / "ckpt_1").rename(directory / "ckpt_1.orbax-checkpoint-tmp-5")
    return directory / "ckpt*"


def break_by_items(directory):
    with ocp.CheckpointManager(directory / "two") as manager:
        both = {name: ocp.args.StandardSave(orbax_tree(1)) for name in ("params", "state")}
        manager.save(1, args=ocp.args.Composite(**both))
    return directory / "two" / "*"


def break_by_level(directory):
    save_by_manager(directory / "steps", 1, orbax_tree(1))
    return directory / "steps"


@pytest.mark.parametrize("spoil, message", [
    (break_nothing, r"none_\*: matches nothing"),
    (break_by_nan, r"model_11.safetensors: fc.weight holds NaN"),
    (break_by_infinity, r"model_11.safetensors: half holds NaN or infinity"),
    (break_by_shape, r"model_11.safetensors: fc.weight is float32\[3, 4\], in .*model_9.safetensors it is float32\[3, 2\]"),
    (break_by_dtype, r"model_11.safetensors: half is float16\[2\], in .*model_9.safetensors it is bfloat16\[2\]"),
    (break_by_missing, r"model_11.safetensors: fc.weight is missing, in .*model_9.safetensors it is float32\[3, 2\]"),
    (break_by_emptiness, r"model_1.safetensors: holds no arrays"),
    (break_by_truncation, r"model_10.safetensors: not a complete safetensors file"),
    (break_by_pickle, r"model_11.safetensors: not a complete safetensors file"),
    (break_by_directory, r"model_11.safetensors: not a complete Orbax checkpoint"),
    (break_by_mixture, r"give one format at a time"),
    (break_by_unfinished, r"ckpt_1.orbax-checkpoint-tmp-5: a save that was interrupted"),
    (break_by_items, r"several items \(params, state\): add one to the glob, as in '\*/params'"),
    (break_by_level, r"it holds 1: add /\* to the glob"),
])
def test_bad_checkpoints_are_named_in_one_line(files, spoil, message):
    pattern = spoil(Path(files).parent)
    with pytest.raises(UserError, match=message) as error:
        averaged(str(pattern or files))
    assert "\n" not in str(error.value)


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
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
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
