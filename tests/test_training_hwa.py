"""The training against HWA written out in float64 NumPy, the identities of its limits, and its devices."""

import jax
import numpy as np
import pytest

from hwa_jax import data
from hwa_jax.data.batches import epoch_indices
from hwa_jax.storage.window_store import WindowStore
from training_runs import (  # noqa: F401
    by_path, checkpoint, compilation_cache_dir, compiled_once, exported, rows, small_config, small_setup, train,
)

pytestmark = pytest.mark.usefixtures("compiled_once")
LAYERS = ("dense1", "dense2", "classifier")
RATE, EPOCH, BATCH = 0.05, 9, 10


def load_small(fields=()):
    """Training images [n, 64], normalized, float64; labels."""
    config = small_config(fields).data
    dataset = data.load("digits", num_train=config.num_train, validation_fraction=config.validation_fraction)
    images = (dataset.train.images / 255.0 - np.float64(dataset.mean)) / np.float64(dataset.std)
    return images.reshape(len(images), -1), dataset.train.labels


def gradient(params, images, labels):
    """Of the mean cross-entropy of the multilayer perceptron, by hand."""
    inputs = [images]
    for layer in LAYERS:
        x = inputs[-1] @ params[f"{layer}/kernel"] + params[f"{layer}/bias"]
        inputs.append(np.maximum(x, 0) if layer != "classifier" else x)
    logits = inputs.pop()
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    back = probabilities / probabilities.sum(1, keepdims=True)
    back[np.arange(len(labels)), labels] -= 1
    back /= len(labels)
    gradients = {}
    for layer, x in zip(LAYERS[::-1], inputs[::-1]):
        gradients |= {f"{layer}/kernel": x.T @ back, f"{layer}/bias": back.sum(0)}
        back = (back @ params[f"{layer}/kernel"].T) * (x > 0)
    return gradients


def mean(trees):
    return {name: np.mean([tree[name] for tree in trees], axis=0) for name in trees[0]}


def hwa_oracle(start, num_replicas, period, window_size, total):
    """(outer weights at the end, HWA weights, replicas at the end, spread at every push)."""
    images, labels = load_small()
    key = jax.random.fold_in(jax.random.key(0), 1)
    orders = [[np.asarray(_indices(key, k, e)) for e in range(-(-total // EPOCH))] for k in range(num_replicas)]
    replicas, pushed, spreads = [start] * num_replicas, [], {}
    for step in range(total):
        moved = []
        for k, params in enumerate(replicas):
            batch = orders[k][step // EPOCH][step % EPOCH]
            gradients = gradient(params, images[batch], labels[batch])
            moved.append({name: params[name] - RATE * gradients[name] for name in params})
        replicas, done = moved, step + 1
        if done % period == 0 or done == total:
            outer = mean(replicas)
            pushed.append(outer)
            spreads[done] = np.sqrt(np.mean([sum(((r[n] - outer[n]) ** 2).sum() for n in r) for r in replicas]))
            if done % period == 0:
                replicas = [outer] * num_replicas
    return outer, mean(pushed[-window_size:]), replicas, spreads


_indices = jax.jit(lambda key, k, e: epoch_indices(key, k, e, num_examples=90, batch_size=BATCH))


@pytest.fixture(scope="module")
def start():
    """The weights that every run begins with."""
    state = small_setup().initial_state()
    return {name: np.float64(leaf[0]) for name, leaf in by_path(state.params).items()}


@pytest.fixture(scope="module")
def small_run(compiled_once, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("small")
    train(directory)
    return directory


def hwa_params(directory):
    return {name.removeprefix("params/"): leaf for name, leaf in exported(directory).items()}


def replica_params(directory, step=None):
    """Per replica, weights by path."""
    params = by_path(checkpoint(directory, step).params)
    return [{name: leaf[k] for name, leaf in params.items()} for k in range(len(params["dense1/bias"]))]


def assert_close(mine, theirs, atol=1e-6):
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=atol, err_msg=name)


def test_a_period_that_does_not_divide_the_training(small_run, start):
    outer, averaged, replicas, spreads = hwa_oracle(start, 2, period=4, window_size=3, total=18)
    assert_close(hwa_params(small_run), averaged)
    mine = replica_params(small_run)
    assert_close(mean(mine), outer)
    # The last, partial cycle is averaged and pushed, and the replicas are left as they are.
    for k in range(2):
        assert_close(mine[k], replicas[k])
    assert max(np.abs(mine[0][name] - mine[1][name]).max() for name in start) > 1e-3
    with WindowStore(small_run / "window", 3) as window:
        assert window.steps == [12, 16, 18]
        assert_close(by_path(window.member(18).params), outer)
    pushes = {row["step"]: row["spread"] for row in rows(small_run, kind="push")}
    assert pushes.keys() == spreads.keys() == {4, 8, 12, 16, 18}
    for step, spread in spreads.items():
        np.testing.assert_allclose(pushes[step], spread, rtol=1e-4)


def test_a_period_that_divides_the_training(tmp_path, start):
    train(tmp_path, {"hwa.sync_period": "6 steps", "hwa.num_replicas": 3})
    outer, averaged, replicas, _ = hwa_oracle(start, 3, period=6, window_size=3, total=18)
    assert_close(hwa_params(tmp_path), averaged)
    for mine in replica_params(tmp_path):
        # After the last average all replicas are the outer weights.
        assert_close(mine, outer)


def test_one_replica_is_offline_averaging_alone(tmp_path, start):
    results = train(tmp_path, {"hwa.num_replicas": 1})
    outer, averaged, *_ = hwa_oracle(start, 1, period=4, window_size=3, total=18)
    assert_close(hwa_params(tmp_path), averaged)
    assert_close(replica_params(tmp_path)[0], outer)
    assert results["synchronizations"] == results["bytes_communicated"] == 0


def test_one_replica_and_one_member_is_the_plain_optimizer(tmp_path, start):
    train(tmp_path, {"hwa.num_replicas": 1, "hwa.window_size": 1})
    plain, *_ = hwa_oracle(start, 1, period=1000, window_size=1, total=18)
    assert_close(replica_params(tmp_path)[0], plain)
    assert_close(hwa_params(tmp_path), replica_params(tmp_path)[0], atol=0)


def test_one_member_is_online_averaging_alone(tmp_path, start):
    results = train(tmp_path, {"hwa.window_size": 1})
    outer, *_ = hwa_oracle(start, 2, period=4, window_size=1, total=18)
    assert_close(hwa_params(tmp_path), outer)
    assert results["final"]["hwa"] == results["final"]["outer"]


def test_synchronizing_after_every_step_is_one_large_batch(tmp_path, start):
    train(tmp_path, {"hwa.sync_period": "1 steps", "hwa.window_size": 1})
    images, labels = load_small()
    key, params = jax.random.fold_in(jax.random.key(0), 1), start
    for step in range(18):
        batch = np.concatenate([_indices(key, k, step // EPOCH)[step % EPOCH] for k in range(2)])
        gradients = gradient(params, images[batch], labels[batch])
        params = {name: params[name] - RATE * gradients[name] for name in params}
    assert_close(hwa_params(tmp_path), params)


@pytest.fixture(scope="module")
def on_one_device(compiled_once, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("devices")
    return train(directory, ON_DEVICES), hwa_params(directory)


ON_DEVICES = {
    "hwa.num_replicas": 8, "training.duration": "20 steps", "optimizer.momentum": 0.9, "data.crop_padding": 1,
    "model.norm": "batch", "evaluation.every": "20 steps",
}


@pytest.mark.parametrize("num_devices", [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(8, marks=pytest.mark.slow)])
def test_numbers_do_not_depend_on_devices(tmp_path, on_one_device, num_devices):
    results = train(tmp_path, {**ON_DEVICES, "num_devices": num_devices})
    expected, weights = on_one_device
    for name, leaf in hwa_params(tmp_path).items():
        scale = np.abs(weights[name]).max()
        np.testing.assert_allclose(leaf, weights[name], rtol=0, atol=1e-5 * scale, err_msg=name)
    assert results["bytes_communicated"] == expected["bytes_communicated"]


def test_a_run_continues_on_another_number_of_devices(tmp_path, on_one_device):
    train(tmp_path, {**ON_DEVICES, "training.duration": "10 steps", "num_devices": 4})
    results = train(tmp_path, {**ON_DEVICES, "num_devices": 2})
    # The window of the first part holds steps 4 and 8, and loses the partial cycle at 10.
    assert results["steps"] == 20 and results["window"] == [12, 16, 20]
    for name, leaf in on_one_device[1].items():
        np.testing.assert_allclose(hwa_params(tmp_path)[name], leaf, rtol=0, atol=1e-5 * np.abs(leaf).max(), err_msg=name)


def test_replicas_lie_on_the_devices_asked_for():
    setup = small_setup({"hwa.num_replicas": 6, "num_devices": 3})
    params = by_path(setup.initial_state().params)["dense1/bias"]
    assert setup.mesh.size == len(params.sharding.device_set) == 3
    assert [shard.data.shape for shard in params.addressable_shards] == [(2, 300)] * 3


@pytest.mark.parametrize("data_mode", ["shared", "partitioned"])
def test_batches_of_the_replicas(data_mode):
    setup = small_setup({"hwa.num_replicas": 3, "hwa.data_mode": data_mode})
    indices, seen = setup.epoch_indices, [set(), set(), set()]
    for epoch in range(2):
        batches = np.asarray(indices(epoch * setup.periods.epoch, setup.keys()[0]))
        assert batches.shape == (3, setup.periods.epoch, BATCH)
        for k in range(3):
            seen[k] |= set(batches[k].ravel().tolist())
    if data_mode == "shared":
        assert setup.periods.epoch == 9 and all(len(examples) == 90 for examples in seen)
    else:
        assert setup.periods.epoch == 3 and all(len(examples) == 30 for examples in seen)
        assert len(set.union(*seen)) == 90


def test_partitioned_data_train(tmp_path):
    results = train(tmp_path, {"hwa.data_mode": "partitioned", "training.duration": "4 epochs"})
    assert results["steps"] == 4 * (45 // BATCH)
    assert results["final"]["hwa"]["train"]["nll"] < np.log(10)
