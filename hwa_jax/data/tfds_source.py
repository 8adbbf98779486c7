"""Opening a prepared data set of TensorFlow Datasets, and reading it into memory."""

import contextlib
import os
import pathlib

import numpy as np

from hwa_jax.data.dataset import Split
from hwa_jax.data.preparation import prepare
from hwa_jax.data.tfds_builder import find_builder, is_prepared, one_line, quiet, search_path
from hwa_jax.errors import UserError


def read_tfds(
    name: str, data_dir: str | os.PathLike | None, already_searched: list[pathlib.Path]
) -> tuple[Split, Split, int]:
    """Reads the train and test splits through `tfds.data_source`'s array_record files.

    Only ``digits`` is prepared on the way; nothing is ever downloaded here.

    Args:
        name: as in `hwa_jax.data.prepare`.
        data_dir: where it was prepared; None means the default directory of
            `hwa_jax.data.prepare`, then TensorFlow Datasets' own.
        already_searched: directories without the data set, for the message.

    Returns:
        ``(train, test, num_classes)``. A data set without a test split gives its
        published validation split as test.

    Raises:
        UserError: unknown name, not prepared, not array_record, damaged, or not an
            image classification with images of one size.
    """
    builder, test_name = open_builder(name, data_dir, already_searched)
    train, test = (_read_split(builder, split) for split in ("train", test_name))
    return train, test, builder.info.features["label"].num_classes


def open_builder(name: str, data_dir: str | os.PathLike | None, already_searched: list[pathlib.Path]):
    """The builder of a prepared image classification, and which of its splits is for testing.

    Args and errors are those of `read_tfds`, which also reads.
    """
    if name == "digits":
        prepare(name, data_dir)
    directories = search_path(data_dir)
    builders = (find_builder(name, directory) for directory in directories)
    builder = next(filter(is_prepared, builders), None)
    if builder is None:
        searched = ", ".join(map(str, dict.fromkeys([*already_searched, *directories])))
        install = "apt install dataset-fashion-mnist, or " if name == "fashion_mnist" else ""
        raise UserError(
            f"data set {name!r} not found, looked in {searched}; {install}with a network run: "
            f"python -m hwa_jax.data {name} --data_dir={directories[0]}"
        )
    features, splits = builder.info.features, builder.info.splits
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise UserError(
            f"data set {name!r} has the features {', '.join(sorted(features))}; "
            "choose one with an image and a class label"
        )
    test_name = "test" if "test" in splits else "validation"
    if "train" not in splits or test_name not in splits:
        raise UserError(
            f"data set {name!r} has the splits {', '.join(sorted(splits))}; "
            "choose one with train and test"
        )
    return builder, test_name


@contextlib.contextmanager
def explained(builder, split_name: str):
    """Turns what reading a split raises into a UserError."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(
            f"{builder.data_path}: prepared as {builder.info.file_format.value}, which has no "
            "random access; prepare it as array_record in another data_dir"
        ) from error
    except Exception as error:
        raise UserError(
            f"{builder.data_path}: {split_name} cannot be read ({one_line(error)}); "
            "delete this directory and prepare it again"
        ) from error


def _read_split(builder, split_name: str) -> Split:
    with explained(builder, split_name), quiet(show_progress=False):
        source = builder.as_data_source(split=split_name)
        examples = source.__getitems__(range(len(source)))
    shapes = {example["image"].shape for example in examples}
    if len(shapes) > 1:
        raise UserError(
            f"{builder.data_path}: images of {len(shapes)} sizes, such as "
            f"{' and '.join(map(str, sorted(shapes)[:2]))}; choose a data set with one size, or set data.streamed and data.image_size"
        )
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples], np.int32)
    return Split(images, labels)
