"""From a file of weights to a function of images, with nothing but the file."""

import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hwa_jax import models
from hwa_jax.data import augmentation
from hwa_jax.errors import UserError
from hwa_jax.storage import safetensors
from hwa_jax.training.functional import FunctionalModel, from_nnx
from hwa_jax.training.setup import Setup


def description(setup: Setup) -> dict[str, Any]:
    """What a file of weights must say for `load_predictor`: the network, how its images are normalized, its classes."""
    model, dataset = setup.config.model, setup.dataset
    return {
        "model": {
            "name": model.name, "norm": model.norm, "dtype": model.dtype, "num_classes": dataset.num_classes,
            "input_shape": list(dataset.train.image_shape),
        },
        "mean": dataset.mean.tolist(), "std": dataset.std.tolist(), "class_names": list(dataset.class_names),
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
        UserError: no such file, a damaged one, one of pruned weights, or one that does not say which network it
            belongs to.
    """
    metadata = safetensors.load_metadata(path)
    if "model" not in metadata:
        raise UserError(f"{path}: does not say which network its weights belong to: read them with hwa_jax.load_weights")
    if "shapes" in metadata:
        raise UserError(f"{path}: holds pruned weights: read it with hwa_jax.load_sparse_predictor")
    model = network(metadata)
    weights = safetensors.load_weights(path, jax.eval_shape(model.init, jax.random.key(0)))
    return predictor(model, weights, metadata)


def network(metadata: dict[str, Any], change: Callable[[nnx.Module], nnx.Module] = lambda model: model) -> FunctionalModel:
    """The network that a `description` speaks of.

    Args:
        metadata: as `description` made it.
        change: what to do to the NNX model before it is taken apart.
    """
    about = metadata["model"]
    return from_nnx(lambda rngs: change(models.create(
        about["name"], num_classes=about["num_classes"], input_shape=tuple(about["input_shape"]), norm=about["norm"] or None,
        dtype=jnp.dtype(about["dtype"]), rngs=rngs,
    )))


def predictor(model: FunctionalModel, weights: tuple[Any, Any], metadata: dict[str, Any]) -> Callable[[Any], jax.Array]:
    """What `load_predictor` returns, for weights in memory.

    Args:
        model: as `network` makes it.
        weights: params and batch_stats.
        metadata: as `description` made it.
    """
    weights, logits = jax.device_put(weights), jax.jit(lambda weights, images: model.predict(*weights, normalized(images, metadata)))

    def predict(images):
        require_images(images, metadata)
        return logits(weights, images)

    return predict


def normalized(images: jax.Array, metadata: dict[str, Any]) -> jax.Array:
    """uint8 images as the network takes them, float32."""
    return augmentation.normalize(images, np.float32(metadata["mean"]), np.float32(metadata["std"]))


def require_images(images: Any, metadata: dict[str, Any]) -> None:
    """Refuses what is not uint8 images of the network's shape, one at least, with a ValueError."""
    shape = metadata["model"]["input_shape"]
    if list(np.shape(images)[1:]) != shape or jnp.result_type(images) != jnp.uint8 or not len(images):
        raise ValueError(
            f"images are {jnp.result_type(images)}{list(np.shape(images))}: give uint8 {json.dumps(['n', *shape])}, n at least 1"
        )
