"""From a file of weights to a function of images, with nothing but the file."""

import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwa_jax import models
from hwa_jax.data import augmentation
from hwa_jax.errors import UserError
from hwa_jax.storage import safetensors
from hwa_jax.training.functional import from_nnx
from hwa_jax.training.setup import Setup


def description(setup: Setup) -> dict[str, Any]:
    """What a file of weights must say for `load_predictor`: the network, and how its images are normalized."""
    model, dataset = setup.config.model, setup.dataset
    return {
        "model": {
            "name": model.name, "norm": model.norm, "dtype": model.dtype, "num_classes": dataset.num_classes,
            "input_shape": list(dataset.train.image_shape),
        },
        "mean": dataset.mean.tolist(), "std": dataset.std.tolist(),
    }


def load_predictor(path: str | os.PathLike) -> Callable[[Any], jax.Array]:
    """A trained network as a function of images.

    Args:
        path: a file of `experiments/evaluate.py export`, `hwa.safetensors` of a work directory, or an
            average of such files.

    Returns:
        predict(images uint8 [n, height, width, channels]) -> logits float32 [n, classes]. It compiles once
        for each n, and raises ValueError for images of another shape or dtype.

    Raises:
        UserError: no such file, a damaged one, or one that does not say which network it belongs to.
    """
    metadata = safetensors.load_metadata(path)
    if "model" not in metadata:
        raise UserError(f"{path}: does not say which network its weights belong to: read them with hwa_jax.load_weights")
    network = metadata["model"]
    shape, mean, std = tuple(network["input_shape"]), np.float32(metadata["mean"]), np.float32(metadata["std"])
    model = from_nnx(lambda rngs: models.create(
        network["name"], num_classes=network["num_classes"], input_shape=shape, norm=network["norm"] or None,
        dtype=jnp.dtype(network["dtype"]), rngs=rngs,
    ))
    like = jax.eval_shape(model.init, jax.random.key(0))
    weights = jax.device_put(safetensors.load_weights(path, like))
    logits = jax.jit(lambda weights, images: model.predict(*weights, augmentation.normalize(images, mean, std)))

    def predict(images):
        if np.shape(images)[1:] != shape or jnp.result_type(images) != jnp.uint8:
            raise ValueError(f"images are {jnp.result_type(images)}{list(np.shape(images))}: give uint8 {json.dumps(['n', *shape])}")
        return logits(weights, images)

    return predict
