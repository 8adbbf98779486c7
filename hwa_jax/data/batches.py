"""Device-resident batches: a data set lives on the device, a batch is a gather.

Which images a particle sees depends on the key, its index and the epoch alone: not on
devices, layout or interruptions. All functions but `to_device` may be traced, with
``particle`` and ``epoch`` as tracers, inside `jax.vmap`, `jax.shard_map` and `jax.jit`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hwa_jax import particles
from hwa_jax.data.dataset import Split
from hwa_jax.errors import UserError

DATA_MODES = ("shared", "partitioned")
# No particle has this index, so the partition's stream is nobody's epoch stream.
_PARTITION_STREAM = 2**32 - 1


def to_device(split: Split, sharding: jax.sharding.Sharding | jax.Device | None = None) -> Split:
    """Copies a split to the default device, or as ``sharding`` says.

    Args:
        split: arrays in host memory; images stay uint8.
        sharding: as in `particles.put`. Over a mesh, a replicated sharding,
            ``NamedSharding(mesh, PartitionSpec())``, lets every device gather its batches.

    Returns:
        A Split of JAX arrays.
    """
    return particles.put(split, sharding)


def examples_per_particle(num_examples: int, num_particles: int, data_mode: str) -> int:
    """Number of examples in one epoch of one particle, before incomplete batches go.

    Args:
        num_examples: size of the training split.
        num_particles: K.
        data_mode: ``shared``: every particle draws its own order over all examples.
            ``partitioned``: every particle owns ``num_examples // K`` of them; the
            ``num_examples % K`` that are left over belong to nobody.

    Raises:
        UserError: unknown ``data_mode``, or K < 1.

    Example:
        >>> examples_per_particle(10, 3, "shared"), examples_per_particle(10, 3, "partitioned")
        (10, 3)
    """
    if data_mode not in DATA_MODES:
        raise UserError(f"data_mode={data_mode!r}: give one of {', '.join(DATA_MODES)}")
    if num_particles < 1:
        raise UserError(f"num_particles={num_particles}: give at least 1")
    return num_examples if data_mode == "shared" else num_examples // num_particles


def steps_per_epoch(
    num_examples: int, batch_size: int, num_particles: int = 1, data_mode: str = "shared"
) -> int:
    """Number of full batches in one epoch of one particle; the incomplete last one is dropped.

    Args:
        num_examples: size of the training split.
        batch_size: examples per step of one particle.
        num_particles: K; matters when the data are partitioned.
        data_mode: as in `examples_per_particle`.

    Raises:
        UserError: ``batch_size`` < 1 or larger than what a particle has; as in
            `examples_per_particle`.

    Example:
        >>> steps_per_epoch(100, 16), steps_per_epoch(100, 16, 2, "partitioned")
        (6, 3)
    """
    available = examples_per_particle(num_examples, num_particles, data_mode)
    if not 1 <= batch_size <= available:
        raise UserError(
            f"batch_size={batch_size}: a particle has {available} examples "
            f"(data_mode={data_mode!r}); give 1 to {available}"
        )
    return available // batch_size


def epoch_indices(
    key: jax.Array,
    particle: jax.Array | int,
    epoch: jax.Array | int,
    *,
    num_examples: int,
    batch_size: int,
    num_particles: int = 1,
    data_mode: str = "shared",
    distinct: Sequence[int] = (),
) -> jax.Array:
    """The batches of one particle in one epoch, as indices into the training split.

    A permutation of the particle's examples that depends only on ``(key, particle,
    epoch)``, cut into full batches. When the data are partitioned, particle k owns the
    k-th of K equal parts of one permutation that depends on ``key`` alone: the parts
    are disjoint and stay the same over all epochs.

    Args:
        key: PRNG key of the run's batch order, the same for all particles and epochs.
        particle: index of the particle, 0 <= particle < K, int or traced integer scalar.
        epoch: index of the epoch, from 0, int or traced integer scalar.
        num_examples: size of the training split; static.
        batch_size: examples per step; static.
        num_particles: K; static; matters when the data are partitioned.
        data_mode: ``shared`` or ``partitioned``, see `examples_per_particle`; static.
        distinct: K divisors of ``batch_size``: particle k's batch has so many examples, repeated until it is
            full, so that its mean gradient is that of a smaller batch; empty: all are full; static.

    Returns:
        int32 ``[steps_per_epoch, batch_size]``, no index twice but where a batch repeats its own.

    Raises:
        UserError: as in `steps_per_epoch`.

    Example:
        >>> epoch_indices(jax.random.key(0), 0, 0, num_examples=100, batch_size=16).shape
        (6, 16)
        >>> epoch_indices(jax.random.key(0), 1, 0, num_examples=8, batch_size=4, num_particles=2, distinct=(4, 2)).tolist()
        [[6, 7, 6, 7], [0, 1, 0, 1]]
    """
    steps = steps_per_epoch(num_examples, batch_size, num_particles, data_mode)
    epoch_key = jax.random.fold_in(jax.random.fold_in(key, particle), epoch)
    if data_mode == "partitioned":
        order = jax.random.permutation(jax.random.fold_in(key, _PARTITION_STREAM), num_examples)
        size = examples_per_particle(num_examples, num_particles, data_mode)
        examples = jax.lax.dynamic_slice_in_dim(order, particle * size, size)
    else:
        examples = jnp.arange(num_examples)
    shuffled = jax.random.permutation(epoch_key, examples)
    indices = shuffled[: steps * batch_size].reshape(steps, batch_size).astype(jnp.int32)
    return indices[:, jnp.arange(batch_size) % jnp.asarray(distinct)[particle]] if distinct else indices


def share(batch: jax.Array, axis_name: str) -> tuple[jax.Array, jax.Array]:
    """The rows of a batch that are this device's, where the devices of a mesh axis cut it evenly.

    Args:
        batch: ``[batch_size, ...]``, the same on all of them; ``batch_size`` is a multiple of their number.
        axis_name: the bound axis.

    Returns:
        ``(rows, first)``: ``[batch_size / number of devices, ...]``, and the first one's index in the batch.

    Example:
        >>> jax.vmap(lambda _: share(jnp.arange(6), "data")[0], axis_name="data")(jnp.zeros(2)).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    size = batch.shape[0] // jax.lax.axis_size(axis_name)
    first = jax.lax.axis_index(axis_name) * size
    return jax.lax.dynamic_slice_in_dim(batch, first, size), first


def gather(split: Split, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The examples at ``indices`` of a split on the device.

    Args:
        split: as `to_device` returns it.
        indices: integers ``[batch_size]`` in ``range(split.num_examples)``; JAX clamps
            larger ones, it cannot raise inside jit.

    Returns:
        ``(images, labels)``: uint8 ``[batch_size, h, w, c]`` and int32 ``[batch_size]``.

    Example:
        >>> split = Split(jnp.arange(3, dtype=jnp.uint8).reshape(3, 1, 1, 1), jnp.arange(3))
        >>> gather(split, jnp.array([2, 0]))[1]
        Array([2, 0], dtype=int32)
    """
    return split.images[indices], split.labels[indices]
