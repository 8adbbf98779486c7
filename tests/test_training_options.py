"""What the fields of the configuration do to a training: policies, starts, periods, EMA, precision, smoothing."""

import jax
import numpy as np
import pytest

from hwa_jax.algorithms import hwa
from hwa_jax.errors import UserError
from hwa_jax.storage.window_store import WindowStore
from training_runs import (  # noqa: F401
    by_path, checkpoint, compilation_cache_dir, compiled_once, exported, rows, small_setup, train,
)

pytestmark = pytest.mark.usefixtures("compiled_once")
# Every synchronization, push and checkpoint of a training of 8 steps, the last at its end.
SHORT = {"training.duration": "8 steps", "evaluation.every": "8 steps", "checkpoint.every": "4 steps"}
PAYLOAD = 4 * (64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10)  # bytes of one replica's float32 weights


def spread_over_replicas(tree):
    """The largest distance of a replica from replica 0, relative to the largest value of the leaf."""
    return max(
        float(np.abs(leaf - leaf[:1]).max() / max(np.abs(leaf).max(), 1e-30))
        for leaf in jax.tree.leaves(tree) if np.issubdtype(leaf.dtype, np.floating)
    )


def pushed_steps(directory):
    with WindowStore(directory / "window", 1) as window:
        return window.stored_steps


@pytest.mark.parametrize("policy", ["local", "average", "reset"])
def test_optimizer_state_at_a_synchronization(tmp_path, policy):
    results = train(tmp_path, {**SHORT, "hwa.optimizer_state": policy, "optimizer.momentum": 0.9})
    state = checkpoint(tmp_path)
    momentum = jax.tree.leaves(state.opt_state.inner_state)
    floats = [leaf for leaf in momentum if leaf.dtype == np.float32]
    assert spread_over_replicas(state.params) < 1e-6
    if policy == "local":
        assert spread_over_replicas(floats) > 1e-2
    elif policy == "average":
        assert spread_over_replicas(floats) < 1e-6 and max(np.abs(leaf).max() for leaf in floats) > 1e-3
    else:
        assert max(np.abs(leaf).max() for leaf in floats) == 0
    # Two synchronizations, K = 2: each replica sends 2·(K-1)/K times what is averaged.
    averaged = 2 * PAYLOAD if policy == "average" else PAYLOAD
    assert results["synchronizations"] == 2
    assert results["bytes_per_synchronization"] == averaged
    assert results["bytes_communicated"] == 2 * averaged


def test_starts_and_periods(tmp_path):
    results = train(tmp_path, {
        "hwa.sync_start": "3 steps", "hwa.push_every": "8 steps", "hwa.offline_start": "12 steps", "hwa.keep_pushes": 9,
        "hwa.num_replicas": 4, "checkpoint.every": "3 steps", "checkpoint.keep": 9,
    })
    # Synchronizations after 1, 2, 3, then 7, 11, 15; pushes at 11 (too early) and at the end; K = 4 sends 1.5 times.
    assert pushed_steps(tmp_path) == [18] == results["window"]
    assert results["synchronizations"] == 6
    assert results["bytes_communicated"] == 6 * PAYLOAD * 3 // 2
    assert spread_over_replicas(checkpoint(tmp_path, 3).params) < 1e-6
    for step in (6, 9, 12, 18):
        assert spread_over_replicas(checkpoint(tmp_path, step).params) > 1e-3
    assert spread_over_replicas(checkpoint(tmp_path, 15).params) < 1e-6


def test_kept_members_reach_behind_the_window(tmp_path):
    train(tmp_path, {
        **SHORT, "hwa.sync_period": "1 steps", "hwa.window_size": 2, "hwa.keep_pushes": 7,
        "checkpoint.every": "1 steps", "checkpoint.keep": 1,
    })
    assert pushed_steps(tmp_path) == [2, 3, 4, 5, 6, 7, 8]


def test_batch_norm_statistics(tmp_path):
    train(tmp_path, {**SHORT, "model.norm": "batch", "hwa.recalibration_examples": 25})
    state, weights, setup = checkpoint(tmp_path), exported(tmp_path), small_setup()
    # Replicas see different batches, so their own statistics differ until the synchronization at the end.
    assert spread_over_replicas(state.batch_stats) < 1e-6
    # The first layer's inputs are images, so its statistics can be computed from the weights alone.
    images = (setup.dataset.train.images[:25] / 255.0 - np.float64(setup.dataset.mean)) / np.float64(setup.dataset.std)
    hidden = images.reshape(25, -1) @ np.float64(weights["params/dense1/kernel"])
    np.testing.assert_allclose(weights["batch_stats/norm1/mean"], hidden.mean(0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(weights["batch_stats/norm1/var"], hidden.var(0), rtol=1e-4, atol=1e-5)
    assert np.abs(weights["batch_stats/norm1/mean"] - state.batch_stats["norm1"]["mean"][0]).max() > 1e-3


def test_a_single_replica_is_compared_with_statistics_of_its_own(tmp_path):
    fields = {**SHORT, "model.norm": "batch", "hwa.num_replicas": 1, "hwa.recalibration_examples": 25}
    results, setup, state = train(tmp_path, fields), small_setup(fields), checkpoint(tmp_path)
    params, running = (jax.tree.map(lambda leaf: np.asarray(leaf)[0], tree) for tree in (state.params, state.batch_stats))
    own, _ = setup.recalibrate(params, running)
    expected, lagging = (setup.evaluator.one(params, statistics, setup.test)["nll"] for statistics in (own, running))
    assert results["final"]["outer"]["test"]["nll"] == pytest.approx(expected, abs=1e-6) != pytest.approx(lagging, abs=1e-3)


def test_batch_norm_statistics_differ_between_synchronizations(tmp_path):
    train(tmp_path, {**SHORT, "model.norm": "batch", "training.duration": "7 steps", "checkpoint.keep": 3})
    assert spread_over_replicas(checkpoint(tmp_path, 4).batch_stats) < 1e-6
    assert spread_over_replicas(checkpoint(tmp_path, 7).batch_stats) > 1e-3


def test_exponential_average(tmp_path):
    results = train(tmp_path, {**SHORT, "training.ema_decay": 0.75, "checkpoint.every": "1 steps", "checkpoint.keep": 8})
    start = by_path(small_setup().initial_state().params)
    average = {name: np.float64(leaf) for name, leaf in start.items()}
    for step in range(1, 9):
        params = by_path(checkpoint(tmp_path, step).params)
        average = {name: 0.75 * average[name] + 0.25 * params[name] for name in average}
    for name, leaf in by_path(checkpoint(tmp_path).ema.mean).items():
        np.testing.assert_allclose(leaf, average[name], rtol=0, atol=1e-6, err_msg=name)
    assert results["final"]["ema"].keys() == {"train", "validation", "test"}


def test_lookahead_reports_its_slow_weights(tmp_path):
    # Slow weights move at steps 5, 10, ...; after 8 steps the fast ones are elsewhere.
    results = train(tmp_path, {**SHORT, "optimizer.wrapper": "lookahead"})
    slow = by_path(checkpoint(tmp_path).opt_state.inner_state.slow)
    assert any(np.abs(slow[name] - leaf).max() > 1e-4 for name, leaf in by_path(checkpoint(tmp_path).params).items())
    assert results["final"]["slow"]["validation"]["nll"] != results["final"]["outer"]["validation"]["nll"]


def test_sam_trains(tmp_path):
    results = train(tmp_path, {"optimizer.wrapper": "sam", "training.duration": "4 epochs"})
    assert results["final"]["outer"]["train"]["nll"] < 1.5 < np.log(10)


def test_adamw_trains_with_averaged_moments(tmp_path):
    results = train(tmp_path, {
        **SHORT, "optimizer.name": "adamw", "optimizer.learning_rate": 0.01, "optimizer.weight_decay": 0.1,
        "hwa.optimizer_state": "average",
    })
    # Both moments are averaged, Adam's integer count is not.
    assert results["bytes_per_synchronization"] == 3 * PAYLOAD
    assert results["final"]["hwa"]["train"]["nll"] < np.log(10)


def test_half_precision_computes_but_keeps_float32_weights(tmp_path):
    train(tmp_path / "half", {**SHORT, "model.dtype": "bfloat16"})
    train(tmp_path / "full", SHORT)
    half, full = checkpoint(tmp_path / "half"), checkpoint(tmp_path / "full")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype(np.float32)}
    difference = max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(half.params), jax.tree.leaves(full.params)))
    assert 1e-5 < difference < 0.05


def test_label_smoothing(tmp_path):
    setup = small_setup()
    train(tmp_path, {**SHORT, "training.label_smoothing": 0.2, "logging.every": "1 steps", "training.duration": "1 steps"})
    params, batch_stats = jax.tree.map(lambda leaf: leaf[0], setup.initial_state()[1:3])
    indices = np.asarray(setup.epoch_indices(0, setup.keys()[0]))[:, 0]
    losses = []
    for batch in indices:
        images = (setup.dataset.train.images[batch] / 255.0 - setup.dataset.mean) / setup.dataset.std
        logits = np.float64(setup.model.predict(params, batch_stats, np.float32(images)))
        log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        # 0.8 on the label and 0.2 spread over all ten classes, the label included
        targets = 0.8 * np.eye(10)[setup.dataset.train.labels[batch]] + 0.02
        losses.append(-(targets * log_probabilities).sum(1).mean())
    [row] = rows(tmp_path, kind="train")
    np.testing.assert_allclose(row["loss"], np.mean(losses), rtol=1e-5)


def test_start_from_weights(tmp_path):
    train(tmp_path / "first", SHORT)
    file = str(tmp_path / "first" / "hwa.safetensors")
    setup = small_setup({"init_from": file})
    state, weights = setup.initial_state(), exported(tmp_path / "first")
    for name, leaf in by_path(state.params).items():
        np.testing.assert_array_equal(leaf, np.stack([weights[f"params/{name}"]] * 2))
    assert int(state.step) == 0
    results = hwa.run(setup, tmp_path / "second")
    assert results["final"]["hwa"]["train"]["nll"] < small_evaluation(weights, setup)["nll"]
    with pytest.raises(UserError, match="hwa.safetensors: batch_stats/norm1/mean is missing"):
        small_setup({"init_from": file, "model.norm": "batch"})


def small_evaluation(weights, setup):
    params = {}
    for name, leaf in weights.items():
        _, layer, kind = name.split("/")
        params.setdefault(layer, {})[kind] = leaf
    return setup.evaluator.one(params, {}, setup.train)
