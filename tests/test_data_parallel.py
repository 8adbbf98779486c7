"""Devices that share a replica's batches: the numbers of one device, gradients and moments of the whole batch."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64_network import in_float64
from hwa_jax.training.hlo import collectives
from jax.sharding import PartitionSpec
from training_runs import by_path, compilation_cache_dir, compiled_once, exported, rows, small_setup, train  # noqa: F401

from hwa_jax import models
from hwa_jax.data import augmentation, batches
from hwa_jax.errors import UserError
from hwa_jax.report.dry_run import describe
from hwa_jax.training import setup as training_setup
from hwa_jax.training.functional import FunctionalModel, from_nnx

pytestmark = pytest.mark.usefixtures("compiled_once")

# 5 batches of 16 in an epoch of 90 images; 20 steps are five cycles of 4.
FIELDS = {
    "model.norm": "batch", "training.batch_size": 16, "training.duration": "20 steps", "optimizer.momentum": 0.9,
    "data.crop_padding": 1, "data.flip": True, "evaluation.every": "20 steps", "logging.every": "4 steps",
}


@pytest.fixture(scope="module")
def on_one_device(compiled_once, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("one")
    return directory, train(directory, FIELDS)


def assert_same_numbers(mine, theirs):
    """Weights and statistics to 1e-5 of the largest of a leaf; and what the log says of every few steps."""
    others = exported(theirs)
    for name, leaf in exported(mine).items():
        np.testing.assert_allclose(leaf, others[name], rtol=0, atol=1e-5 * np.abs(others[name]).max(), err_msg=name)
    ours, logged = rows(mine, kind="train"), rows(theirs, kind="train")
    assert [row["step"] for row in ours] == [row["step"] for row in logged]
    for row, other in zip(ours, logged):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5) and row["accuracy"] == other["accuracy"]


@pytest.mark.parametrize(("num_devices", "data_parallel"), [
    (8, 4), pytest.param(4, 2, marks=pytest.mark.slow), pytest.param(8, 8, marks=pytest.mark.slow),
])
def test_numbers_do_not_depend_on_how_a_batch_is_cut(tmp_path, on_one_device, num_devices, data_parallel):
    expected, results = on_one_device
    mine = train(tmp_path, {**FIELDS, "num_devices": num_devices, "hwa.data_parallel": data_parallel})
    assert_same_numbers(tmp_path, expected)
    assert mine["bytes_communicated"] == results["bytes_communicated"]


def test_a_cycle_in_float64(tmp_path, monkeypatch):
    monkeypatch.setattr(training_setup, "from_nnx", in_float64)
    with jax.enable_x64(True):
        finals = []
        for devices, data_parallel in ((1, 1), (8, 4)):
            setup = small_setup({**FIELDS, "num_devices": devices, "hwa.data_parallel": data_parallel})
            state, (batch_key, noise_key) = setup.initial_state(), setup.keys()
            indices = setup.epoch_indices(state.step, batch_key)
            for _ in range(4):
                state = setup.step(state, indices, setup.train, noise_key, {})
            finals.append(jax.device_get(state))
    for mine, theirs in zip(jax.tree.leaves(finals[1]), jax.tree.leaves(finals[0])):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9 * abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("fields", [
    {"model.name": "resnet20", "training.duration": "4 steps", "hwa.sync_period": "2 steps"},
    {"optimizer.wrapper": "sam"}, {"training.steps_per_call": 4},
], ids=["resnet20", "sam", "several steps a call"])
def test_networks_optimizers_and_calls(tmp_path, fields):
    train(tmp_path / "one", {**FIELDS, **fields})
    train(tmp_path / "four", {**FIELDS, **fields, "num_devices": 4, "hwa.data_parallel": 2})
    assert_same_numbers(tmp_path / "four", tmp_path / "one")


def test_a_run_continues_with_batches_cut_otherwise(tmp_path, on_one_device):
    train(tmp_path, {**FIELDS, "training.duration": "12 steps"})
    train(tmp_path, {**FIELDS, "num_devices": 4, "hwa.data_parallel": 2})
    assert_same_numbers(tmp_path, on_one_device[0])


def test_the_devices_of_a_group_hold_the_same_replicas():
    setup = small_setup({**FIELDS, "num_devices": 8, "hwa.data_parallel": 4})
    assert dict(setup.mesh.shape) == {"device": 2, "data": 4}
    leaf = by_path(setup.initial_state().params)["dense1/kernel"]
    replicas = {shard.device.id: shard.index[0].indices(2)[0] for shard in leaf.addressable_shards}
    assert replicas == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1, 7: 1}


def test_gradients_travel_within_groups_and_weights_only_at_an_average():
    setup = small_setup({**FIELDS, "num_devices": 8, "hwa.data_parallel": 4})
    state, (batch_key, noise_key) = setup.initial_state(), setup.keys()
    arguments = state, setup.epoch_indices(state.step, batch_key), setup.train, noise_key, {}
    always, sometimes = collectives(setup.step.lower(*arguments).compile().as_text())
    assert {_axis(line) for line in always} == {"data"} and {_axis(line) for line in sometimes} == {"device"}


# As the XLA of JAX 0.10 writes them, and that of 0.12.
AXES = {
    "{{0,1,2,3},{4,5,6,7}}": "data", "{'data'}": "data", "{{0,4},{1,5},{2,6},{3,7}}": "device", "{'device'}": "device",
}


def _axis(line):
    """The mesh axis along which devices take part in a collective."""
    return AXES[re.search(r"replica_groups=(?:mesh\[.*?\] )?(\{\{.*?\}\}|\{.*?\})", line)[1]]


@pytest.mark.slow
def test_a_dry_run_says_who_shares():
    text = describe(small_setup({**FIELDS, "num_devices": 8, "hwa.data_parallel": 4}), 3)
    assert "replicas K              2 on 8 device(s), 4 for each batch" in text


REFUSED = {
    "devices": ({"num_devices": 8, "hwa.data_parallel": 3}, "hwa.data_parallel=3: must divide the 8 devices; give 1, or set num_devices"),
    "batches": ({"num_devices": 8, "hwa.data_parallel": 4, "training.batch_size": 18},
                "training.batch_size=18: must be a multiple of hwa.data_parallel=4"),
    "replicas": ({"num_devices": 8, "hwa.data_parallel": 2, "hwa.num_replicas": 6},
                 "hwa.num_replicas=6: must be a multiple of the 4 groups of hwa.data_parallel=2 devices; set num_devices to 4"),
    "none": ({"hwa.data_parallel": 0}, "hwa.data_parallel=0: must be at least 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_layouts_that_do_not_divide_are_refused(case, tmp_path):
    fields, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        train(tmp_path / "run", {**FIELDS, **fields})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"crop_padding": 2}, {"flip": True}, {"crop_padding": 1, "flip": True}])
def test_shares_of_a_batch_are_augmented_as_the_whole(options):
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 1), dtype=np.uint8)
    whole = augmentation.augment(jax.random.key(3), jnp.asarray(images), **options)
    shares = [
        augmentation.augment(jax.random.key(3), jnp.asarray(images[first : first + 4]), first=first, batch_size=12, **options)
        for first in (0, 4, 8)
    ]
    np.testing.assert_array_equal(np.concatenate(shares), whole)
    assert not np.array_equal(whole, images)


def test_shares_of_a_batch_are_its_rows_in_order():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    share = jax.shard_map(lambda batch: batches.share(batch, "data"), mesh=mesh, in_specs=PartitionSpec(),
                          out_specs=(PartitionSpec("data"), PartitionSpec()), check_vma=False)
    batch = jnp.arange(8).reshape(8, 1)[::-1]
    np.testing.assert_array_equal(share(batch)[0], batch)


def test_batch_norm_sees_the_whole_batch():
    build = functools.partial(models.create, "mlp", num_classes=10, input_shape=(8, 8, 1), norm="batch", dtype=jnp.float32)
    alone, shared = (from_nnx(lambda rngs: build(rngs=rngs), data_axis=axis) for axis in (None, "data"))
    params, batch_stats = alone.init(jax.random.key(0))
    # Of very different scales: moments of the parts are not those of the whole.
    images = jax.random.normal(jax.random.key(1), (4, 2, 8, 8, 1)) * jnp.arange(1.0, 5.0).reshape(4, 1, 1, 1, 1)
    train_shared = jax.vmap(shared.train, in_axes=(None, None, 0, None), axis_name="data")
    logits, moved = train_shared(params, batch_stats, images, jax.random.key(2))
    expected, expected_stats = alone.train(params, batch_stats, images.reshape(8, 8, 8, 1), jax.random.key(2))
    np.testing.assert_allclose(logits.reshape(8, 10), expected, rtol=0, atol=1e-5)
    for name, leaf in by_path(moved).items():
        for part in leaf:
            np.testing.assert_allclose(part, by_path(expected_stats)[name], rtol=1e-5, atol=1e-6, err_msg=name)
    apart, _ = jax.vmap(alone.train, in_axes=(None, None, 0, None))(params, batch_stats, images, jax.random.key(2))
    assert np.abs(apart.reshape(8, 10) - expected).max() > 0.1


def test_what_a_layer_draws_differs_within_a_group(monkeypatch):
    def drawing(build, *, data_axis):
        def train(params, batch_stats, images, key):
            return jnp.broadcast_to(params["bias"], (len(images), 10)), {"drawn": jax.random.uniform(key)}

        return FunctionalModel(lambda key: ({"bias": jnp.zeros(10)}, {"drawn": jnp.float32(0)}), train, None, None)

    monkeypatch.setattr(training_setup, "from_nnx", drawing)
    setup = small_setup({**FIELDS, "num_devices": 4, "hwa.data_parallel": 2})
    state, (batch_key, noise_key) = setup.initial_state(), setup.keys()
    state = setup.step(state, setup.epoch_indices(state.step, batch_key), setup.train, noise_key, {})
    assert len({float(shard.data[0]) for shard in state.batch_stats["drawn"].addressable_shards}) == 4
