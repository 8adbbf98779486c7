"""Evaluation and functional models: NumPy oracles, padding, compiles, BatchNorm, dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from hwa_jax import models
from hwa_jax.data import Split
from hwa_jax.data.augmentation import normalize
from hwa_jax.training.evaluation import Evaluator, batch_sums, metrics
from hwa_jax.training.functional import FunctionalModel, as_pairs, from_nnx, from_pairs

CLASSES = 4
MEAN, STD = np.float32([0.5]), np.float32([0.25])


def metrics_oracle(logits, labels):
    """Accuracy, NLL and ECE over 15 bins, example by example in float64."""
    logits = np.float64(logits)
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    confidence, correct = np.exp(log_probabilities.max(1)), logits.argmax(1) == labels
    ece = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return {"accuracy": correct.mean(), "nll": -log_probabilities[np.arange(len(labels)), labels].mean(), "ece": ece}


def assert_metrics(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=2e-6, atol=2e-7, err_msg=name)


# Derandomized: a confidence within rounding of a bin's border may fall on either side.
@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 20), st.floats(0.1, 20.0))
def test_sums_equal_numpy_without_the_padding(seed, count, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(20, CLASSES)).astype(np.float32) * np.float32(scale)
    labels = rng.integers(0, CLASSES, 20)
    valid = np.arange(20) < count
    logits[~valid] = rng.choice([np.nan, np.inf, 1e9])  # padding counts for nothing, whatever it holds
    sums = jax.device_get(jax.jit(batch_sums)(logits, labels, valid))
    assert_metrics(metrics(sums), metrics_oracle(logits[valid], labels[valid]))


def test_metrics_by_hand():
    # Two classes. Confidences 0.75 (right), 0.75 (wrong), 0.9 (right):
    # accuracy 2/3; NLL = -(ln 0.75 + ln 0.25 + ln 0.9)/3; ECE = 2/3·|0.5 - 0.75| + 1/3·|1 - 0.9| = 0.2
    logits = np.log([[0.75, 0.25], [0.75, 0.25], [0.1, 0.9]])
    result = metrics(batch_sums(jnp.array(logits), jnp.array([0, 1, 1]), jnp.ones(3, bool)))
    expected = {"accuracy": 2 / 3, "nll": -np.log(0.75 * 0.25 * 0.9) / 3, "ece": 0.2}
    assert_metrics(result, expected)


def random_split(count, seed=0):
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (count, 2, 2, 1), np.uint8), rng.integers(0, CLASSES, count).astype(np.int32))


def linear_model():
    def predict(params, batch_stats, images):
        del batch_stats
        return images.reshape(len(images), -1) @ params["w"]

    return FunctionalModel(None, None, predict, None)


@pytest.mark.parametrize("count", [1, 6, 7, 8, 20])
def test_evaluator_equals_numpy(count):
    split, weights = random_split(count), {"w": np.random.default_rng(1).normal(size=(4, CLASSES)).astype(np.float32)}
    evaluator = Evaluator(linear_model(), MEAN, STD, batch_size=7)
    logits = ((split.images / 255.0 - MEAN) / STD).reshape(count, -1) @ weights["w"]
    assert_metrics(evaluator.one(weights, {}, split), metrics_oracle(logits, split.labels))
    stacked = {"w": np.stack([weights["w"]] * 7 + [-weights["w"]])}
    first, *_, last = evaluator.stacked(stacked, {}, split)
    assert_metrics(first, metrics_oracle(logits, split.labels))
    assert_metrics(last, metrics_oracle(-logits, split.labels))


def test_one_program_for_all_splits_and_last_batches():
    traces = []

    def predict(params, batch_stats, images):
        traces.append(images.shape)
        return linear_model().predict(params, batch_stats, images)

    evaluator = Evaluator(linear_model()._replace(predict=predict), MEAN, STD, batch_size=8)
    weights = {"w": jnp.ones((4, CLASSES))}
    for count in (20, 13, 3, 8):
        evaluator.one(weights, {}, random_split(count))
    assert traces == [(8, 2, 2, 1)]


class Small(nnx.Module):
    """Dense, BatchNorm, dropout, in a list, so that a path has a number."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.BatchNorm(3, momentum=0.9, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images):
        x = images.reshape(len(images), -1)
        for layer in self.layers:
            x = layer(x)
        return self.dropout(x)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(2).normal(size=(16, 2, 2, 1)), jnp.float32)


@nnx.jit
def call(model, images):
    return model(images)


def test_functional_equals_the_nnx_model(images):
    def build(rngs):
        return models.create("mlp", num_classes=CLASSES, input_shape=(2, 2, 1), norm="batch", rngs=rngs)

    model, whole = from_nnx(build), build(nnx.Rngs(jax.random.key(5)))
    params, batch_stats = model.init(jax.random.key(5))
    whole.eval()
    np.testing.assert_allclose(jax.jit(model.predict)(params, batch_stats, images), call(whole, images), rtol=0, atol=1e-6)
    whole.train()
    logits, moved = jax.jit(model.train)(params, batch_stats, images, jax.random.key(0))
    np.testing.assert_allclose(logits, call(whole, images), rtol=0, atol=1e-6)
    expected = nnx.to_pure_dict(nnx.state(whole, nnx.BatchStat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), moved, expected)
    # The statistics that went in are as they were.
    assert all(np.abs(leaf).max() in (0.0, 1.0) for leaf in jax.tree.leaves(batch_stats))


def test_paths_are_strings_and_weights_are_plain(images):
    params, batch_stats = from_nnx(Small).init(jax.random.key(0))
    assert params["layers"]["0"]["kernel"].shape == (4, 3)
    assert set(batch_stats["layers"]["1"]) == {"mean", "var"}
    assert all(type(leaf) is type(jnp.zeros(1)) for leaf in jax.tree.leaves((params, batch_stats)))


def test_batch_norm_by_numpy(images):
    model = from_nnx(Small)
    params, batch_stats = model.init(jax.random.key(0))
    dense = params["layers"]["0"]
    hidden = np.float64(images).reshape(16, 4) @ np.float64(dense["kernel"]) + np.float64(dense["bias"])
    mean, variance = hidden.mean(0), hidden.var(0)
    _, moved = model.train(params, batch_stats, images, jax.random.key(0))
    np.testing.assert_allclose(moved["layers"]["1"]["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(moved["layers"]["1"]["var"], 0.9 + 0.1 * variance, atol=1e-6)
    # The moments are the batch's own, whatever statistics there were.
    pair = model.moments(params, moved, images)["layers"]["1"]
    np.testing.assert_allclose(pair[0], mean, atol=1e-6)
    np.testing.assert_allclose(pair[1], variance, atol=1e-5)
    # Prediction uses the running ones, and no dropout: (x - m) / sqrt(v + ε) · 1 + 0
    running = jax.tree.map(np.float64, moved["layers"]["1"])
    expected = (hidden - running["mean"]) / np.sqrt(running["var"] + 1e-5)
    np.testing.assert_allclose(model.predict(params, moved, images), expected, atol=1e-5)


def test_dropout_depends_on_the_key_alone(images):
    model = from_nnx(Small)
    weights = model.init(jax.random.key(0))
    one = model.train(*weights, images, jax.random.key(1))[0]
    np.testing.assert_array_equal(one, model.train(*weights, images, jax.random.key(1))[0])
    other = model.train(*weights, images, jax.random.key(2))[0]
    dropped, dropped_other = np.asarray(one == 0), np.asarray(other == 0)
    assert 0.2 < dropped.mean() < 0.8 and (dropped != dropped_other).any()
    assert (np.asarray(model.predict(*weights, images)) != 0).all()


def test_pairs_there_and_back():
    tree = {"a": {"norm": {"mean": np.ones(2), "var": np.zeros(2)}}, "b": {"mean": np.ones(1), "var": np.ones(1)}}
    jax.tree.map(np.testing.assert_array_equal, from_pairs(as_pairs(tree)), tree)
    assert as_pairs({}) == {} == from_pairs({})


def test_normalization_is_what_the_evaluator_applies():
    split = random_split(3)
    np.testing.assert_allclose(normalize(split.images, MEAN, STD), (split.images / 255.0 - 0.5) / 0.25, atol=1e-6)
