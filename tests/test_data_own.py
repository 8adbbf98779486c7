"""Your own images: a folder by class and a NumPy file, from real files through load() and the programs."""

import hashlib
import json
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import hwa_jax.data
from hwa_jax.algorithms import hwa_comparison, swamp_methods
from hwa_jax.algorithms.swamp_comparison import default_comparison as default_swamp_comparison
from hwa_jax.errors import UserError
from hwa_jax.training import setup, sparse_setup
from hwa_jax.training.config import default_config, default_swamp_config, differences
from own_images import NAMES, picture, write, write_folder, write_npz
from programs import ROOT, call
from training_runs import SMALL, compilation_cache_dir, compiled_once, set_fields  # noqa: F401


def folder(directory, **arguments):
    return hwa_jax.data.load("mine", source="folder", data_dir=directory, **{"validation_fraction": 0, **arguments})


def numpy_file(path, **arguments):
    return hwa_jax.data.load("mine", source="numpy", data_dir=path, **{"validation_fraction": 0, **arguments})


def as_pairs(split):
    return {(image.tobytes(), int(label)) for image, label in zip(split.images, split.labels)}


def test_a_folder_that_is_split(tmp_path):
    data = folder(write_folder(tmp_path, per_class=4, sides=("train", "test")))
    assert data.class_names == NAMES and data.num_classes == 3 and data.name == "mine"
    assert data.train.images.shape == data.test.images.shape == (12, 8, 8, 1)
    assert data.train.labels.dtype == np.int32
    for split, offset in ((data.train, 0), (data.test, 100)):
        assert as_pairs(split) == {(picture(label, i + offset).tobytes(), label) for label in range(3) for i in range(4)}


def test_the_split_that_is_made(tmp_path):
    # Oracle: of CLASS/FILE's SHA-256 the first eight bytes, a big-endian number, divided by five without rest.
    data = folder(write_folder(tmp_path))
    expected = {
        (picture(label, index).tobytes(), label) for label, name in enumerate(NAMES) for index in range(20)
        if int(hashlib.sha256(f"{name}/{index:02}.png".encode()).hexdigest()[:16], 16) % 5 == 0
    }
    assert as_pairs(data.test) == expected and 3 <= len(expected) <= 20
    assert len(as_pairs(data.train)) == 60 - len(expected) and not as_pairs(data.train) & expected
    assert folder(tmp_path, seed=3).test.images.tobytes() == data.test.images.tobytes()


def test_images_keep_their_side_when_others_are_added(tmp_path):
    before = folder(write_folder(tmp_path))
    for index in range(20, 40):
        write(tmp_path / "dog" / f"{index}.png", picture(1, index))
    after = folder(tmp_path)
    assert as_pairs(before.test) < as_pairs(after.test) and as_pairs(before.train) < as_pairs(after.train)


def test_colors_and_jpeg(tmp_path):
    # A JPEG of one color comes back as it was, to a rounding.
    for label, name in enumerate(NAMES):
        for side in ("train", "test"):
            write(tmp_path / side / name / "A.JPG", np.full((8, 6, 3), (10 + 90 * label, 40, 200), np.uint8), quality=95)
    data = folder(tmp_path)
    assert data.train.images.shape == (3, 8, 6, 3)
    for label in range(3):
        np.testing.assert_allclose(data.train.images[label].astype(int), np.broadcast_to((10 + 90 * label, 40, 200), (8, 6, 3)), atol=3)


def test_the_orientation_of_a_camera(tmp_path):
    write_folder(tmp_path, per_class=1, sides=("train", "test"), shape=(4, 8))
    # EXIF 6: the top of the picture is the right side of the stored pixels, so it is shown turned clockwise.
    stored = np.zeros((8, 4), np.uint8)
    stored[0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "train" / "cat" / "00.png", stored, exif=exif)
    np.testing.assert_array_equal(folder(tmp_path).train.images[0, :, :, 0], np.rot90(stored, -1))


def test_resizing(tmp_path):
    write_folder(tmp_path, per_class=2, sides=("train", "test"))
    write(tmp_path / "train" / "eel" / "00.png", np.full((30, 50), 77, np.uint8))
    data = folder(tmp_path, image_size=12)
    assert data.train.images.shape == (6, 12, 12, 1)
    assert (data.train.images[4] == 77).all()


def test_names_with_a_dot_are_passed_over(tmp_path):
    before = folder(write_folder(tmp_path))
    (tmp_path / "cat" / "._00.png").write_bytes(b"of another system")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "LICENSE").write_text("beside the classes")
    assert folder(tmp_path).fingerprint == before.fingerprint


def test_a_fingerprint_covers_pixels_classes_and_names(tmp_path):
    prints = [folder(write_folder(tmp_path / "a", sides=("train", "test"))).fingerprint]
    assert folder(write_folder(tmp_path / "b", sides=("train", "test"))).fingerprint == prints[0]
    pixels = picture(0, 0)
    pixels[3, 3] += 1
    write(tmp_path / "b" / "train" / "cat" / "00.png", pixels)
    prints.append(folder(tmp_path / "b").fingerprint)
    for side in ("train", "test"):
        os.rename(tmp_path / "a" / side / "eel", tmp_path / "a" / side / "elk")
    prints.append(folder(tmp_path / "a").fingerprint)
    os.rename(tmp_path / "a" / "train" / "dog" / "00.png", tmp_path / "a" / "train" / "cat" / "20.png")
    prints.append(folder(tmp_path / "a").fingerprint)
    assert len(set(prints)) == 4


# What is done to a folder, and what the message says; {} is the folder.
BAD_FOLDERS = {
    "missing": (lambda d: os.rename(d, d.parent / "elsewhere"), "data_dir: {} cannot be listed .No such file"),
    "no classes": (lambda d: [os.rename(d / name, d.parent / name) for name in NAMES], "{}: class folders found: none; give at least two"),
    "one class": (lambda d: [os.rename(d / name, d.parent / name) for name in NAMES[:2]], "{}: class folders found: eel; give at least two"),
    "train alone": (lambda d: (d / "train").mkdir(), "{}: has a folder train but none for the other split"),
    "an empty class": (lambda d: [path.unlink() for path in (d / "dog").iterdir()], "{}: class 'dog' has no training image; add images"),
    "too few to split": (lambda d: [(d / "dog" / f"{i:02}.png").unlink() for i in range(1, 20)], "{}: class 'dog' has no training image; .*train/dog"),
    "another size": (
        lambda d: write(d / "eel" / "07.png", picture(2, 7, (9, 5))), "{}/eel/07.png: is 5 x 9 pixels, grey, but {}/.* is 8 x 8 .*data.image_size"
    ),
    "another mode": (lambda d: write(d / "cat" / "03.png", np.zeros((8, 8, 3), np.uint8)), "is 8 x 8 pixels, RGB, but .* is 8 x 8 pixels, grey"),
    "transparency": (lambda d: write(d / "cat" / "03.png", np.zeros((8, 8, 4), np.uint8)), "{}/cat/03.png: has Pillow's mode RGBA; convert"),
    "a broken image": (lambda d: os.truncate(d / "dog" / "11.png", 60), "{}/dog/11.png: cannot be read as an image .*; replace it"),
    "an empty image": (lambda d: (d / "dog" / "11.png").write_bytes(b""), "{}/dog/11.png: cannot be read as an image"),
    "another file": (lambda d: (d / "dog" / "notes.txt").write_text("?"), "{}/dog/notes.txt: is no .png, .jpg, .jpeg file; .*move it"),
    "a folder in a class": (lambda d: (d / "dog" / "more.png").mkdir(), "{}/dog/more.png: is no .png"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders(tmp_path, case):
    change, message = BAD_FOLDERS[case]
    directory = write_folder(tmp_path / "mine")
    change(directory)
    with pytest.raises(UserError, match=message.replace("{}", str(directory))) as error:
        folder(directory)
    assert "\n" not in str(error.value)


def test_a_class_in_one_split_alone(tmp_path):
    write_folder(tmp_path, per_class=2, sides=("train", "test"))
    write(tmp_path / "test" / "fox" / "0.png", picture(0, 0))
    with pytest.raises(UserError, match="class 'fox' has no training image; .*train/fox and test/fox"):
        folder(tmp_path)


def test_a_numpy_file(tmp_path):
    data = numpy_file(write_npz(tmp_path / "mine.npz"))
    with np.load(tmp_path / "mine.npz") as stored:
        np.testing.assert_array_equal(data.train.images[..., 0], stored["x_train"])
        np.testing.assert_array_equal(data.test.images[..., 0], stored["x_test"])
        np.testing.assert_array_equal(data.train.labels, stored["y_train"])
        np.testing.assert_array_equal(data.test.labels, stored["y_test"])
    assert data.train.labels.dtype == data.test.labels.dtype == np.int32
    assert data.num_classes == 3 and data.class_names == ()


def test_colors_and_labels_in_a_column(tmp_path):
    # The shapes of Keras' CIFAR.
    images, labels = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8), (np.arange(12, dtype=np.uint8) % 3)[:, None]
    data = numpy_file(write_npz(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4]))
    np.testing.assert_array_equal(data.train.images, images)
    np.testing.assert_array_equal(data.train.labels, labels[:, 0])


def test_a_numpy_fingerprint(tmp_path):
    base = numpy_file(write_npz(tmp_path / "a.npz")).fingerprint
    assert numpy_file(write_npz(tmp_path / "b.npz", y_train=np.arange(90, dtype=np.uint8) % 3)).fingerprint == base
    labels = np.arange(90) % 3
    labels[0] = 1
    assert numpy_file(write_npz(tmp_path / "c.npz", y_train=labels)).fingerprint != base


IMAGES = np.zeros((90, 8, 8), np.uint8)
BAD_ARRAYS = {
    "a missing array": ({"y_test": None}, "mine.npz has no y_test; write it by numpy.savez"),
    "floats": ({"x_train": IMAGES / 2}, "mine train: images of shape .90, 8, 8, 1. and dtype float64; give uint8"),
    "flat images": ({"x_test": np.zeros((30, 64), np.uint8)}, "mine test: images of shape .30, 64. .*give uint8 .n, height, width, channels"),
    "another number of labels": ({"y_train": np.arange(89) % 3}, "labels of shape .89,. and dtype int64 for 90 images"),
    "one-hot labels": ({"y_train": np.eye(3, dtype=int)[np.arange(90) % 3]}, "labels of shape .90, 3."),
    "labels as floats": ({"y_train": np.arange(90) % 3.0}, "dtype float64 for 90 images; give one integer"),
    "labels from 1": ({"y_train": np.arange(90) % 3 + 1}, "mine train: label 3 of example 2 is not in 0..2"),
    "a negative label": ({"y_test": np.arange(30) % 3 - 1}, "mine test: label -1 of example 0 is not in 0..2"),
    "a label beyond int32": ({"y_train": np.where(np.arange(90), np.arange(90) % 3, 2**32)}, "label 4294967296 of example 0"),
    "a label of the test alone": ({"y_test": np.arange(30) % 4}, "mine test: label 3 of example 3 is not in 0..2"),
    "one class": ({"y_train": np.zeros(90, int)}, "y_train holds 1 class"),
    "other test images": ({"x_test": np.zeros((30, 9, 8), np.uint8)}, "test images of shape .9, 8, 1."),
    "objects": ({"y_train": np.array([[0], [1, 2]] * 45, object)}, "cannot be read .*; give an intact .npz"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path, case):
    changes, message = BAD_ARRAYS[case]
    with pytest.raises(UserError, match=message) as error:
        numpy_file(write_npz(tmp_path / "mine.npz", **changes))
    assert "\n" not in str(error.value)


def test_bad_files(tmp_path):
    path = tmp_path / "mine.npz"
    with pytest.raises(UserError, match="data_dir: .*mine.npz cannot be read .*No such file"):
        numpy_file(path)
    whole = write_npz(path).read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="mine.npz cannot be read"):
            numpy_file(path)
    # A byte of the pixels of x_train.
    path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 255]) + whole[2001:])
    with pytest.raises(UserError, match="mine.npz cannot be read .*CRC"):
        numpy_file(path)
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(UserError, match="one.npy holds one array; write the four by numpy.savez"):
        numpy_file(tmp_path / "one.npy")


BAD_ARGUMENTS = [
    ({"source": "parquet"}, "source='parquet': give one of 'name', 'folder', 'numpy'"),
    ({"source": "folder"}, "source='folder': says no place; give data_dir, the folder"),
    ({"source": "numpy"}, "source='numpy': says no place; give data_dir, the .npz file"),
    ({"source": "numpy", "data_dir": "a.npz", "image_size": 8}, "image_size=8: images are resized with source='folder' alone"),
    ({"image_size": 8}, "image_size=8: "),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=str)
def test_bad_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        hwa_jax.data.load("digits", **arguments)


def own(place):
    """Fields of a configuration that names a folder or a file of one's own."""
    return {
        "data.name": "mine", "data.source": "folder" if place.is_dir() else "numpy", "data.data_dir": str(place), "data.num_train": 80,
        "training.batch_size": 10, "num_devices": 1,
    }


def test_train_evaluate_and_export(tmp_path, compiled_once, monkeypatch):  # noqa: F811
    # The programs keep what they compile where the other tests do.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled_once))
    place = write_folder(tmp_path / "mine", per_class=45)
    fields, run = {**SMALL, **own(place), "training.duration": "8 steps"}, tmp_path / "run"
    command = ["train_hwa.py", f"--config={ROOT}/configs/hwa_digits.py", f"--workdir={run}"]
    assert call(*command, *(f"--config.{name}={value}" for name, value in fields.items())).code == 0
    record = json.loads((run / "config.json").read_text())
    assert record["data_fingerprint"] == folder(place, num_train=80, validation_fraction=0.25).fingerprint
    ended = call("evaluate.py", f"--workdir={run}", "--split=test", "--weights=hwa")
    assert ended.code == 0 and "hwa" in ended.stdout
    assert call("evaluate.py", "export", f"--workdir={run}", f"--output={tmp_path}/w.safetensors").code == 0
    card = (tmp_path / "w.md").read_text()
    assert "mlp trained on mine" in card and "(cat, dog, eel, in the order of the logits)" in card and str(tmp_path) not in card
    # Every image is changed: not all are among the 80 that are trained on.
    for path in place.glob("*/*.png"):
        write(path, np.asarray(Image.open(path)) ^ 1)
    ended = call("evaluate.py", f"--workdir={run}")
    assert ended.code == 2 and "the run was made with other data" in ended.stderr


@pytest.mark.parametrize("write_own", [write_folder, lambda path: write_npz(path.with_suffix(".npz"))], ids=["folder", "numpy"])
def test_hwa_pruning_and_both_comparisons_read_it(tmp_path, write_own):
    fields = own(write_own(tmp_path / "mine"))
    fields["data.num_train"] = 40
    one, pruning = default_config(), default_swamp_config()
    comparison, swamp_comparison = hwa_comparison.default_comparison(), default_swamp_comparison()
    for config in (one, pruning, comparison.base, swamp_comparison.base):
        set_fields(config, fields)
    rates = {"learning_rate": 0.1, "swa_learning_rate": 0.05}
    prepared = [
        setup.prepare(one), setup.prepare(hwa_comparison.training_of(comparison, "hwa", "sgd", "constant", 0)),
        sparse_setup.prepare(pruning), sparse_setup.prepare(swamp_methods.training_of(swamp_comparison, "swamp", 0, rates)),
    ]
    # 40 images less 4 of validation; pruning takes 5 % of the rest for its gate, 1.8, rounded.
    assert [each.train.num_examples for each in prepared] == [36, 36, 34, 34]
    assert {each.dataset.num_classes for each in prepared} == {3}


def test_a_run_from_before_there_were_sources_is_resumed():
    stored = default_config().to_dict()
    del stored["data"]["source"], stored["data"]["image_size"]
    assert differences(stored, default_config()) == []
    assert differences({"base": stored}, ConfigDict({"base": set_fields(default_config(), {"data.source": "numpy"})})) == [
        ("base.data.source", "name", "numpy")
    ]
