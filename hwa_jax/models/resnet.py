"""Residual networks: the CIFAR family of He et al., ResNet-18 with a CIFAR stem, ResNet-50."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from hwa_jax.models.layers import (
    Chain,
    Classifier,
    conv,
    global_average_pool,
    identity,
    normalization,
)


class PadShortcut(nnx.Module):
    """Option A of He et al. 2016, section 4.2: a shortcut without parameters.

    Takes every ``stride``-th pixel and appends channels of zeros:
    ``[batch, h, w, c] -> [batch, ceil(h / stride), ceil(w / stride), out_channels]``.

    Example:
        >>> PadShortcut(out_channels=2, stride=2)(jnp.ones((1, 2, 2, 1))).tolist()
        [[[[1.0, 0.0]]]]
    """

    def __init__(self, *, out_channels: int, stride: int):
        self.out_channels = out_channels
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Subsample and pad ``x``."""
        x = x[:, :: self.stride, :: self.stride, :]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.out_channels - x.shape[-1])))


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    kernel_init: nnx.Initializer | None = None,
    norm: str,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> Chain:
    return Chain(
        conv=conv(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            use_bias=norm == "none",
            kernel_init=kernel_init,
            dtype=dtype,
            rngs=rngs,
        ),
        norm=normalization(norm, out_channels, dtype=dtype, rngs=rngs),
    )


class ResidualBlock(nnx.Module):
    """``relu(branch(x) + shortcut(x))``: ``[batch, h, w, in] -> [batch, h', w', out]``.

    The branch is a chain of convolutions, given as (kernel size, channels, stride); each is
    followed by normalization, with ReLU between. The shortcut is the identity where shapes agree,
    else a 1x1 convolution with normalization (``project``) or option A.

    Without normalization every block would double the variance of its input. Its last convolution
    then starts at zero, so that the block starts as its shortcut (Zhang, Dauphin & Ma 2019).
    """

    def __init__(
        self,
        in_channels: int,
        convolutions: tuple[tuple[int, int, int], ...],
        *,
        project: bool,
        norm: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        settings = {"norm": norm, "dtype": dtype, "rngs": rngs}
        branch = {}
        channels, total_stride = in_channels, 1
        for index, (kernel_size, out_channels, stride) in enumerate(convolutions, start=1):
            last = index == len(convolutions)
            branch[f"layer{index}"] = _conv_norm(
                channels,
                out_channels,
                kernel_size,
                stride=stride,
                kernel_init=nnx.initializers.zeros if last and norm == "none" else None,
                **settings,
            )
            if not last:
                branch[f"relu{index}"] = nnx.relu
            channels, total_stride = out_channels, total_stride * stride
        self.branch = Chain(**branch)
        if channels == in_channels and total_stride == 1:
            self.shortcut = identity
        elif project:
            self.shortcut = _conv_norm(in_channels, channels, 1, stride=total_stride, **settings)
        else:
            self.shortcut = PadShortcut(out_channels=channels, stride=total_stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[batch, h, w, in]`` to ``[batch, ceil(h / stride), ceil(w / stride), out]``."""
        return nnx.relu(self.branch(x) + self.shortcut(x))


def _basic(channels: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    return (3, channels, stride), (3, channels, 1)


def _bottleneck(channels: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    return (1, channels, 1), (3, channels, stride), (1, 4 * channels, 1)


def _overlapping_max_pool(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class ResNet(nnx.Module):
    """Stem, groups of residual blocks, global average pooling, one dense layer.

    Every group after the first halves the map (rounding up). Batch normalization by default.
    Use ``cifar_resnet``, ``resnet18`` and ``resnet50``.
    """

    def __init__(
        self,
        *,
        block: Callable[[int, int], tuple[tuple[int, int, int], ...]],
        blocks_per_group: tuple[int, ...],
        channels: tuple[int, ...],
        project: bool,
        imagenet_stem: bool = False,
        num_classes: int,
        input_shape: tuple[int, int, int],
        norm: str = "batch",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        settings = {"norm": norm, "dtype": dtype, "rngs": rngs}
        kernel_size, stride = (7, 2) if imagenet_stem else (3, 1)
        self.stem = _conv_norm(input_shape[-1], channels[0], kernel_size, stride=stride, **settings)
        self.stem_pool = _overlapping_max_pool if imagenet_stem else identity
        in_channels = channels[0]
        blocks = {}
        for group, (num_blocks, width) in enumerate(zip(blocks_per_group, channels), start=1):
            for index in range(1, num_blocks + 1):
                stride = 2 if group > 1 and index == 1 else 1
                convolutions = block(width, stride)
                blocks[f"group{group}_block{index}"] = ResidualBlock(
                    in_channels, convolutions, project=project, **settings
                )
                in_channels = convolutions[-1][1]
        self.blocks = Chain(**blocks)
        self.classifier = Classifier(in_channels, num_classes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images ``[batch, height, width, channels]`` to logits ``[batch, num_classes]``."""
        x = self.stem_pool(nnx.relu(self.stem(x)))
        return self.classifier(global_average_pool(self.blocks(x)))


def cifar_resnet(depth: int, **settings) -> ResNet:
    """ResNet of ``depth = 6n + 2`` layers for 32x32 images, 16, 32 and 64 channels, option A.

    He, Zhang, Ren & Sun 2016, section 4.2 and table 6: ResNet-20 0.27 M (269,722), ResNet-32
    0.46 M (464,154), ResNet-56 0.85 M (853,018) parameters at 10 classes. ResNet-8 (75,290) is
    their n = 1, for tests.

    Raises:
        ValueError: another depth.

    Example:
        >>> settings = {"num_classes": 10, "input_shape": (32, 32, 3)}
        >>> model = nnx.eval_shape(lambda: cifar_resnet(20, **settings, rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        269722
    """
    blocks_per_group, remainder = divmod(depth - 2, 6)
    if blocks_per_group < 1 or remainder:
        raise ValueError(f"depth={depth}: must be 6n + 2 with n >= 1 (8, 14, 20, ...)")
    return ResNet(
        block=_basic,
        blocks_per_group=(blocks_per_group,) * 3,
        channels=(16, 32, 64),
        project=False,
        **settings,
    )


def resnet18(**settings) -> ResNet:
    """ResNet-18 with a CIFAR stem: 3x3 convolution of stride 1, no pooling; 1x1 projections.

    He et al. 2016, table 1, with the stem that CIFAR repositories agree on: 11.17 M (11,173,962)
    parameters at 10 classes.

    Example:
        >>> settings = {"num_classes": 10, "input_shape": (32, 32, 3)}
        >>> model = nnx.eval_shape(lambda: resnet18(**settings, rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        11173962
    """
    return ResNet(
        block=_basic,
        blocks_per_group=(2, 2, 2, 2),
        channels=(64, 128, 256, 512),
        project=True,
        **settings,
    )


def resnet50(**settings) -> ResNet:
    """ResNet-50 with the ImageNet stem: 7x7 convolution of stride 2, 3x3 max-pooling of stride 2.

    He et al. 2016, table 1, with the stride on the 3x3 convolution of a bottleneck ("v1.5", as in
    torchvision): 25.56 M (25,557,032) parameters at 1000 classes.

    Example:
        >>> settings = {"num_classes": 1000, "input_shape": (224, 224, 3)}
        >>> model = nnx.eval_shape(lambda: resnet50(**settings, rngs=nnx.Rngs(0)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        25557032
    """
    return ResNet(
        block=_bottleneck,
        blocks_per_group=(3, 4, 6, 3),
        channels=(64, 128, 256, 512),
        project=True,
        imagenet_stem=True,
        **settings,
    )
