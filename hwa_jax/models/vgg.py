"""VGG with the head that CIFAR repositories give it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from hwa_jax.models.layers import Chain, Classifier, ConvNormRelu, global_average_pool

CHANNELS = (64, 128, 256, 512, 512)
CONVOLUTIONS_PER_STAGE = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def _max_pool(x: jax.Array) -> jax.Array:
    # "SAME" rounds up, so that images under 32x32 never shrink to nothing.
    return nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")


class VGG(nnx.Module):
    """VGG-16 or VGG-19: the paper's convolutions with normalization, then one dense layer.

    Simonyan & Zisserman 2015, table 1, columns D and E; five stages, each ended by 2x2
    max-pooling (rounding up). The three dense layers of the paper give way to global average
    pooling and 512 -> classes, as usual for CIFAR. Batch normalization by default, and then the
    convolutions have no bias.

    Parameters at 10 classes: VGG-16 14.7 M (14,724,042), VGG-19 20.0 M (20,035,018).

    Args:
        depth: 16 or 19.

    Raises:
        ValueError: another depth.

    Example:
        >>> settings = {"num_classes": 10, "input_shape": (32, 32, 3)}
        >>> model = nnx.eval_shape(lambda: VGG(16, **settings, rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        14724042
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        input_shape: tuple[int, int, int],
        norm: str = "batch",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if depth not in CONVOLUTIONS_PER_STAGE:
            raise ValueError(f"depth={depth}: must be 16 or 19")
        in_channels = input_shape[-1]
        layers = {}
        stages = zip(CHANNELS, CONVOLUTIONS_PER_STAGE[depth])
        for stage, (channels, num_convolutions) in enumerate(stages, start=1):
            for index in range(1, num_convolutions + 1):
                layers[f"stage{stage}_block{index}"] = ConvNormRelu(
                    in_channels, channels, norm=norm, dtype=dtype, rngs=rngs
                )
                in_channels = channels
            layers[f"stage{stage}_pool"] = _max_pool
        self.features = Chain(**layers)
        self.classifier = Classifier(in_channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``."""
        return self.classifier(global_average_pool(self.features(x)))
