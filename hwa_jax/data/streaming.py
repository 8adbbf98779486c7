"""Batches from disk: read, decoded and cut by grain's threads, and put onto the devices while these train.

Where a batch stands in the training says all about it: its examples are those of `batches.epoch_indices`, and the
part of an image that is cut out is drawn from (key, replica, step, row). So there is no state of an iterator to store,
nothing depends on devices, processes or interruptions, and a process reads only what its devices hold.
"""

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from hwa_jax.data import batches
from hwa_jax.data.dataset import Split

_MOST_THREADS = 16
_BATCHES_ON_DEVICE = 2


def stream(
    example: Callable[..., dict[str, Any]], steps: range, shape: tuple[int, ...], sharding: NamedSharding
) -> Iterator[Split]:
    """A batch for each step, made ahead of its use.

    Args:
        example: ``(step, *place)`` -> {"image": uint8 ``[h, w, c]``, "label": int32 scalar}, where a place is an index
            for each axis of `shape`; called from several threads, for the places that this process holds.
        steps: consecutive steps.
        shape: of a batch in front of its images' own axes.
        sharding: how a batch lies on the devices.

    Yields:
        A Split whose images are ``[*shape, h, w, c]`` and labels ``shape``.

    Raises:
        What `example` raises, when the batch's turn comes.

    Example:
        >>> from hwa_jax.particles import device_mesh
        >>> zero = np.zeros((1, 1, 1), np.uint8)
        >>> whole = NamedSharding(device_mesh(), jax.sharding.PartitionSpec())
        >>> made = stream(lambda step, row: {"image": zero, "label": np.int32(10 * step + row)}, range(3, 5), (2,), whole)
        >>> [batch.labels.tolist() for batch in made]
        [[30, 31], [40, 41]]
    """
    import grain

    held = _held(sharding, shape)
    places, held_shape = list(itertools.product(*held)), [len(indices) for indices in held]

    def read(number):
        step, place = divmod(number, len(places))
        return example(step, *places[place])

    def put(array):
        own = array.shape[1:]
        return jax.make_array_from_process_local_data(sharding, array.reshape(*held_shape, *own), (*shape, *own))

    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    read_ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, len(places)))
    examples = grain.MapDataset.range(steps.start * len(places), steps.stop * len(places)).map(read)
    made = examples.to_iter_dataset(read_ahead).batch(len(places)).map(lambda batch: Split(put(batch["image"]), put(batch["label"])))
    iterator = iter(grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=_BATCHES_ON_DEVICE))
    try:
        yield from iterator
    finally:
        iterator.close()


def training_batches(
    split: Any, key: jax.Array, steps: range, *, num_replicas: int, batch_size: int, data_mode: str, random_crop: bool, sharding: NamedSharding
) -> Iterator[Split]:
    """The batches of all replicas, in the very order that they have in memory.

    Args:
        split: a `StreamedSplit`.
        key: of the run's batch order.
        steps: the numbers of completed steps before each step.
        num_replicas: K.
        batch_size: B, of each replica.
        data_mode: as in `batches.epoch_indices`.
        random_crop: whether a random part of an image is taken, otherwise its center.
        sharding: of images ``[K, B, h, w, c]``.

    Yields:
        A Split for each step: images uint8 ``[K, B, h, w, c]``, labels int32 ``[K, B]``.
    """
    epoch = {"num_examples": split.num_examples, "batch_size": batch_size, "data_mode": data_mode}
    length = batches.steps_per_epoch(num_particles=num_replicas, **epoch)
    words = np.asarray(jax.random.key_data(key))
    # Of this process alone, which draws for the replicas that it holds.
    own_key = jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
    draw = jax.jit(functools.partial(batches.epoch_indices, own_key, num_particles=num_replicas, **epoch))
    order = _cached(lambda replica, epoch: np.asarray(draw(replica, epoch)), 2 * num_replicas)

    def example(step, replica, row):
        random = np.random.RandomState([*words, replica, step, row]) if random_crop else None
        return split.example(order(replica, step // length)[step % length, row], random)

    return stream(example, steps, (num_replicas, batch_size), sharding)


def _held(sharding, shape):
    """For each axis the indices that lie on devices of this process, ascending."""
    blocks = sharding.addressable_devices_indices_map(shape).values()
    return [sorted({index for block in blocks for index in range(*block[axis].indices(length))}) for axis, length in enumerate(shape)]


def _cached(function, size):
    """A cache that makes the others wait while one thread computes, as `functools.lru_cache` alone does not."""
    lock, cached = threading.Lock(), functools.lru_cache(size)(function)

    def call(*arguments):
        with lock:
            return cached(*arguments)

    return call
