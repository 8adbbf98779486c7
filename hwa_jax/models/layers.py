"""Layers that every architecture shares: convolution, normalization, the classifier."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from hwa_jax.conv import conv_general_dilated

NORMS = ("batch", "group", "none")

# flax's default of 0.99 keeps 60.5 % of the old statistics after 50 batches (0.99 ** 50): they
# would lag behind the weights for whole epochs, and after averaging even more so. With 0.9 the old
# statistics weigh 0.5 % after 50 batches.
BATCH_NORM_MOMENTUM = 0.9

# Wu & He 2018, "Group Normalization", table 3: 16 channels per group do as well as 32 groups, and
# unlike 32 groups they fit the 16-channel layers of the CIFAR networks.
LARGEST_GROUP_SIZE = 16


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: str | int | None = None,
    use_bias: bool = False,
    kernel_init: nnx.Initializer | None = None,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Square 2-D convolution with He-normal weights, ``[batch, h, w, in] -> [batch, h', w', out]``.

    Args:
        padding: pixels on each side. None means ``(kernel_size - 1) // 2``, the padding of the
            published networks: windows are centred on pixels 0, stride, 2 * stride, ..., exactly
            those that a strided shortcut takes ("SAME" centres them one pixel further).
            The output has ``ceil(size / stride)`` pixels, never none.
        kernel_init: He et al. 2015 (fan-in, gain 2) unless given.
        dtype: compute dtype; kernel ``[k, k, in, out]`` and bias ``[out]`` are fp32.

    Example:
        >>> layer = conv(3, 8, 3, stride=2, dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 5, 5, 3))).shape
        (1, 3, 3, 8)
    """
    return nnx.Conv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        padding=(kernel_size - 1) // 2 if padding is None else padding,
        use_bias=use_bias,
        kernel_init=kernel_init or nnx.initializers.he_normal(),
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        rngs=rngs,
    )


def identity(x: jax.Array) -> jax.Array:
    """Return ``x``: the normalization called "none"."""
    return x


def _keep_dtypes(arrays: tuple, *, dtype: jnp.dtype) -> tuple:
    """Promotion rule for flax's normalizations: leave every array as it is.

    Their default casts the running statistics to the compute dtype. Left alone they meet the
    activations in fp32, and only the layer's result is cast to the compute dtype.
    """
    del dtype
    return arrays


def normalization(
    norm: str, num_features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> Callable[[jax.Array], jax.Array]:
    """Normalization over ``[..., num_features]``: "batch", "group" or "none" (identity).

    Scale, bias and statistics are fp32 ``[num_features]`` and the arithmetic is fp32, whatever
    the compute dtype; the result has the compute dtype. Groups have 16 channels, or the largest
    divisor of ``num_features`` below that.

    Example:
        >>> layer = normalization("group", 100, dtype=jnp.float32, rngs=nnx.Rngs(0))
        >>> layer.num_groups, layer.group_size
        (10, 10)
    """
    if norm == "none":
        return identity
    shared = {"epsilon": 1e-5, "dtype": dtype, "promote_dtype": _keep_dtypes, "rngs": rngs}
    if norm == "batch":
        return nnx.BatchNorm(num_features, momentum=BATCH_NORM_MOMENTUM, **shared)
    sizes = range(1, LARGEST_GROUP_SIZE + 1)
    group_size = max(size for size in sizes if num_features % size == 0)
    return nnx.GroupNorm(num_features, num_groups=None, group_size=group_size, **shared)


class Chain(nnx.Module):
    """Named layers called one after another.

    ``nnx.List`` and ``nnx.Sequential`` number their members with integers, which come back from
    checkpoints as strings; names do not change and can be matched by a regex.

    Example:
        >>> chain = Chain(double=lambda x: 2 * x, negate=lambda x: -x)
        >>> chain(3)
        -6
    """

    def __init__(self, **layers: Callable[[jax.Array], jax.Array]):
        self.names = tuple(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pass ``x`` through the layers in the order in which they were given."""
        for name in self.names:
            x = getattr(self, name)(x)
        return x


class ConvNormRelu(nnx.Module):
    """3x3 convolution, normalization, ReLU: ``[batch, h, w, in] -> [batch, h', w', out]``."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        padding: str | int | None = None,
        norm: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(
            in_channels,
            out_channels,
            3,
            stride=stride,
            padding=padding,
            use_bias=norm == "none",
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = normalization(norm, out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[batch, h, w, in]`` to ``[batch, ceil(h / stride), ceil(w / stride), out]``."""
        return nnx.relu(self.norm(self.conv(x)))


def global_average_pool(x: jax.Array) -> jax.Array:
    """Mean over the map in at least fp32: ``[batch, h, w, channels] -> [batch, channels]``."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


class Classifier(nnx.Linear):
    """Last layer, ``[batch, in_features] -> [batch, num_classes]`` logits of at least fp32.

    Computed in fp32 under bf16 compute too: it is the cheapest layer, and rounded logits spoil
    the loss. A float64 compute dtype keeps float64.
    """

    def __init__(self, in_features: int, num_classes: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        logits_dtype = jnp.promote_types(dtype, jnp.float32)
        super().__init__(in_features, num_classes, dtype=logits_dtype, rngs=rngs)
