"""What a data set is: splits of uint8 images, statistics and a fingerprint."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hwa_jax.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels; a pytree, so it can be an argument of a jitted step.

    Attributes:
        images: uint8 ``[n, height, width, channels]``.
        labels: int32 ``[n]``, each in ``range(num_classes)``.

    Example:
        >>> split = Split(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1], np.int32))
        >>> split.num_examples, split.image_shape
        (2, (8, 8, 1))
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array

    @property
    def num_examples(self) -> int:
        """Number of images n."""
        return self.images.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return self.images.shape[1:]

    def select(self, indices: np.ndarray) -> "Split":
        """The examples at int ``indices [m]``, in that order, as a Split of m images."""
        return Split(self.images[indices], self.labels[indices])

    def image_batches(self, size: int, number: int) -> Iterator[jax.Array]:
        """The first ``number`` images, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, number, size):
            yield self.images[start : min(start + size, number)]

    def padded_batches(self, size: int) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        """All examples as (images, labels, which of them count), ``size`` at a time, the last batch padded."""
        for start in range(0, self.num_examples, size):
            yield _padded_batch(self, jnp.int32(start), size)


@functools.partial(jax.jit, static_argnames="size")
def _padded_batch(split, start, size):
    """Apart from what is done with it, so that it compiles once for all splits."""
    rows = start + jnp.arange(size)
    present = jnp.minimum(rows, split.num_examples - 1)
    return split.images[present], split.labels[present], rows < split.num_examples


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in host memory, ready for training; made by `hwa_jax.data.load`.

    Attributes:
        name: the name it was loaded under.
        num_classes: labels are in ``range(num_classes)``.
        train: what training sees, after subsetting, held-out images and label noise.
        validation: held out of the training data; no images when its fraction is 0.
        test: the published test split, untouched.
        mean: float32 ``[channels]``, of the training images scaled to 0..1.
        std: float32 ``[channels]``, likewise; 1 where a channel is constant, so that
            dividing by it is always defined.
        fingerprint: hexadecimal SHA-256 over the arrays of the three splits and the class
            names. Equal fingerprints mean equal data, which a resumed run checks.
        class_names: label i means class_names[i]; empty where the source has no names.
    """

    name: str
    num_classes: int
    train: Split
    validation: Split
    test: Split
    mean: np.ndarray
    std: np.ndarray
    fingerprint: str
    class_names: tuple[str, ...] = ()


def check_split(where: str, split: Split, num_classes: int) -> None:
    """Refuses a split that no training could use.

    Args:
        where: what the message names first, such as ``"digits train"``.
        split: the split to check.
        num_classes: labels must be in ``range(num_classes)``.

    Raises:
        UserError: images are not uint8 ``[n, h, w, c]``, labels are not one integer per
            image, there are no examples, or a label is out of range.

    Example:
        >>> images = np.zeros((2, 8, 8, 1), np.uint8)
        >>> check_split("mine test", Split(images, np.array([0, 7], np.int32)), 3)
        Traceback (most recent call last):
        ...
        hwa_jax.errors.UserError: mine test: label 7 of example 1 is not in 0..2; fix the labels or the number of classes
    """
    images, labels = split.images, split.labels
    if images.ndim != 4 or images.dtype != np.uint8:
        raise UserError(
            f"{where}: images of shape {images.shape} and dtype {images.dtype}; "
            "give uint8 [n, height, width, channels]"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{where}: labels of shape {labels.shape} and dtype {labels.dtype} for "
            f"{images.shape[0]} images; give one integer for each image"
        )
    if 0 in images.shape:
        raise UserError(f"{where}: images of shape {images.shape}: empty; give at least one")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise UserError(
            f"{where}: label {labels[wrong[0]]} of example {wrong[0]} is not in "
            f"0..{num_classes - 1}; fix the labels or the number of classes"
        )


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per channel of images scaled to 0..1.

    Sums are exact integers, so the result does not depend on the order of the images.

    Args:
        images: uint8 ``[n, h, w, c]``, n > 0.

    Returns:
        Two float32 arrays ``[c]``; a constant channel has the standard deviation 1.

    Example:
        >>> channel_statistics(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1))
        (array([0.5], dtype=float32), array([0.5], dtype=float32))
    """
    count = images[..., 0].size
    total = images.sum(axis=(0, 1, 2), dtype=np.uint64).astype(np.float64)
    squares = np.square(images, dtype=np.uint16).sum(axis=(0, 1, 2), dtype=np.uint64)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    constant = images.min(axis=(0, 1, 2)) == images.max(axis=(0, 1, 2))
    std = np.where(constant, 255.0, np.sqrt(variance))
    return (mean / 255).astype(np.float32), (std / 255).astype(np.float32)


def fingerprint(splits: dict[str, Split], class_names: tuple[str, ...] = ()) -> str:
    """Hexadecimal SHA-256 over names, dtypes, shapes and bytes of all arrays, and the names of the classes."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        for array in (split.images, split.labels):
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    if class_names:
        digest.update(json.dumps(class_names).encode())
    return digest.hexdigest()
