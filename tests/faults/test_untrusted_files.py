"""Files made up to do harm: no pickle is read, no size is believed, and every refusal is one line."""

import ast
import json
import struct
import tracemalloc
import zlib

import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from hwa_jax import sizes
from hwa_jax.data.arrays import read_npz
from hwa_jax.errors import UserError
from hwa_jax.storage import found_checkpoints, safetensors, sparse_weights
from hwa_jax.storage.checkpoint import CheckpointStore
from programs import ROOT

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "_pickle"}
HUGE = 2**40


def test_no_module_reads_pickle():
    for path in [*(ROOT / "hwa_jax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not PICKLES & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"eval", "exec", "__import__"}, path


def refused(read, peak=50_000_000):
    """The line with which a file is refused, after no more than so many bytes of memory."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            read()
        assert tracemalloc.get_traced_memory()[1] < peak
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    return str(error.value)


def write_safetensors(path, header, content=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


@pytest.mark.parametrize("header", [
    {"params/w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}},
    {"params/w": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4]}},
    {"params/w": {"dtype": "F32", "shape": [HUGE, HUGE, HUGE], "data_offsets": [0, 0]}},
])
def test_safetensors_that_claim_too_much(tmp_path, header):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, header, bytes(4))
    assert str(path) in refused(lambda: safetensors.load_weights(path))


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", HUGE) + b"{}")
    assert "not a complete safetensors file" in refused(lambda: safetensors.load_weights(path))


@pytest.mark.parametrize("shapes", [{"params/w": [HUGE]}, {"params/w": [-1]}, {"params/w": 3}, {"params/w": ["a"]}, ["params/w"], 1, {"params/v": [2]}])
def test_masks_whose_shape_is_made_up(tmp_path, shapes):
    path = tmp_path / "w.safetensors"
    arrays = {"params/w:mask": np.packbits([True, False]), "params/w:values": np.ones(1, np.float32)}
    save_file(arrays, path, {"hwa_jax": json.dumps({"shapes": shapes})})
    assert "not a file of pruned weights" in refused(lambda: sparse_weights.load_sparse_weights(path))


def test_an_orbax_array_that_claims_too_much(tmp_path):
    directory = tmp_path / "checkpoint"
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)).save(directory, {"w": np.ones((4, 4), np.float32)})
    [described] = directory.rglob(".zarray")
    described.write_text(json.dumps({**json.loads(described.read_text()), "shape": [HUGE, HUGE]}))
    message = refused(lambda: found_checkpoints.read(str(directory)))
    assert f"claims {4 * HUGE**2:,} bytes" in message


def test_a_checkpoint_that_claims_too_much(tmp_path):
    CheckpointStore(tmp_path).save(1, {"w": np.ones(3, np.float32)})
    [path] = tmp_path.rglob("tree.json")
    text = path.read_text().split("\n", 1)[1].replace('"shape": [3]', f'"shape": [{HUGE}, {HUGE}]')
    path.write_text(f"{zlib.crc32(text.encode()):08x}\n{text}")
    message = refused(lambda: CheckpointStore(tmp_path).restore(step=1))
    assert f"claims {4 * HUGE**2:,} bytes" in message


def test_images_that_claim_too_much_or_are_objects(tmp_path, monkeypatch):
    path = tmp_path / "mine.npz"
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 2, 1])
    np.savez(path, x_train=np.array([print], dtype=object), y_train=labels, x_test=images, y_test=labels)
    assert "cannot be read" in refused(lambda: read_npz(path))
    np.savez_compressed(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    monkeypatch.setattr(sizes.os, "sysconf", lambda name: 30)
    assert "more than this machine's memory" in refused(lambda: read_npz(path))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_altered_bytes_of_safetensors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "w.safetensors"
    mask = {"kernel": np.array([[True, False, True]] * 5)}
    sparse_weights.save_sparse_weights(path, {"kernel": np.arange(15.0).reshape(5, 3) * mask["kernel"]}, {}, mask, {"about": "text"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    for read in (safetensors.load_weights, sparse_weights.load_sparse_weights, safetensors.load_metadata):
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)
