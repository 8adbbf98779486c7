"""LeNet-300-100, the fully connected network of the lottery-ticket papers."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from hwa_jax.models.layers import Classifier, normalization


class MLP(nnx.Module):
    """LeNet-300-100: flatten, 300, 100, classes, with ReLU between; no normalization by default.

    LeCun, Bottou, Bengio & Haffner 1998. 266,610 parameters for 28x28x1 images of 10 classes
    (Frankle & Carbin 2019, figure 2: 266K).

    Example:
        >>> model = MLP(num_classes=10, input_shape=(8, 8, 1), rngs=nnx.Rngs(0))
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
        def dense(in_features: int, out_features: int) -> nnx.Linear:
            return nnx.Linear(
                in_features,
                out_features,
                use_bias=norm == "none",
                kernel_init=nnx.initializers.he_normal(),
                dtype=dtype,
                rngs=rngs,
            )

        self.dense1 = dense(math.prod(input_shape), 300)
        self.norm1 = normalization(norm, 300, dtype=dtype, rngs=rngs)
        self.dense2 = dense(300, 100)
        self.norm2 = normalization(norm, 100, dtype=dtype, rngs=rngs)
        self.classifier = Classifier(100, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``."""
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.norm1(self.dense1(x)))
        x = nnx.relu(self.norm2(self.dense2(x)))
        return self.classifier(x)
