"""Loading a data set by name: source, subset, held-out validation, label noise."""

import operator
import os
import pathlib

import numpy as np

from hwa_jax.data.arrays import read_npz
from hwa_jax.data.dataset import Dataset, Split, channel_statistics, check_split, fingerprint
from hwa_jax.data.folder import read_folder
from hwa_jax.data.idx import find_idx, read_split
from hwa_jax.data.subsets import replace_labels, stratified_choice
from hwa_jax.data.tfds_builder import search_path
from hwa_jax.data.tfds_source import read_tfds
from hwa_jax.errors import UserError

SOURCES = ("name", "folder", "numpy")

_DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")
_IDX_DIRECTORIES = {"mnist": [], "fashion_mnist": [_DEBIAN_FASHION_MNIST]}
_NUM_IDX_CLASSES = 10
_SUBSET, _VALIDATION, _NOISE = range(3)


def load(
    name: str,
    *,
    source: str = "name",
    data_dir: str | os.PathLike | None = None,
    image_size: int = 0,
    num_train: int | None = None,
    validation_fraction: float = 0.1,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Loads a data set into host memory, with a validation split held out of training.

    Nothing is downloaded: `hwa_jax.data.prepare` does that, once. ``digits`` comes with
    scikit-learn and is prepared on first use. ``fashion_mnist`` and ``mnist`` are read
    from IDX files in ``data_dir/NAME`` or a ``data_dir`` that was given
    (``fashion_mnist`` also from ``/usr/share/datasets/fashion-mnist``, where Debian's
    package dataset-fashion-mnist puts them), else, like every other name, as prepared
    by TensorFlow Datasets. Your own images are read from a folder or a NumPy file.

    Args:
        name: ``digits``, ``fashion_mnist``, ``mnist``, ``cifar10``, ``cifar100``,
            ``svhn_cropped`` or another image-classification name of TensorFlow Datasets
            whose images have one size. With another source, what messages call the data.
        source: ``name``; ``folder``, see `read_folder`; or ``numpy``, see `read_npz`.
        data_dir: the folder or the NumPy file; for names, where to look: None means
            ``HWA_JAX_DATA_DIR``, else ``~/.cache/hwa_jax``, then TensorFlow Datasets' own
            directory.
        image_size: images of a folder are resized to this width and height in pixels; 0
            leaves them as they are.
        num_train: number of training images, counted before the validation split is
            taken out of them; class-stratified. None means all.
        validation_fraction: fraction of those images held out, class-stratified,
            rounded to the nearest count; in [0, 1).
        label_noise: fraction of the remaining training labels replaced by another
            class, drawn uniformly; in [0, 1). Validation and test labels stay clean.
        seed: governs subset, validation split and noise, nothing else; in [0, 2**32).

    Returns:
        The data set; its arrays are read-only. The three choices draw from separate
        streams: a noise level, for example, does not change which images are held out.

    Raises:
        UserError: unknown or missing data set, unreadable files, or an argument
            outside its range.

    Example:
        >>> digits = load("digits", num_train=500, validation_fraction=0.2)
        >>> digits.train.images.shape, digits.validation.num_examples, digits.test.num_examples
        ((400, 8, 8, 1), 100, 500)
    """
    _check_fraction("validation_fraction", validation_fraction)
    _check_fraction("label_noise", label_noise)
    _check_integer("seed", seed, 0, 2**32 - 1)
    all_train, test, num_classes, class_names = _read(name, source, data_dir, image_size)
    check_split(f"{name} train", all_train, num_classes)
    check_split(f"{name} test", test, num_classes)
    all_train, test = (Split(split.images, split.labels.astype(np.int32)) for split in (all_train, test))
    if all_train.image_shape != test.image_shape:
        raise UserError(
            f"{name}: training images of shape {all_train.image_shape} but test images of "
            f"shape {test.image_shape}; give files that belong together"
        )
    count = all_train.num_examples if num_train is None else num_train
    _check_integer("num_train", count, 1, all_train.num_examples)
    subset, _ = stratified_choice(all_train.labels, count, np.random.RandomState([seed, _SUBSET]))
    train, validation = _hold_out(all_train.select(subset), validation_fraction, seed)
    if label_noise:
        random = np.random.RandomState([seed, _NOISE])
        train = Split(train.images, replace_labels(train.labels, label_noise, num_classes, random))
    splits = {"train": train, "validation": validation, "test": test}
    for split in splits.values():
        split.images.flags.writeable = split.labels.flags.writeable = False
    mean, std = channel_statistics(train.images)
    return Dataset(
        name, num_classes, **splits, mean=mean, std=std, fingerprint=fingerprint(splits, class_names), class_names=class_names,
    )


def _read(name, source, data_dir, image_size):
    if source not in SOURCES:
        raise UserError(f"source={source!r}: give one of {', '.join(map(repr, SOURCES))}")
    if image_size and source != "folder":
        raise UserError(f"image_size={image_size!r}: images are resized with source='folder' alone; give 0")
    if source == "name":
        return *_read_named(name, data_dir), ()
    if data_dir is None:
        raise UserError(f"source={source!r}: says no place; give data_dir, the {'folder' if source == 'folder' else '.npz file'}")
    if source == "folder":
        train, test, class_names = read_folder(data_dir, image_size)
        return train, test, len(class_names), class_names
    return *read_npz(data_dir), ()


def _read_named(name: str, data_dir: str | os.PathLike | None) -> tuple[Split, Split, int]:
    searched = []
    if name in _IDX_DIRECTORIES:
        directory = search_path(data_dir)[0]
        # The files of all such data sets have the same names, so a directory that was
        # not given for this one must carry its name.
        searched = [directory / name, *([directory] if data_dir is not None else [])]
        searched += _IDX_DIRECTORIES[name]
        files = find_idx(searched)
        if files is not None:
            return read_split(*files["train"]), read_split(*files["test"]), _NUM_IDX_CLASSES
    return read_tfds(name, data_dir, searched)


def _hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    count = round(fraction * split.num_examples)
    if fraction and not 0 < count < split.num_examples:
        raise UserError(
            f"validation_fraction={fraction}: leaves {split.num_examples - count} images to "
            f"train and {count} to validate of {split.num_examples}; give a larger num_train or "
            "another fraction"
        )
    random = np.random.RandomState([seed, _VALIDATION])
    held_out, kept = stratified_choice(split.labels, count, random)
    return split.select(kept), split.select(held_out)


def _check_fraction(field: str, value: float) -> None:
    if not isinstance(value, (int, float, np.number)) or not 0 <= value < 1:
        raise UserError(f"{field}={value!r}: give a fraction of at least 0 and below 1")


def _check_integer(field: str, value: int, lowest: int, highest: int) -> None:
    try:
        in_range = lowest <= operator.index(value) <= highest
    except TypeError:
        in_range = False
    if not in_range:
        raise UserError(f"{field}={value!r}: give a whole number from {lowest} to {highest}")
