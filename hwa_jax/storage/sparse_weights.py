"""Pruned weights in one safetensors file: a bit per weight, and the values of those that remain.

A leaf "params/dense/kernel" that is not prunable lies under its name. A prunable one lies there as two arrays:

    params/dense/kernel:mask      uint8, the mask in row-major order, eight weights a byte, the first one in the highest bit
    params/dense/kernel:values    the values of the remaining weights in row-major order, zeros among them included

and the header's metadata hold its shape under "shapes".
"""

import math
import os
from typing import Any

import jax
import numpy as np
import optax

from hwa_jax import sizes
from hwa_jax.errors import UserError
from hwa_jax.storage import safetensors

_MASK, _VALUES = ":mask", ":values"


def save_sparse_weights(
    path: str | os.PathLike, params: Any, batch_stats: Any, mask: Any, metadata: dict[str, Any] | None = None
) -> None:
    """Writes pruned weights; whole or not at all.

    Args:
        path: of the file.
        params, batch_stats: nested dictionaries of arrays; keys are strings without "/" and ":".
        mask: of `params`, as `hwa_jax.masks` makes it; weights outside it are not stored.
        metadata: what else the file should say; JSON.

    Raises:
        UserError: the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     mask = {"kernel": np.array([[True, False], [False, True]])}
        ...     save_sparse_weights(f"{directory}/w.safetensors", {"kernel": np.array([[1.0, 0.0], [0.0, 2.0]])}, {}, mask)
        ...     params, _, mask = load_sparse_weights(f"{directory}/w.safetensors")
        >>> print(params["kernel"])
        [[1. 0.]
         [0. 2.]]
    """
    arrays = safetensors.named_leaves({"params": params, "batch_stats": batch_stats})
    shapes = {}
    for name, keep in safetensors.named_leaves({"params": mask}).items():
        keep, values = np.asarray(keep), np.asarray(arrays.pop(name))
        shapes[name] = list(keep.shape)
        arrays |= {name + _MASK: np.packbits(keep), name + _VALUES: values[keep]}
    safetensors.write_arrays(path, arrays, {**(metadata or {}), "shapes": shapes})


def load_sparse_weights(path: str | os.PathLike) -> tuple[Any, Any, Any]:
    """Reads what `save_sparse_weights` wrote.

    Returns:
        (params, batch_stats, mask): nested dictionaries of NumPy arrays, exactly zero where the mask is False;
        `optax.MaskedNode()` in the mask where a leaf is not prunable.

    Raises:
        UserError: no such file, a damaged one, or one of other weights.
    """
    arrays, header = safetensors.read_arrays(path)
    masks = {}
    try:
        for name, shape in safetensors.own_metadata(header)["shapes"].items():
            bits, values = arrays.pop(name + _MASK), arrays.pop(name + _VALUES)
            # One byte for eight weights: a shape of more would be filled up with zeros.
            if bits.shape != (-(-sizes.num_bytes([(shape, "bool")]) // 8),):
                raise ValueError(f"{name} has {bits.shape} bytes of mask for the shape {shape}")
            keep = np.unpackbits(bits, count=math.prod(shape)).astype(bool).reshape(shape)
            arrays[name] = np.zeros(shape, values.dtype)
            arrays[name][keep] = values
            masks[name] = keep
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a file of pruned weights ({error}): give one of a cycle of pruning") from error
    params, batch_stats = safetensors.as_weights(path, arrays)

    def mask_of(keys, _):
        return masks.get(f"params/{jax.tree_util.keystr(keys, simple=True, separator='/')}", optax.MaskedNode())

    return params, batch_stats, jax.tree_util.tree_map_with_path(mask_of, params)
