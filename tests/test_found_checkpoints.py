"""Checkpoints of others are read in both formats; what cannot be is named in one line."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_files import averaged, files, member
from safetensors.numpy import save_file

from hwa_jax.errors import UserError
from hwa_jax.storage import found_checkpoints
from hwa_jax.storage.window_store import WindowStore


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


def break_by_our_own(directory):
    with WindowStore(directory / "window", 2) as window:
        window.push(3, {"w": np.ones(2, np.float32)})
    return directory / "window" / "step_*"


@pytest.mark.parametrize("spoil, message", [
    (break_by_our_own, r"step_00000003.0: is of a work directory of hwa_jax: make a file of it with experiments/evaluate.py export"),
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
