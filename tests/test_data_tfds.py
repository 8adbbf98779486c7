"""TensorFlow Datasets without TensorFlow: preparing, reading, sharing a directory."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tfds_pictures import COUNTS, REPOSITORY, picture, run_python

import hwa_jax.data
from hwa_jax.data.digits import HwaDigits

@pytest.mark.parametrize("name", ["hwa_test_png", "hwa_test_gray"])
def test_png_survives_preparing_and_reading_bit_for_bit(tmp_path, name):
    hwa_jax.data.prepare(name, tmp_path)
    data = hwa_jax.data.load(name, data_dir=tmp_path, validation_fraction=0)
    channels = data.train.image_shape[-1]
    for split, count in COUNTS.items():
        read = getattr(data, split)
        expected = {picture(split, i)[..., :channels].tobytes(): i % 3 for i in range(count)}
        found = dict(zip((image.tobytes() for image in read.images), read.labels.tolist()))
        assert found == expected and read.num_examples == count
    assert data.num_classes == 3


def test_jpeg_is_read_within_its_quantization(tmp_path):
    hwa_jax.data.prepare("hwa_test_jpeg", tmp_path)
    data = hwa_jax.data.load("hwa_test_jpeg", data_dir=tmp_path, validation_fraction=0)
    levels = np.sort(data.train.images.astype(int).mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(levels, 8 * np.arange(30), atol=1)


def test_the_stand_in_leaves_no_trace(tmp_path):
    hwa_jax.data.prepare("hwa_test_png", tmp_path)
    from tensorflow_datasets.core.utils import lazy_imports_utils

    assert "tensorflow" not in sys.modules
    assert "_module" not in vars(lazy_imports_utils.tensorflow)


def test_cifar10_builder_prepares_without_tensorflow(tmp_path, monkeypatch):
    # The published binary format: a label byte, then 32x32 red, green, blue planes.
    raw = tmp_path / "raw" / "cifar-10-batches-bin"
    raw.mkdir(parents=True)
    records = np.random.RandomState(0).randint(0, 256, (60, 3073)).astype(np.uint8)
    records[:, 0] %= 10
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    for name, part in zip(names, np.split(records, 6)):
        (raw / name).write_bytes(part.tobytes())
    (raw / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)))
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda self, url: raw.parent
    )
    hwa_jax.data.prepare("cifar10", tmp_path)
    data = hwa_jax.data.load("cifar10", data_dir=tmp_path, validation_fraction=0)
    expected = {
        record[1:].reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): int(record[0])
        for record in records[50:]
    }
    found = dict(zip((image.tobytes() for image in data.test.images), data.test.labels.tolist()))
    assert found == expected and data.train.num_examples == 50


DIGITS = """
import sys, hwa_jax.data
early = [name for name in ("tensorflow_datasets", "sklearn") if name in sys.modules]
data = hwa_jax.data.load("digits")
print(data.fingerprint, early, "tensorflow" in sys.modules)
"""


def test_digits_are_quiet_and_import_no_tensorflow(tmp_path):
    for _ in range(2):  # once preparing, once reading what is prepared
        output, errors = run_python(DIGITS, HWA_JAX_DATA_DIR=str(tmp_path))
        assert output.split(" ", 1)[1] == "[] False\n"
        assert errors == ""


def test_first_use_by_several_processes_at_once(tmp_path):
    environment = {**os.environ, "HWA_JAX_DATA_DIR": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DIGITS],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    results = [(process.communicate(timeout=300), process.returncode) for process in processes]
    assert [code for _, code in results] == [0, 0, 0], results
    assert len({output for (output, _), _ in results}) == 1
    assert not list(tmp_path.glob("hwa_digits/*incomplete*"))


def test_a_process_that_finds_the_lock_taken_does_not_prepare_again(tmp_path, monkeypatch):
    prepared = hwa_jax.data.prepare("digits", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    # As in the race: not prepared when looked at first, prepared once the lock is held.
    answers = iter([False, True])
    monkeypatch.setattr("hwa_jax.data.preparation.is_prepared", lambda builder: next(answers))
    monkeypatch.setattr(HwaDigits, "download_and_prepare", lambda self: pytest.fail("repeated"))
    hwa_jax.data.prepare("digits", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before


def test_prepared_files_are_read_without_the_builders_code(tmp_path):
    hwa_jax.data.prepare("hwa_test_png", tmp_path)
    output, _ = run_python(
        "import hwa_jax.data\n"
        f"data = hwa_jax.data.load('hwa_test_png', data_dir={str(tmp_path)!r})\n"
        "print(data.train.images.shape, data.test.labels.sum())"
    )
    assert output == f"(27, 8, 8, 3) {sum(i % 3 for i in range(10))}\n"


def test_validation_split_stands_in_for_a_missing_test_split(tmp_path):
    hwa_jax.data.prepare("hwa_test_only_validation", tmp_path)
    data = hwa_jax.data.load("hwa_test_only_validation", data_dir=tmp_path)
    assert (data.train.num_examples, data.validation.num_examples) == (27, 3)
    expected = {picture("validation", index).tobytes() for index in range(5)}
    assert {image.tobytes() for image in data.test.images} == expected


def test_program_prepares_and_reports_errors(tmp_path):
    command = [sys.executable, "-m", "hwa_jax.data", "--data_dir", str(tmp_path)]
    done = subprocess.run([*command, "digits"], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/hwa_digits/1.0.0\n")
    done = subprocess.run([*command, "nosuch"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: data set 'nosuch' is unknown")
    assert done.stderr.count("\n") == 1
