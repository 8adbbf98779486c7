"""Models by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import nnx

from hwa_jax.errors import UserError
from hwa_jax.models.cnn import CNN
from hwa_jax.models.layers import NORMS
from hwa_jax.models.mlp import MLP
from hwa_jax.models.resnet import cifar_resnet, resnet18, resnet50
from hwa_jax.models.vgg import VGG
from hwa_jax.models.wide_resnet import WideResNet

_BUILDERS: dict[str, Callable[..., nnx.Module]] = {
    "mlp": MLP,
    "cnn_s": CNN,
    "cnn_m": partial(CNN, channels=(32, 64, 128)),
    "resnet8": partial(cifar_resnet, 8),
    "resnet20": partial(cifar_resnet, 20),
    "resnet32": partial(cifar_resnet, 32),
    "resnet56": partial(cifar_resnet, 56),
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg16": partial(VGG, 16),
    "vgg19": partial(VGG, 19),
}

# wrn-D-k stands for a family; the closest name is looked for among its published members.
NAMES = (*_BUILDERS, "wrn-D-k")
_PUBLISHED_WRNS = ("wrn-16-4", "wrn-16-8", "wrn-28-2", "wrn-28-10", "wrn-40-4")


def create(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    norm: str | None = None,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Build the model called ``name``, in training mode.

    Args:
        name: one of ``NAMES``; "wrn-D-k" with numbers, as in "wrn-28-10".
        num_classes: length of the logits.
        input_shape: ``(height, width, channels)`` of one image.
        norm: "batch", "group" or "none"; None is the architecture's own default.
        dtype: compute dtype. Parameters and normalization statistics are fp32, and so are the
            logits (float64 logits for float64).
        rngs: needs a stream for "params".

    Returns:
        A module that maps float images ``[batch, height, width, channels]`` to logits
        ``[batch, num_classes]``. It holds ``nnx.Param`` and, with batch normalization,
        ``nnx.BatchStat``; ``.train()`` and ``.eval()`` choose the statistics that are used.

    Raises:
        UserError: unknown name or norm, an impossible WRN, a size below 1, an input shape that is
            not a triple.

    Example:
        >>> model = create("mlp", num_classes=10, input_shape=(8, 8, 1), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((5, 8, 8, 1))).shape
        (5, 10)
    """
    if norm is not None and norm not in NORMS:
        raise UserError(f"norm={norm!r}: must be {', '.join(NORMS)}, or None for the default")
    if num_classes < 1:
        raise UserError(f"num_classes={num_classes}: must be at least 1")
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise UserError(
            f"input_shape={tuple(input_shape)}: must be (height, width, channels), each at least 1"
        )
    shared = {
        "num_classes": num_classes,
        "input_shape": tuple(input_shape),
        "dtype": dtype,
        "rngs": rngs,
    }
    if norm is not None:
        shared["norm"] = norm
    return _builder(name)(**shared)


def _builder(name: str) -> Callable[..., nnx.Module]:
    if name in _BUILDERS:
        return _BUILDERS[name]
    wrn = re.fullmatch(r"wrn-([0-9]+)-([0-9]+)", name)
    if wrn:
        return partial(WideResNet, int(wrn[1]), int(wrn[2]))
    candidates = (*_BUILDERS, *_PUBLISHED_WRNS)
    closest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)[0]
    raise UserError(f"model={name!r}: unknown; closest is {closest!r}; known: {', '.join(NAMES)}")
