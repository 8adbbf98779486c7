"""IDX files: intact ones are read, every damage is one clear line."""

import gzip
import struct

import numpy as np
import pytest

import hwa_jax.data
from hwa_jax.data.idx import find_idx, read_idx
from hwa_jax.errors import UserError

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def idx_bytes(array):
    """The format written independently of the reader: magic, big-endian shape, bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_data_set(directory, *, train=60, test=20, size=(6, 5), test_size=None, compress=True):
    """Writes four IDX files; returns {split: (images, labels)}."""
    random = np.random.RandomState(0)
    directory.mkdir(exist_ok=True, parents=True)
    written = {}
    for split, count, shape in (("train", train, size), ("test", test, test_size or size)):
        written[split] = (random.randint(0, 256, (count, *shape)), np.arange(count) % 10)
        for name, array in zip(NAMES[split], written[split]):
            content = idx_bytes(array)
            if compress:
                (directory / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (directory / name).write_bytes(content)
    return written


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("subdirectory", ["", "mnist"])
def test_load_reads_what_was_written(tmp_path, compress, subdirectory):
    written = write_data_set(tmp_path / subdirectory, compress=compress)
    loaded = hwa_jax.data.load("mnist", data_dir=tmp_path, validation_fraction=0)
    for split, (images, labels) in written.items():
        read = getattr(loaded, split)
        np.testing.assert_array_equal(read.images[..., 0], images)
        np.testing.assert_array_equal(read.labels, labels)
        assert read.images.dtype == np.uint8 and read.labels.dtype == np.int32
    assert loaded.num_classes == 10 and loaded.validation.num_examples == 0


def test_default_directory_needs_the_name_of_the_data_set(tmp_path, monkeypatch):
    # MNIST and Fashion-MNIST have the same file names: files lying bare in the shared
    # directory may be either.
    monkeypatch.setenv("HWA_JAX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    write_data_set(tmp_path)
    with pytest.raises(UserError, match="'mnist' not found"):
        hwa_jax.data.load("mnist")
    write_data_set(tmp_path / "mnist")
    assert hwa_jax.data.load("mnist", validation_fraction=0).train.num_examples == 60


def test_plain_file_is_preferred_and_missing_directories_are_skipped(tmp_path):
    write_data_set(tmp_path / "there")
    (tmp_path / "there" / NAMES["test"][1]).write_bytes(idx_bytes(np.zeros(3)))
    found = find_idx([tmp_path / "not_there", tmp_path / "there"])
    assert found["test"][1].name == NAMES["test"][1]
    assert find_idx([tmp_path / "not_there"]) is None


INTACT = idx_bytes(np.arange(12).reshape(3, 2, 2))
DAMAGES = {
    "empty": (b"", "0 bytes are too few"),
    "cut in the header": (INTACT[:9], "9 bytes are too few"),
    "cut in the data": (INTACT[:-1], r"header says \(3, 2, 2\), but 11 values"),
    "a byte too many": (INTACT + b"x", "but 13 values"),
    "labels for images": (idx_bytes(np.arange(40)), "starts with 00000801"),
    "floats": (b"\0\0\x0d\x03" + INTACT[4:], "starts with 00000d03"),
    "another file": (b"<html>404 Not Found</html>", "starts with 3c68746d"),
    "overflowing shape": (INTACT[:4] + b"\xff" * 12 + INTACT[16:], "header says"),
}


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_content(tmp_path, damage, compress):
    content, message = DAMAGES[damage]
    path = tmp_path / ("file.gz" if compress else "file")
    path.write_bytes(gzip.compress(content) if compress else content)
    with pytest.raises(UserError, match=message) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value) and "intact copy" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.95])
def test_truncated_gzip(tmp_path, cut):
    content = gzip.compress(idx_bytes(np.random.RandomState(0).randint(0, 256, (50, 9, 9))))
    path = tmp_path / "file.gz"
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(UserError, match="intact copy"):
        read_idx(path, 3)


def test_corrupt_gzip(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (50, 9, 9))
    content = bytearray(gzip.compress(idx_bytes(images)))
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_idx(path, 3)


def test_incomplete_directory_names_what_is_missing(tmp_path):
    write_data_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte missing"):
        hwa_jax.data.load("fashion_mnist", data_dir=tmp_path)


def rewrite(directory, name, array):
    (directory / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))


def test_files_that_do_not_belong_together(tmp_path):
    write_data_set(tmp_path, test_size=(5, 6))
    with pytest.raises(UserError, match=r"shape \(6, 5, 1\) but test images of shape \(5, 6, 1\)"):
        hwa_jax.data.load("mnist", data_dir=tmp_path)
    rewrite(tmp_path, "train-labels-idx1-ubyte", np.zeros(59))
    with pytest.raises(UserError, match="59 labels for the 60 images"):
        hwa_jax.data.load("mnist", data_dir=tmp_path)


def test_label_out_of_range(tmp_path):
    write_data_set(tmp_path)
    rewrite(tmp_path, "train-labels-idx1-ubyte", np.where(np.arange(60) == 17, 10, 0))
    with pytest.raises(UserError, match=r"mnist train: label 10 of example 17 is not in 0\.\.9"):
        hwa_jax.data.load("mnist", data_dir=tmp_path)


def test_empty_split(tmp_path):
    write_data_set(tmp_path, test=0)
    with pytest.raises(UserError, match=r"mnist test: images of shape \(0, 6, 5, 1\): empty"):
        hwa_jax.data.load("mnist", data_dir=tmp_path)
