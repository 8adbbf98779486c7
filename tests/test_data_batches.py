"""Batch order: permutations that depend on (key, particle, epoch) and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hwa_jax.data.batches import epoch_indices, gather, steps_per_epoch, to_device
from hwa_jax.data.dataset import Split
from hwa_jax.errors import UserError
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

KEY = jax.random.key(11)


@pytest.mark.parametrize("num_examples, batch_size", [(1, 1), (2, 2), (60, 7), (61, 1), (61, 60)])
def test_an_epoch_is_a_permutation_cut_into_full_batches(num_examples, batch_size):
    indices = epoch_indices(KEY, 1, 2, num_examples=num_examples, batch_size=batch_size)
    assert indices.shape == (num_examples // batch_size, batch_size)
    assert indices.dtype == jnp.int32
    seen = np.asarray(indices).ravel()
    assert len(set(seen.tolist())) == len(seen)
    assert seen.min() >= 0 and seen.max() < num_examples


def test_order_depends_on_key_particle_and_epoch():
    arguments = dict(num_examples=64, batch_size=64)
    orders = {
        tuple(np.asarray(epoch_indices(key, particle, epoch, **arguments))[0].tolist())
        for key in (KEY, jax.random.key(12))
        for particle in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 18  # (particle 1, epoch 2) and (particle 2, epoch 1) differ too
    again = epoch_indices(KEY, 1, 2, **arguments)
    assert tuple(np.asarray(again)[0].tolist()) in orders


def test_batch_size_does_not_change_the_order():
    small = epoch_indices(KEY, 0, 5, num_examples=64, batch_size=8)
    large = epoch_indices(KEY, 0, 5, num_examples=64, batch_size=32)
    np.testing.assert_array_equal(np.ravel(small), np.ravel(large))


def test_unequal_batches_repeat_their_first_examples():
    arguments = dict(num_examples=50, batch_size=12, num_particles=3)
    full = jax.vmap(lambda k: epoch_indices(KEY, k, 4, **arguments))(jnp.arange(3))
    unequal = jax.vmap(lambda k: epoch_indices(KEY, k, 4, distinct=(12, 4, 1), **arguments))(jnp.arange(3))
    for particle, size in enumerate((12, 4, 1)):
        np.testing.assert_array_equal(unequal[particle], np.tile(full[particle, :, :size], 12 // size))


@pytest.mark.parametrize("num_particles", [1, 2, 3, 7])
def test_partitions_are_disjoint_equal_and_fixed(num_particles):
    arguments = dict(
        num_examples=50, batch_size=1, num_particles=num_particles, data_mode="partitioned"
    )
    owned = [
        [set(np.ravel(epoch_indices(KEY, k, epoch, **arguments)).tolist()) for epoch in range(3)]
        for k in range(num_particles)
    ]
    for epochs in owned:
        assert epochs[0] == epochs[1] == epochs[2]
        assert len(epochs[0]) == 50 // num_particles
    assert len(set.union(*(epochs[0] for epochs in owned))) == 50 // num_particles * num_particles


def test_partitions_are_drawn_at_random_and_follow_the_key():
    arguments = dict(num_examples=40, batch_size=20, num_particles=2, data_mode="partitioned")
    first, other = (
        set(np.ravel(epoch_indices(key, 0, 0, **arguments)).tolist())
        for key in (KEY, jax.random.key(1))
    )
    assert first != set(range(20)) and first != other


def test_partitioned_order_changes_from_epoch_to_epoch():
    arguments = dict(num_examples=40, batch_size=20, num_particles=2, data_mode="partitioned")
    first, second = (np.ravel(epoch_indices(KEY, 1, epoch, **arguments)) for epoch in range(2))
    assert (first != second).any()


@pytest.mark.parametrize("data_mode", ["shared", "partitioned"])
def test_same_batches_one_by_one_in_vmap_and_in_nested_shard_map(data_mode):
    order = functools.partial(
        epoch_indices, num_examples=70, batch_size=4, num_particles=8, data_mode=data_mode
    )
    one_by_one = np.stack([order(KEY, k, 3) for k in range(8)])
    particles, epoch = jnp.arange(8), jnp.int32(3)
    vectorized = jax.vmap(order, in_axes=(None, 0, None))
    np.testing.assert_array_equal(jax.jit(vectorized)(KEY, particles, epoch), one_by_one)
    mesh = jax.make_mesh((4,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        vectorized,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("device"), PartitionSpec()),
        out_specs=PartitionSpec("device"),
        check_vma=False,
    )
    np.testing.assert_array_equal(jax.jit(sharded)(KEY, particles, epoch), one_by_one)


def test_a_new_epoch_does_not_recompile():
    traces = []

    @jax.jit
    def order(particle, epoch):
        traces.append(None)
        return epoch_indices(KEY, particle, epoch, num_examples=20, batch_size=4)

    orders = [order(jnp.int32(k), jnp.int32(epoch)) for k in range(2) for epoch in range(3)]
    assert len(traces) == 1 and len({np.asarray(o).tobytes() for o in orders}) == 6


def test_first_batches_are_uniform():
    # 2,000 epochs of 10 examples: each example leads a tenth of them, 200 ± 13.4.
    orders = jax.vmap(lambda epoch: epoch_indices(KEY, 0, epoch, num_examples=10, batch_size=1))(
        jnp.arange(2_000)
    )
    np.testing.assert_allclose(np.bincount(orders[:, 0, 0], minlength=10), 200, atol=68)


def test_steps_per_epoch():
    assert steps_per_epoch(100, 100) == 1
    assert steps_per_epoch(100, 51) == 1
    assert steps_per_epoch(100, 10, 4, "shared") == 10
    assert steps_per_epoch(100, 10, 3, "partitioned") == 3  # 33 of 100 each


BAD = [
    (dict(num_examples=10, batch_size=11), r"batch_size=11: a particle has 10 examples"),
    (dict(num_examples=10, batch_size=0), r"batch_size=0: "),
    (
        dict(num_examples=10, batch_size=6, num_particles=2, data_mode="partitioned"),
        r"batch_size=6: a particle has 5 examples \(data_mode='partitioned'\); give 1 to 5",
    ),
    (dict(num_examples=10, batch_size=1, num_particles=11, data_mode="partitioned"), "has 0 examples"),
    (dict(num_examples=10, batch_size=1, num_particles=0), "num_particles=0: "),
    (dict(num_examples=10, batch_size=1, data_mode="split"), "data_mode='split': give one of shared"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[message for _, message in BAD])
def test_impossible_batches(arguments, message):
    with pytest.raises(UserError, match=message):
        steps_per_epoch(**arguments)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: epoch_indices(KEY, 0, 0, **arguments))


def test_gather_on_a_mesh_gives_each_particle_its_images():
    random = np.random.RandomState(0)
    split = Split(
        random.randint(0, 256, (30, 4, 4, 3)).astype(np.uint8), np.arange(30, dtype=np.int32)
    )
    mesh = jax.make_mesh((8,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    on_device = to_device(split, NamedSharding(mesh, PartitionSpec()))
    assert len(on_device.images.sharding.device_set) == 8
    indices = random.randint(0, 30, (4, 5))
    images, labels = jax.jit(jax.vmap(gather, in_axes=(None, 0)))(on_device, indices)
    np.testing.assert_array_equal(images, split.images[indices])
    np.testing.assert_array_equal(labels, indices)
    assert images.dtype == jnp.uint8 and labels.dtype == jnp.int32


def test_to_device_puts_it_where_it_is_told():
    split = Split(np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int32))
    device = jax.devices()[3]
    assert to_device(split, device).labels.devices() == {device}
    assert to_device(split).images.devices() == {jax.devices()[0]}
