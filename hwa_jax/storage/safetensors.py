"""Weights in one safetensors file: the form in which they are shipped and loaded again."""

import json
import os
from typing import Any

import jax
import numpy as np

from hwa_jax.errors import UserError
from hwa_jax.storage import atomic

GROUPS = ("params", "batch_stats")


def save_weights(path: str | os.PathLike, params: Any, batch_stats: Any, metadata: dict[str, Any] | None = None) -> None:
    """Writes weights under their paths: "params/dense/kernel", "batch_stats/norm/mean"; whole or not at all.

    Args:
        path: of the file.
        params, batch_stats: nested dictionaries of arrays; keys are strings without "/".
        metadata: what else the file should say; JSON.

    Raises:
        UserError: the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     save_weights(f"{directory}/w.safetensors", {"dense": {"kernel": np.ones(2)}}, {})
        ...     load_weights(f"{directory}/w.safetensors")[0]
        {'dense': {'kernel': array([1., 1.])}}
    """
    from safetensors.numpy import save

    arrays = {}
    for group, tree in zip(GROUPS, (params, batch_stats)):
        for keypath, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[f"{group}/{jax.tree_util.keystr(keypath, simple=True, separator='/')}"] = np.ascontiguousarray(leaf)
    atomic.write_bytes(path, save(arrays, {"hwa_jax": json.dumps(metadata or {})}))


def load_weights(path: str | os.PathLike, like: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """Reads what `save_weights` wrote. Nothing in the file is executed.

    Args:
        path: of the file.
        like: (params, batch_stats) whose structure, shapes and dtypes the file must have.

    Returns:
        (params, batch_stats), nested dictionaries of NumPy arrays.

    Raises:
        UserError: no such file, no safetensors file, or weights of another network; names the first
            leaf that differs.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a safetensors file of weights")
    try:
        arrays = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}); copy it again") from error
    trees = {group: {} for group in GROUPS}
    for name, array in sorted(arrays.items()):
        group, *keys = name.split("/")
        if group not in trees or not keys:
            raise UserError(f"{path}: {name} is neither params/... nor batch_stats/...; export the file again")
        node = trees[group]
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = array
    if like is not None:
        _require_like(path, (trees["params"], trees["batch_stats"]), like)
    return trees["params"], trees["batch_stats"]


def _require_like(path, found, like):
    for group, mine, wanted in zip(GROUPS, found, like):
        mine, wanted = _described(mine), _described(wanted)
        for name in sorted({*mine, *wanted}):
            if mine.get(name) != wanted.get(name):
                raise UserError(
                    f"{path}: {group}/{name} is {mine.get(name, 'missing')}, the model has {wanted.get(name, 'no such leaf')}: "
                    "give the weights of this model"
                )


def _described(tree):
    return {
        jax.tree_util.keystr(keypath, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for keypath, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
