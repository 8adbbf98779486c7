"""Networks with random weights and masks, and NumPy's own reading of an exported file."""

import json

import jax
import numpy as np
import optax
from safetensors import safe_open

from hwa_jax import masks
from hwa_jax.training import predictor


def description(name, shape, norm="none", dtype="float32"):
    """What a file says about a network; ten classes."""
    channels = shape[-1]
    model = {"name": name, "norm": norm, "dtype": dtype, "num_classes": 10, "input_shape": list(shape)}
    return {"model": model, "mean": [0.3] * channels, "std": [0.2] * channels}


def pruned_weights(metadata, sparsity):
    """(params, batch_stats, mask): random weights and statistics, about that much of the kernels gone; NumPy."""
    random = np.random.default_rng(0)
    like, stats_like = jax.eval_shape(predictor.network(metadata).init, jax.random.key(0))
    mask = jax.tree.map(lambda leaf: random.random(leaf.shape) >= sparsity if leaf.ndim > 1 else optax.MaskedNode(), like)

    def weights(leaf):
        # Of the size that keeps activations as large as they are, layer by layer.
        scale = np.sqrt(2 / (1 - sparsity) / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.5
        return random.normal(0, scale, leaf.shape).astype(np.float32)

    params = masks.apply(mask, jax.tree.map(weights, like))
    batch_stats = jax.tree.map(lambda leaf: random.uniform(0.5, 1.5, leaf.shape).astype(np.float32), stats_like)
    return jax.tree.map(np.asarray, params), batch_stats, mask


def images_of(metadata, batch_size):
    """uint8 noise."""
    return np.random.default_rng(2).integers(0, 256, (batch_size, *metadata["model"]["input_shape"]), np.uint8)


def read_with_numpy(path):
    """Arrays by name, with their zeros: what the format's description says, in NumPy and safetensors alone."""
    with safe_open(path, framework="np") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
        shapes = json.loads(file.metadata()["hwa_jax"])["shapes"]
    arrays = {name: array for name, array in stored.items() if ":" not in name}
    for name, shape in shapes.items():
        bits = np.unpackbits(stored[f"{name}:mask"])[: int(np.prod(shape))].astype(bool)
        flat = np.zeros(bits.size, stored[f"{name}:values"].dtype)
        flat[bits] = stored[f"{name}:values"]
        arrays[name] = flat.reshape(shape)
    return arrays
