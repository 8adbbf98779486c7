"""Data sets that stay on disk: splits whose images are read when they are needed."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hwa_jax import particles
from hwa_jax.data import streaming
from hwa_jax.data.cropping import center_crop, random_resized_crop
from hwa_jax.data.dataset import Dataset, channel_statistics
from hwa_jax.data.tfds_builder import one_line, quiet
from hwa_jax.data.tfds_source import explained, open_builder
from hwa_jax.errors import UserError

_STATISTICS_EXAMPLES = 1000
_SUBSET, _VALIDATION = range(2)


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSplit:
    """Images on disk with their labels, for what trainings and evaluations do with a `Split`.

    Attributes:
        source: index -> {"image": uint8 ``[h, w, c]``, "label": int}, for any thread.
        indices: int ``[n]``, the examples of the source that belong to the split.
        image_shape: (height, width, channels) of every image, once it is cut.
        is_cut: whether images are cut to that shape; otherwise they have it.
        num_classes: labels are in ``range(num_classes)``.
        where: what errors name first, such as ``"imagenet2012 train"``.
        mesh: the devices onto which batches are put.

    Example:
        >>> source = [{"image": np.full((9, 9, 1), value, np.uint8), "label": 0} for value in (3, 4, 5)]
        >>> split = StreamedSplit(source, np.arange(3), (8, 8, 1), True, 2, "mine", particles.device_mesh())
        >>> [(images[:, 0, 0, 0].tolist(), counts.tolist()) for images, _, counts in split.padded_batches(2)]
        [([3, 4], [True, True]), ([5, 5], [True, False])]
    """

    source: Sequence[dict[str, Any]]
    indices: np.ndarray
    image_shape: tuple[int, int, int]
    is_cut: bool
    num_classes: int
    where: str
    mesh: Mesh | None = None

    @property
    def num_examples(self) -> int:
        """Number of images n."""
        return len(self.indices)

    @property
    def images(self) -> NoReturn:
        """What a streamed split does not have, nor `labels`.

        Raises:
            UserError: always.
        """
        raise UserError(f"data.streamed=True: {self.where} is not in memory, and this needs it there: give data.streamed=False, and data that fit")

    labels = images

    def select(self, indices: np.ndarray | slice) -> "StreamedSplit":
        """The examples at these positions, in that order; reads nothing."""
        return dataclasses.replace(self, indices=self.indices[indices])

    def example(self, position: int, random: np.random.RandomState | None = None) -> dict[str, np.ndarray]:
        """{"image": uint8 of `image_shape`, "label": int32 scalar} at a position of the split.

        Args:
            position: below `num_examples`.
            random: what the part of the image is drawn from; None: its center.

        Raises:
            UserError: it cannot be read, has another shape, or a label out of range.
        """
        index = int(self.indices[position])
        try:
            example = self.source[index]
        except Exception as error:
            raise UserError(f"{self.where}: example {index} cannot be read ({one_line(error)}); prepare the data set again") from error
        image, label = example["image"], int(example["label"])
        if not 0 <= label < self.num_classes:
            raise UserError(f"{self.where}: label {label} of example {index} is not in 0..{self.num_classes - 1}; choose a data set with labels")
        if self.is_cut:
            size = self.image_shape[0]
            image = center_crop(image, size) if random is None else random_resized_crop(image, size, random)
        if image.shape != self.image_shape:
            raise UserError(
                f"{self.where}: example {index} has the shape {image.shape}, the first one {self.image_shape}: set data.image_size to "
                "have sizes (not colors) made equal"
            )
        return {"image": image, "label": np.int32(label)}

    def padded_batches(self, size: int) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        """As `Split.padded_batches`; whole on every device, though a process reads only its share of each."""
        whole = NamedSharding(self.mesh, PartitionSpec())
        shares = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        num_rows = -(-size // self.mesh.size) * self.mesh.size  # so many can be shared evenly
        starts, last = range(0, self.num_examples, size), self.num_examples - 1

        def example(batch, row):
            return self.example(min(starts[batch] + min(row, size - 1), last))

        for start, batch in zip(starts, streaming.stream(example, range(len(starts)), (num_rows,), shares)):
            counts = np.arange(start, start + size) < self.num_examples
            yield *_exchanged(batch, size, whole), particles.put(counts, whole)

    def image_batches(self, size: int, number: int) -> Iterator[jax.Array]:
        """As `Split.image_batches`."""
        for images, _, counts in self.select(slice(number)).padded_batches(size):
            yield images[: int(counts.sum())]


def load_streamed(
    name: str,
    *,
    data_dir: str | os.PathLike | None = None,
    image_size: int = 0,
    num_train: int | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Opens a prepared data set of TensorFlow Datasets whose images are read while training goes on.

    As `hwa_jax.data.load`, but for what would need all images: subset and validation split are drawn at random, not
    class by class; mean and standard deviation are those of the first 1000 training images; and the fingerprint is
    of sizes and counts of the files, not of the images. A test split without labels gives way to the published
    validation split.

    Args:
        name: ``imagenet2012``, or another image classification; its images may differ in size.
        data_dir: where it was prepared; None: as in `hwa_jax.data.load`.
        image_size: width and height in pixels to which images are cut; 0: they have one size.
        num_train: number of training images, counted before the validation split is taken out; None: all.
        validation_fraction: of these, held out; in [0, 1).
        seed: governs subset and validation split.

    Returns:
        The data set; its splits are `StreamedSplit`.

    Raises:
        UserError: unknown, missing or unreadable data set, or an argument outside its range.
    """
    builder, test_name = open_builder(name, data_dir, [])
    sources = {split: _source(builder, split) for split in dict.fromkeys(("train", test_name, "validation")) if split in builder.info.splits}
    first = _first_example(builder, sources["train"], "train")
    if _first_example(builder, sources[test_name], test_name)["label"] < 0 and "validation" in sources:
        test_name = "validation"
    height, width, channels = first["image"].shape
    shape = (image_size, image_size, channels) if image_size else (height, width, channels)
    kept, held_out = _hold_out(len(sources["train"]), num_train, validation_fraction, seed)
    make = functools.partial(
        StreamedSplit, image_shape=shape, is_cut=bool(image_size), num_classes=builder.info.features["label"].num_classes,
    )
    train, validation = (make(sources["train"], chosen, where=f"{name} train") for chosen in (kept, held_out))
    test = make(sources[test_name], np.arange(len(sources[test_name])), where=f"{name} {test_name}")
    mean, std = _statistics(train)
    return Dataset(
        name, train.num_classes, train, validation, test, mean, std, _fingerprint(builder, shape, train, validation, test_name),
    )


@functools.partial(jax.jit, static_argnames=("size", "sharding"))
def _exchanged(batch, size, sharding):
    """The first rows on all devices; apart from what is done with them, so that it compiles once for all splits."""
    return jax.lax.with_sharding_constraint((batch.images[:size], batch.labels[:size]), sharding)


def _source(builder, split_name):
    with explained(builder, split_name), quiet(show_progress=False):
        return builder.as_data_source(split=split_name)


def _first_example(builder, source, split_name):
    with explained(builder, split_name), quiet(show_progress=False):
        return source[0]


def _hold_out(available, num_train, fraction, seed):
    """Ascending indices of the examples for training, and of those for validation."""
    count = available if num_train is None else num_train
    if not 1 <= count <= available:
        raise UserError(f"num_train={num_train}: give a whole number from 1 to {available}")
    subset = np.sort(np.random.RandomState([seed, _SUBSET]).permutation(available)[:count])
    order = np.random.RandomState([seed, _VALIDATION]).permutation(subset)
    num_held_out = round(fraction * count)
    if fraction and not 0 < num_held_out < count:
        raise UserError(
            f"validation_fraction={fraction}: leaves {count - num_held_out} images to train and {num_held_out} to validate of {count}; "
            "give a larger num_train or another fraction"
        )
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def _statistics(split):
    number = min(_STATISTICS_EXAMPLES, split.num_examples)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return channel_statistics(np.stack([example["image"] for example in threads.map(split.example, range(number))]))


def _fingerprint(builder, shape, train, validation, test_name):
    info = builder.info
    files = {name: [info.splits[name].shard_lengths, info.splits[name].num_bytes] for name in ("train", test_name)}
    digest = hashlib.sha256(json.dumps([info.full_name, files, shape]).encode())
    for split in (train, validation):
        digest.update(np.ascontiguousarray(split.indices, np.int64).data)
    return digest.hexdigest()
