"""Models by name."""

from __future__ import annotations

import difflib

import jax.numpy as jnp
from flax import nnx

from hwa_jax.errors import UserError
from hwa_jax.models.cnn import CNNS
from hwa_jax.models.layers import NORMS
from hwa_jax.models.mlp import MLP

NAMES = ("mlp", "cnn_s")


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
        name: one of ``NAMES``.
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
        UserError: unknown name or norm, a size below 1, an input shape that is not a triple.

    Example:
        >>> model = create("mlp", num_classes=10, input_shape=(8, 8, 1), rngs=nnx.Rngs(0))
        >>> model(jnp.zeros((5, 8, 8, 1))).shape
        (5, 10)
    """
    if norm is not None and norm not in NORMS:
        raise UserError(f"norm={norm!r}: must be one of {', '.join(NORMS)}, or None for the default")
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
    builders = {"mlp": MLP, "cnn_s": CNNS}
    if name not in builders:
        raise UserError(_unknown(name))
    return builders[name](**shared)


def _unknown(name: str) -> str:
    closest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.0)
    return f"model={name!r}: unknown; closest is {closest[0]!r}; known are {', '.join(NAMES)}"
