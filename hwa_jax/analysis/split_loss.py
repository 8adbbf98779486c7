"""The loss of a network on a split as a function of its weights, with Hessian products, in batches."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hwa_jax.data import Split, augmentation
from hwa_jax.training.setup import Setup


class SplitLoss:
    """Mean negative log-likelihood in nats, in evaluation mode: BatchNorm statistics are constants, nothing is random.

    Args:
        setup: network and normalization.
        split: the examples, on the devices; not streamed.
        batch_size: examples at a time; bounds the memory.
    """

    def __init__(self, setup: Setup, split: Split, *, batch_size: int = 500):
        # A streamed split has no images and says so, before anything is computed.
        starts = range(0, len(split.images), batch_size)
        self._batches = [split.select(slice(start, start + batch_size)) for start in starts]
        self._num_examples = split.num_examples
        model, mean, std = setup.model, setup.dataset.mean, setup.dataset.std

        def total(params, batch_stats, batch):
            logits = model.predict(params, batch_stats, augmentation.normalize(batch.images, mean, std))
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).sum()

        def product(params, batch_stats, batch, vector):
            gradient = jax.grad(lambda params: total(params, batch_stats, batch))
            return jax.jvp(gradient, (params,), (vector,))[1]

        self._total, self._product = jax.jit(total), jax.jit(product)

    def __call__(self, params: Any, batch_stats: Any) -> float:
        """The loss of these weights with these BatchNorm statistics, an empty dictionary without BatchNorm."""
        totals = [self._total(params, batch_stats, batch) for batch in self._batches]
        return sum(map(float, totals)) / self._num_examples

    def hessian_product(self, params: Any, batch_stats: Any) -> Callable[[Any], Any]:
        """v -> H v at these weights, on trees like them."""
        params = jax.tree.map(jnp.asarray, params)

        def product(vector):
            parts = [self._product(params, batch_stats, batch, vector) for batch in self._batches]
            return jax.tree.map(lambda *leaves: functools.reduce(jnp.add, leaves) / self._num_examples, *parts)

        return product
