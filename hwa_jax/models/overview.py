"""A table of a model's parameters."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

PyTree = Any


def overview(params: PyTree, batch_stats: PyTree = None, mask: PyTree = None) -> str:
    """Describe a parameter pytree, one line per leaf: path, shape, dtype, count, bytes.

    Args:
        params: pytree of arrays or ``jax.ShapeDtypeStruct``; nothing is computed on them.
        batch_stats: pytree of BatchNorm statistics, in a part of their own.
        mask: boolean pytree with the paths of ``params``; leaves that are not prunable are
            ``optax.MaskedNode()``. Adds the share of weights that remain ("-": not prunable).

    Returns:
        Lines joined by newlines, without one at the end. Bytes are 8-bit bytes in memory.

    Raises:
        ValueError: the mask has a leaf that ``params`` has not, or one of another shape.

    Example:
        >>> kernel, bias = np.zeros((4, 3), "float32"), np.zeros(3, "float32")
        >>> print(overview({"dense": {"kernel": kernel, "bias": bias}}))
        path          shape   dtype    count  bytes
        dense/bias    (3,)    float32      3     12
        dense/kernel  (4, 3)  float32     12     48
        total                             15     60
    """
    densities = None if mask is None else _densities(mask, _leaves(params))
    rows = _section(_leaves(params), "total", densities)
    if batch_stats is not None:
        rows += [[]] + _section(_leaves(batch_stats), "total of batch statistics", None)
    header = ["path", "shape", "dtype", "count", "bytes"]
    if mask is not None:
        header.append("density")
    return _aligned([header, *rows])


def _leaves(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _densities(mask: PyTree, params: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Weights that remain and prunable weights, by path."""
    densities = {}
    for path, leaf in _leaves(mask).items():
        if path not in params or params[path].shape != leaf.shape:
            expected = params[path].shape if path in params else "no such leaf"
            raise ValueError(f"mask leaf {path} has shape {leaf.shape}, parameters: {expected}")
        densities[path] = int(np.count_nonzero(leaf)), leaf.size
    return densities


def _section(
    leaves: dict[str, Any], total: str, densities: dict[str, tuple[int, int]] | None
) -> list[list[str]]:
    rows, total_count, total_bytes = [], 0, 0
    for path, leaf in leaves.items():
        count = math.prod(leaf.shape)
        num_bytes = count * leaf.dtype.itemsize
        rows.append([path, str(tuple(leaf.shape)), leaf.dtype.name, f"{count:,}", f"{num_bytes:,}"])
        if densities is not None:
            rows[-1].append(_percent([densities[path]]) if path in densities else "-")
        total_count += count
        total_bytes += num_bytes
    rows.append([total, "", "", f"{total_count:,}", f"{total_bytes:,}"])
    if densities is not None:
        rows[-1].append(_percent(list(densities.values())))
    return rows


def _percent(parts: list[tuple[int, int]]) -> str:
    remaining, prunable = (sum(column) for column in zip(*parts)) if parts else (0, 0)
    return f"{remaining / prunable:.2%}" if prunable else "-"


def _aligned(rows: list[list[str]]) -> str:
    num_columns = max(len(row) for row in rows)
    widths = [max(len(row[i]) for row in rows if len(row) > i) for i in range(num_columns)]
    lines = []
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3])]
        right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:])]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)
