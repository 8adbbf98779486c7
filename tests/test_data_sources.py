"""load(): what it returns, which choice draws from which stream, what it refuses."""

import hashlib
import pathlib

import numpy as np
import pytest

import hwa_jax.data
from hwa_jax.data.dataset import Split, channel_statistics, check_split, fingerprint
from hwa_jax.errors import UserError

FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def load_digits(digits_dir):
    return lambda **arguments: hwa_jax.data.load("digits", data_dir=digits_dir, **arguments)


def rows(images):
    """The set of images as byte strings."""
    return {image.tobytes() for image in images}


def test_digits_are_the_embedded_images(load_digits):
    from sklearn.datasets import load_digits as reference

    digits = load_digits(validation_fraction=0)
    assert digits.train.images.shape == (1297, 8, 8, 1)
    assert digits.test.images.shape == (500, 8, 8, 1)
    # 0..16 to 0..255: 16 -> 255, 1 -> 15.94 -> 16.
    expected = {
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(reference().images, reference().target)
    }
    found = {
        (image.tobytes(), int(label))
        for split in (digits.train, digits.test)
        for image, label in zip(split.images, split.labels)
    }
    assert found == expected
    assert set(np.unique(digits.train.images)) == {round(v * 255 / 16) for v in range(17)}
    shares = np.bincount(digits.test.labels) / np.bincount(reference().target)
    np.testing.assert_allclose(shares, 500 / 1797, atol=1 / 174)


def test_validation_is_held_out_of_training(load_digits):
    whole, parts = load_digits(validation_fraction=0), load_digits(validation_fraction=0.2)
    assert parts.validation.num_examples == round(0.2 * 1297)
    assert parts.train.num_examples + parts.validation.num_examples == 1297
    assert rows(parts.train.images).isdisjoint(rows(parts.validation.images))
    assert rows(parts.train.images) | rows(parts.validation.images) == rows(whole.train.images)
    np.testing.assert_array_equal(parts.test.images, whole.test.images)


def test_num_train_counts_before_validation(load_digits):
    digits = load_digits(num_train=300, validation_fraction=0.1)
    assert (digits.train.num_examples, digits.validation.num_examples) == (270, 30)
    assert digits.test.num_examples == 500


def test_noise_changes_training_labels_only(load_digits):
    clean, noisy = load_digits(num_train=500), load_digits(num_train=500, label_noise=0.2)
    assert (clean.train.labels != noisy.train.labels).sum() == round(0.2 * 450)
    for split in ("validation", "test"):
        np.testing.assert_array_equal(getattr(clean, split).labels, getattr(noisy, split).labels)
    np.testing.assert_array_equal(clean.train.images, noisy.train.images)


def test_the_subset_does_not_depend_on_the_validation_fraction(load_digits):
    whole = load_digits(num_train=200, validation_fraction=0)
    parts = load_digits(num_train=200, validation_fraction=0.3)
    assert rows(whole.train.images) == rows(parts.train.images) | rows(parts.validation.images)


def test_fingerprint_follows_the_data(load_digits):
    base = load_digits(num_train=200)
    assert base.fingerprint == load_digits(num_train=200).fingerprint
    others = [
        load_digits(num_train=200, seed=1),
        load_digits(num_train=201),
        load_digits(num_train=200, validation_fraction=0.2),
        load_digits(num_train=200, label_noise=0.01),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_fingerprint_is_sha256_over_all_arrays():
    split = Split(np.ones((1, 2, 2, 1), np.uint8), np.array([3], np.int32))
    content = b"train |u1 (1, 2, 2, 1)\n" + b"\1" * 4 + b"train <i4 (1,)\n" + b"\3\0\0\0"
    assert fingerprint({"train": split}) == hashlib.sha256(content).hexdigest()


def test_digits_are_the_same_images_everywhere(load_digits):
    # Golden: no version of Python, NumPy or scikit-learn may change what a seed means.
    assert load_digits(num_train=500, label_noise=0.1, seed=7).fingerprint == GOLDEN_FINGERPRINT


GOLDEN_FINGERPRINT = "77c9e012cbe162f3b3f57b8288e791733e2fe4c55ca682ebfbabb41eb20ce632"


def test_statistics_come_from_training_images_alone(load_digits):
    digits = load_digits(num_train=400)
    scaled = digits.train.images.astype(np.float64) / 255
    np.testing.assert_allclose(digits.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(digits.std, scaled.std(axis=(0, 1, 2)), rtol=1e-7)
    assert digits.mean.dtype == digits.std.dtype == np.float32
    assert digits.mean.shape == digits.std.shape == (1,)


def test_statistics_per_channel():
    # Channel 0: 0 and 255 -> mean 1/2, std 1/2. Channel 1: constant 51 -> mean 0.2, std
    # 1 by definition. Channel 2: 0, 102 -> mean 0.2, std 0.2.
    images = np.array([[0, 51, 0], [255, 51, 102]], np.uint8).reshape(2, 1, 1, 3)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, [0.5, 0.2, 0.2], rtol=1e-7)
    np.testing.assert_allclose(std, [0.5, 1.0, 0.2], rtol=1e-7)


def test_arrays_are_read_only(load_digits):
    digits = load_digits()
    for split in (digits.train, digits.validation, digits.test):
        with pytest.raises(ValueError, match="read-only"):
            split.images[0] = 0
        with pytest.raises(ValueError, match="read-only"):
            split.labels[0] = 0


BAD_ARGUMENTS = [
    ({"num_train": 1298}, r"num_train=1298: give a whole number from 1 to 1297"),
    ({"num_train": 0}, r"num_train=0: "),
    ({"num_train": -5}, r"num_train=-5: "),
    ({"num_train": 10.0}, r"num_train=10\.0: "),
    ({"num_train": "all"}, r"num_train='all': "),
    ({"validation_fraction": 1.0}, r"validation_fraction=1\.0: give a fraction"),
    ({"validation_fraction": -0.1}, r"validation_fraction=-0\.1: "),
    ({"validation_fraction": float("nan")}, r"validation_fraction=nan: "),
    ({"validation_fraction": "0.1"}, r"validation_fraction='0\.1': "),
    ({"validation_fraction": 0.0001}, r"validation_fraction=0\.0001: leaves 1297 images"),
    ({"num_train": 1, "validation_fraction": 0.9}, r"leaves 0 images to train and 1"),
    ({"label_noise": 1.5}, r"label_noise=1\.5: "),
    ({"label_noise": None}, r"label_noise=None: "),
    ({"seed": -1}, r"seed=-1: "),
    ({"seed": 2**32}, r"seed=4294967296: "),
    ({"seed": 0.5}, r"seed=0\.5: "),
]


@pytest.mark.parametrize("arguments, message", BAD_ARGUMENTS, ids=lambda value: str(value))
def test_bad_arguments(load_digits, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        load_digits(**arguments)
    assert "\n" not in str(error.value)


LABELS = np.array([0, 1], np.int32)
IMAGES = np.zeros((2, 4, 4, 1), np.uint8)
BAD_SPLITS = [
    (IMAGES[..., 0], LABELS, r"mine: images of shape \(2, 4, 4\) and dtype uint8"),
    (IMAGES.astype(np.float32), LABELS, r"dtype float32; give uint8"),
    (IMAGES, LABELS[:1], r"labels of shape \(1,\) and dtype int32 for 2 images"),
    (IMAGES, LABELS.astype(np.float32), r"dtype float32 for 2 images"),
    (IMAGES, LABELS[:, None], r"labels of shape \(2, 1\)"),
    (IMAGES[:0], LABELS[:0], r"images of shape \(0, 4, 4, 1\): empty"),
    (IMAGES[..., :0], LABELS, r"images of shape \(2, 4, 4, 0\): empty"),
    (IMAGES, np.array([0, -1]), r"label -1 of example 1 is not in 0\.\.9"),
    (IMAGES, np.array([10, 0]), r"label 10 of example 0 is not in 0\.\.9"),
]


@pytest.mark.parametrize("images, labels, message", BAD_SPLITS, ids=[m for *_, m in BAD_SPLITS])
def test_bad_splits(images, labels, message):
    with pytest.raises(UserError, match=message):
        check_split("mine", Split(images, labels), 10)


@pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason=f"{FASHION_MNIST} missing: apt install dataset-fashion-mnist"
)
def test_real_fashion_mnist():
    data = hwa_jax.data.load("fashion_mnist", num_train=10_000, validation_fraction=0.1)
    assert data.train.images.shape == (9_000, 28, 28, 1)
    assert np.bincount(data.train.labels).tolist() == [900] * 10
    assert np.bincount(data.validation.labels).tolist() == [100] * 10
    assert np.bincount(data.test.labels).tolist() == [1_000] * 10
    # The published mean and standard deviation of all 60,000 images: 0.2860, 0.3530.
    np.testing.assert_allclose(data.mean, 0.2860, atol=0.003)
    np.testing.assert_allclose(data.std, 0.3530, atol=0.003)
