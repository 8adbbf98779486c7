"""CNN-S, the convolutional network that trains in minutes on a CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from hwa_jax.models.layers import Chain, Classifier, ConvNormRelu

CHANNELS = (16, 32, 64)
STRIDE = 2


class CNNS(nnx.Module):
    """Three 3x3 convolutions (16, 32, 64 channels, stride 2, SAME, ReLU) and one dense layer.

    This project's own CPU-scale network; no normalization by default. Maps halve (rounding up)
    three times, 28x28 to 14, 7 and 4, and the dense layer reads the flattened last one: 33,546
    parameters for 28x28x1 images of 10 classes (160 + 4,640 + 18,496 + 10,250).

    Example:
        >>> model = CNNS(num_classes=10, input_shape=(8, 8, 1), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((2, 8, 8, 1))).shape
        (2, 10)
    """

    def __init__(
        self,
        *,
        num_classes: int,
        input_shape: tuple[int, int, int],
        norm: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width, in_channels = input_shape
        layers = {}
        for index, channels in enumerate(CHANNELS, start=1):
            layers[f"block{index}"] = ConvNormRelu(
                in_channels,
                channels,
                stride=STRIDE,
                padding="SAME",
                norm=norm,
                dtype=dtype,
                rngs=rngs,
            )
            in_channels = channels
            height, width = -(-height // STRIDE), -(-width // STRIDE)
        self.features = Chain(**layers)
        features = height * width * in_channels
        self.classifier = Classifier(features, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``."""
        x = self.features(x)
        return self.classifier(x.reshape(x.shape[0], -1))
