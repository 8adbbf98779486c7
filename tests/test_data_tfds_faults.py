"""Data sets that are missing, damaged, unusable or half prepared: one clear line each."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tfds_pictures  # noqa: F401, registers the builders named hwa_test_*

import hwa_jax.data
from hwa_jax.data.digits import HwaDigits
from hwa_jax.errors import UserError

UNUSABLE = [
    ("hwa_test_sizes", r"images of 2 sizes, such as \(4, 8, 3\) and \(5, 8, 3\)"),
    ("hwa_test_regression", r"has the features image, label; choose one with .* class label"),
    ("hwa_test_no_test", r"has the splits extra, train; choose one with train and test"),
    ("hwa_test_unlabelled", r"test: label -1 of example 0 is not in 0\.\.2"),
]


@pytest.mark.parametrize("name, message", UNUSABLE)
def test_data_sets_that_are_no_image_classification(tmp_path, name, message):
    hwa_jax.data.prepare(name, tmp_path)
    with pytest.raises(UserError, match=message):
        hwa_jax.data.load(name, data_dir=tmp_path)


CLOSE_NAMES = [
    ("cifar11", "cifar10"),
    ("digit", "digits"),
    ("fashion-mnist", "fashion_mnist"),
    ("", "digits"),
    ("a b", "digits"),
]


@pytest.mark.parametrize("name, close", CLOSE_NAMES)
def test_unknown_name_lists_close_ones(tmp_path, name, close):
    with pytest.raises(UserError, match=rf"data set '{name}' .*{close}") as error:
        hwa_jax.data.load(name, data_dir=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cifar10:9.9.9", "cifar100/nothing", "../secret"])
def test_name_that_cannot_be_opened(tmp_path, name):
    with pytest.raises(UserError, match="correct the name") as error:
        hwa_jax.data.load(name, data_dir=tmp_path)
    assert "\n" not in str(error.value) and repr(name) in str(error.value)


def test_missing_data_set_says_where_it_looked_and_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HWA_JAX_DATA_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "shared"))
    with pytest.raises(UserError) as error:
        hwa_jax.data.load("cifar10")
    assert str(error.value) == (
        f"data set 'cifar10' not found, looked in {tmp_path}/own, {tmp_path}/shared; with a "
        f"network run: python -m hwa_jax.data cifar10 --data_dir={tmp_path}/own"
    )
    assert list(tmp_path.iterdir()) == []


def test_missing_fashion_mnist_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(hwa_jax.data.sources._IDX_DIRECTORIES, "fashion_mnist", [tmp_path / "deb"])
    with pytest.raises(UserError, match="apt install dataset-fashion-mnist") as error:
        hwa_jax.data.load("fashion_mnist", data_dir=tmp_path)
    assert f"{tmp_path}/fashion_mnist, {tmp_path}, {tmp_path}/deb" in str(error.value)


def test_other_file_format(tmp_path):
    info = hwa_jax.data.prepare("hwa_test_png", tmp_path) / "dataset_info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps({**content, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="array_record"):
        hwa_jax.data.load("hwa_test_png", data_dir=tmp_path)


def damaged(kind, directory):
    record = next(directory.glob("*-train.array_record*"))
    if kind == "record missing":
        record.unlink()
    elif kind == "record empty":
        record.write_bytes(b"")
    elif kind == "record cut":
        record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
    elif kind == "record overwritten":
        record.write_bytes(bytes(record.stat().st_size))
    else:
        (directory / "dataset_info.json").write_text("{")


@pytest.mark.parametrize("name", ["digits", "hwa_test_png"])
@pytest.mark.parametrize(
    "kind", ["record missing", "record empty", "record cut", "record overwritten", "info cut"]
)
def test_damaged_files(tmp_path, name, kind):
    damaged(kind, hwa_jax.data.prepare(name, tmp_path))
    with pytest.raises(UserError, match="prepare it again") as error:
        hwa_jax.data.load(name, data_dir=tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_interrupted_preparation_is_repeated(tmp_path, monkeypatch):
    def interrupted(self, *arguments):
        yield 0, {"image": np.zeros((8, 8, 1), np.uint8), "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(HwaDigits, "_generate_examples", interrupted)
        hwa_jax.data.prepare("digits", tmp_path)
    assert hwa_jax.data.load("digits", data_dir=tmp_path).test.num_examples == 500


def test_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"data_dir={tmp_path}/file/below failed \(NotADirectory"):
        hwa_jax.data.load("digits", data_dir=tmp_path / "file" / "below")


def test_failed_download_is_one_line(tmp_path, monkeypatch):
    def no_network(self, urls):
        raise ConnectionError("cannot\nresolve the host")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", no_network)
    with pytest.raises(UserError, match="ConnectionError: cannot resolve the host.*network"):
        hwa_jax.data.prepare("cifar10", tmp_path)
