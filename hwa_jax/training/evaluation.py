"""Evaluation as a pure function of weights: accuracy, negative log-likelihood, calibration error."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from hwa_jax import particles
from hwa_jax.data import Split, augmentation
from hwa_jax.training.functional import FunctionalModel

NUM_BINS = 15


class Sums(NamedTuple):
    """What a batch adds to an evaluation; float32.

    Attributes:
        nll: scalar, summed negative log-likelihood in nats.
        correct: [15], correct predictions per confidence bin.
        confidence: [15], summed confidences per bin.
        count: [15], predictions per bin.
    """

    nll: jax.Array
    correct: jax.Array
    confidence: jax.Array
    count: jax.Array


def batch_sums(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> Sums:
    """The sums of one batch.

    Args:
        logits: float [b, classes].
        labels: int [b].
        valid: bool [b]; False marks padding, which counts for nothing.

    Example:
        >>> sums = batch_sums(jnp.array([[0.0, 9.0], [9.0, 0.0]]), jnp.array([1, 1]), jnp.array([True, False]))
        >>> float(sums.correct.sum()), float(sums.count.sum())
        (1.0, 1.0)
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    nll = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    confidence = jnp.exp(log_probabilities.max(axis=1))
    correct = logits.argmax(axis=1) == labels
    # Bin i holds confidences in (i/15, (i+1)/15].
    bins = jnp.clip(jnp.ceil(confidence * NUM_BINS).astype(jnp.int32) - 1, 0, NUM_BINS - 1)
    member = (bins[:, None] == jnp.arange(NUM_BINS)) & valid[:, None]
    return Sums(
        nll=jnp.where(valid, nll, 0.0).sum(),
        correct=(member & correct[:, None]).sum(0).astype(jnp.float32),
        confidence=jnp.where(member, confidence[:, None], 0.0).sum(0),
        count=member.sum(0).astype(jnp.float32),
    )


def metrics(sums: Sums) -> dict[str, float]:
    """Accuracy (0..1), NLL (nats per example) and ECE (0..1) from the sums of a whole split.

    ECE = `Σ_b (n_b / n) |accuracy_b - confidence_b|` over 15 bins of equal width.

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599.
    """
    total = sums.count.sum()
    return {
        "accuracy": float(sums.correct.sum() / total),
        "nll": float(sums.nll / total),
        "ece": float(np.abs(sums.correct - sums.confidence).sum() / total),
    }


class Evaluator:
    """Evaluates weights on splits that lie on the device, or are streamed; nothing is swapped in place.

    Example:
        >>> from hwa_jax import models
        >>> from hwa_jax.training.functional import from_nnx
        >>> model = from_nnx(lambda rngs: models.create("mlp", num_classes=2, input_shape=(2, 2, 1), rngs=rngs))
        >>> split = Split(np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, np.int32))
        >>> evaluator = Evaluator(model, np.zeros(1), np.ones(1), batch_size=2)
        >>> sorted(evaluator.one(*model.init(jax.random.key(0)), split))
        ['accuracy', 'ece', 'nll']
    """

    def __init__(
        self, model: FunctionalModel, mean: Any, std: Any, *, batch_size: int, mesh: jax.sharding.Mesh | None = None
    ):
        """
        Args:
            model: the network.
            mean, std: [c], normalization constants of the training split.
            batch_size: examples per step; the last, smaller batch is padded, so one program serves all.
            mesh: where stacked weights lie (see `particles.vectorize`).
        """
        self._batch_size = batch_size

        def predict(weights, images):
            return model.predict(*weights, augmentation.normalize(images, mean, std))

        def sums(weights, images, labels, valid):
            return batch_sums(predict(weights, images), labels, valid)

        def ensemble_sums(weights, images, labels, valid):
            log_probabilities = jax.nn.log_softmax(jax.vmap(predict, in_axes=(0, None))(weights, images))
            # Without the constant, the logarithm of the number of members, which a softmax takes away.
            return batch_sums(jax.nn.logsumexp(log_probabilities, axis=0), labels, valid)

        def examples(weights, images, labels, _):
            logits = predict(weights, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels), logits.argmax(axis=1) == labels

        self._one = jax.jit(sums)
        self._examples = jax.jit(examples)
        self._ensemble = jax.jit(ensemble_sums)
        mesh = particles.device_mesh() if mesh is None else mesh
        # Whole on every device, so that every process reads the sums of all particles.
        self.stacked_sums = jax.jit(
            particles.vectorize(sums, in_axes=(0, None, None, None), mesh=mesh), out_shardings=NamedSharding(mesh, PartitionSpec())
        )

    def one(self, params: Any, batch_stats: Any, split: Split) -> dict[str, float]:
        """Metrics of one set of weights on a split."""
        return metrics(self._total(self._one, (params, batch_stats), split))

    def stacked(self, params: Any, batch_stats: Any, split: Split) -> list[dict[str, float]]:
        """Metrics of every particle of stacked weights on a split."""
        total = self._total(self.stacked_sums, (params, batch_stats), split)
        return [metrics(Sums(*(x[k] for x in total))) for k in range(len(total.nll))]

    def examples(self, params: Any, batch_stats: Any, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Negative log-likelihood, nats, float32 [n], and whether it is right, bool [n], for every example of a split."""
        parts = jax.device_get(self._batches(self._examples, (params, batch_stats), split))
        return tuple(np.concatenate(values)[:split.num_examples] for values in zip(*parts))

    def ensemble(self, params: Any, batch_stats: Any, split: Split) -> dict[str, float]:
        """Metrics of the mean of the probabilities that stacked weights predict."""
        return metrics(self._total(self._ensemble, (params, batch_stats), split))

    def _total(self, sums: Callable, weights: Any, split: Split) -> Sums:
        parts = self._batches(sums, weights, split)
        return Sums(*(np.sum(x, axis=0, dtype=np.float64) for x in zip(*jax.device_get(parts))))

    def _batches(self, program, weights, split):
        return [program(weights, *batch) for batch in split.padded_batches(self._batch_size)]
