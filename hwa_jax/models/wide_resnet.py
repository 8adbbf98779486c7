"""Wide residual networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from hwa_jax.errors import UserError
from hwa_jax.models.layers import (
    Chain,
    Classifier,
    conv,
    global_average_pool,
    normalization,
)


class PreactivationBlock(nnx.Module):
    """norm, ReLU, 3x3, norm, ReLU, 3x3, plus shortcut: ``[b, h, w, in] -> [b, h', w', out]``.

    The first convolution has the stride. Where shapes agree the shortcut is the input itself;
    elsewhere it is a 1x1 convolution of the activated input, as in the authors' code.

    Without normalization every block would double the variance of its input. Its last convolution
    then starts at zero, so that the block starts as its shortcut (Zhang, Dauphin & Ma 2019).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int,
        norm: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        settings = {"use_bias": norm == "none", "dtype": dtype, "rngs": rngs}
        last_init = nnx.initializers.zeros if norm == "none" else None
        self.norm1 = normalization(norm, in_channels, dtype=dtype, rngs=rngs)
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride, **settings)
        self.norm2 = normalization(norm, out_channels, dtype=dtype, rngs=rngs)
        self.conv2 = conv(out_channels, out_channels, 3, kernel_init=last_init, **settings)
        self.project = in_channels != out_channels or stride > 1
        if self.project:
            self.shortcut = conv(in_channels, out_channels, 1, stride=stride, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[batch, h, w, in]`` to ``[batch, ceil(h / stride), ceil(w / stride), out]``."""
        activated = nnx.relu(self.norm1(x))
        branch = self.conv2(nnx.relu(self.norm2(self.conv1(activated))))
        return branch + (self.shortcut(activated) if self.project else x)


class WideResNet(nnx.Module):
    """WRN-``depth``-``width`` of Zagoruyko & Komodakis 2016, without dropout.

    A 3x3 convolution to 16 channels, three groups of pre-activation blocks of 16, 32 and 64 times
    ``width`` channels, normalization, ReLU, global average pooling, one dense layer. Batch
    normalization by default.

    The paper counts ``depth = 6n + 4`` layers for n blocks per group (its 1x1 shortcuts count).
    Some repositories leave the shortcuts out: 6n + 2, so that their WRN-32-4 is the paper's
    WRN-34-4, n = 5. Both are accepted; no depth is both.

    Parameters at 10 classes: WRN-28-10 36.5 M (36,479,194), WRN-16-4 2.7 M (2,748,890), WRN-40-4
    8.9 M, WRN-16-8 11.0 M, WRN-28-2 1.5 M.

    Args:
        depth: 6n + 4 or 6n + 2 with n >= 1.
        width: factor of the channels, at least 1.

    Raises:
        UserError: another depth or width.

    Example:
        >>> settings = {"num_classes": 10, "input_shape": (32, 32, 3)}
        >>> model = nnx.eval_shape(lambda: WideResNet(28, 10, **settings, rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        36479194
    """

    def __init__(
        self,
        depth: int,
        width: int,
        *,
        num_classes: int,
        input_shape: tuple[int, int, int],
        norm: str = "batch",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        blocks_per_group, remainder = divmod(depth - 2, 6)
        if blocks_per_group < 1 or remainder not in (0, 2) or width < 1:
            raise UserError(
                f"model='wrn-{depth}-{width}': depth must be 6n + 4 (10, 16, 22, 28, ...) or, "
                "counted without shortcuts, 6n + 2, and width at least 1"
            )
        in_channels = 16
        self.stem = conv(
            input_shape[-1], in_channels, 3, use_bias=norm == "none", dtype=dtype, rngs=rngs
        )
        blocks = {}
        for group in range(3):
            channels = 16 * 2**group * width
            for index in range(blocks_per_group):
                blocks[f"group{group + 1}_block{index + 1}"] = PreactivationBlock(
                    in_channels,
                    channels,
                    stride=2 if group > 0 and index == 0 else 1,
                    norm=norm,
                    dtype=dtype,
                    rngs=rngs,
                )
                in_channels = channels
        self.blocks = Chain(**blocks)
        self.norm = normalization(norm, in_channels, dtype=dtype, rngs=rngs)
        self.classifier = Classifier(in_channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``."""
        x = nnx.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(global_average_pool(x))
