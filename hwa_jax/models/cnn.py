"""CNN-S, the convolutional network that trains in minutes on a CPU, and wider ones of its kind."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from hwa_jax.models.layers import Chain, Classifier, ConvNormRelu

STRIDE = 2


class CNN(nnx.Module):
    """3x3 convolutions (stride 2, SAME, ReLU) and one dense layer.

    This project's own CPU-scale network; no normalization by default. With the channels of CNN-S maps halve
    (rounding up) three times, 28x28 to 14, 7 and 4, and the dense layer reads the flattened last one: 33,546
    parameters for 28x28x1 images of 10 classes (160 + 4,640 + 18,496 + 10,250). CNN-M has twice the
    channels, (32, 64, 128), and 113,162 parameters.

    Args:
        channels: of each convolution, one or more; CNN-S by default.

    Example:
        >>> model = CNN(num_classes=10, input_shape=(8, 8, 1), rngs=nnx.Rngs(0))
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
        channels: Sequence[int] = (16, 32, 64),
        rngs: nnx.Rngs,
    ):
        height, width, in_channels = input_shape
        layers = {}
        for index, out_channels in enumerate(channels, start=1):
            layers[f"block{index}"] = ConvNormRelu(
                in_channels,
                out_channels,
                stride=STRIDE,
                padding="SAME",
                norm=norm,
                dtype=dtype,
                rngs=rngs,
            )
            in_channels = out_channels
            height, width = -(-height // STRIDE), -(-width // STRIDE)
        self.features = Chain(**layers)
        features = height * width * in_channels
        self.classifier = Classifier(features, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``."""
        x = self.features(x)
        return self.classifier(x.reshape(x.shape[0], -1))
