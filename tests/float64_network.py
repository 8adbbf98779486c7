"""A network in float64, for the trainings of this package; as a program, with it the one of experiments/ that PROGRAM names."""

import functools
import os
import runpy
import sys

import jax
import jax.numpy as jnp

from hwa_jax.training import setup as training_setup
from hwa_jax.training.functional import FunctionalModel, as_pairs
from programs import ROOT


def in_float64(build, *, data_axis=None):
    """A network of one hidden layer and BatchNorm whose weights and arithmetic are float64."""
    pooled = (lambda x: x) if data_axis is None else functools.partial(jax.lax.pmean, axis_name=data_axis)

    def logits(params, images, moments):
        hidden = images.reshape(len(images), -1).astype(jnp.float64) @ params["first"]
        mean, var = moments(hidden)
        return jnp.tanh((hidden - mean) / jnp.sqrt(var + 1e-5)) @ params["second"], {"norm": {"mean": mean, "var": var}}

    def of_batch(hidden):
        mean = pooled(hidden.mean(0))
        return mean, pooled(((hidden - mean) ** 2).mean(0))

    def init(key):
        params = {"first": jax.random.normal(key, (64, 20)) / 8, "second": jax.random.normal(key, (20, 10)) / 4}
        return params, {"norm": {"mean": jnp.zeros(20), "var": jnp.ones(20)}}

    def train(params, batch_stats, images, key):
        found, moved = logits(params, images, of_batch)
        return found, jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, batch_stats, moved)

    def predict(params, batch_stats, images):
        return logits(params, images, lambda _: (batch_stats["norm"]["mean"], batch_stats["norm"]["var"]))[0]

    def moments(params, batch_stats, images):
        return as_pairs(logits(params, images, of_batch)[1])

    return FunctionalModel(init, train, predict, moments)


if __name__ == "__main__":
    training_setup.from_nnx = in_float64
    sys.argv[0] = str(ROOT / os.environ["PROGRAM"])
    runpy.run_path(sys.argv[0], run_name="__main__")
