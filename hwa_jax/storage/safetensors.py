"""Weights in one safetensors file: the form in which they are shipped and loaded again."""

import json
import os
from typing import Any

import jax
import numpy as np

from hwa_jax.errors import UserError
from hwa_jax.storage import atomic, checksum

GROUPS = ("params", "batch_stats")
_METADATA = "hwa_jax"
# Within the metadata: of several entries of a header safetensors changes the order from file to file.
_CHECKSUM = "checksum"


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
    write_arrays(path, named_leaves({"params": params, "batch_stats": batch_stats}), metadata)


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
    return as_weights(path, read_arrays(path)[0], like)


def load_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What a file says about its weights, the `metadata` of `save_weights`; empty for other safetensors files.

    Raises:
        UserError: no such file, or no safetensors file.
    """
    with _open(path) as file:
        return _split_metadata(path, file.metadata() or {})[0]


def own_metadata(header: dict[str, str]) -> dict[str, Any]:
    """What `load_metadata` answers, out of a header that has been read.

    Example:
        >>> own_metadata({"format": "pt"}), own_metadata({"hwa_jax": '{"weights": "hwa"}'})
        ({}, {'weights': 'hwa'})
    """
    return _split_metadata("header", header)[0]


def write_arrays(
    path: str | os.PathLike, arrays: dict[str, np.ndarray], metadata: dict[str, Any] | None, others: dict[str, str] | None = None
) -> None:
    """Writes named arrays; whole or not at all.

    Args:
        path: of the file.
        arrays: name -> array.
        metadata: what `load_metadata` answers; JSON.
        others: entries of the header for other programs, such as PyTorch's {"format": "pt"}.

    Raises:
        UserError: the disk is full.
    """
    from safetensors.numpy import save

    stored = {name: _as_stored(array) for name, array in arrays.items()}
    metadata = metadata or {}
    about = {**metadata, _CHECKSUM: checksum.of_arrays(stored, metadata)}
    atomic.write_bytes(path, save(stored, {**(others or {}), _METADATA: json.dumps(about)}))


def read_arrays(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of any safetensors file by name, and the entries of its header.

    Raises:
        UserError: no such file, no complete safetensors file, a dtype that NumPy lacks, or one of `write_arrays`
            that was altered since.
    """
    with _open(path) as file:
        try:
            arrays, header = {name: file.get_tensor(name) for name in sorted(file.keys())}, file.metadata() or {}
        except (AttributeError, TypeError) as error:  # what safetensors makes of float8
            raise UserError(f"{path}: holds a dtype that NumPy lacks ({error}); convert it to float32") from error
    about, expected = _split_metadata(path, header)
    # Files of other programs, and of earlier versions, have none.
    if expected is not None and expected != checksum.of_arrays(arrays, about):
        raise UserError(f"{path}: is damaged (the checksum differs); copy it again")
    return arrays, header


def as_weights(where: str | os.PathLike, arrays: dict[str, np.ndarray], like: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """Named arrays as (params, batch_stats), nested dictionaries.

    Args:
        where: what the message names.
        arrays: "params/dense/kernel" -> array.
        like: (params, batch_stats) whose structure, shapes and dtypes they must have.

    Raises:
        UserError: another name, or weights of another network; names the first leaf that differs.

    Example:
        >>> as_weights("w.safetensors", {"params/dense/kernel": np.ones(1), "batch_stats/norm/mean": np.zeros(1)})
        ({'dense': {'kernel': array([1.])}}, {'norm': {'mean': array([0.])}})
    """
    trees = {group: {} for group in GROUPS}
    for name, array in arrays.items():
        group, *keys = name.split("/")
        if group not in trees or not keys:
            raise UserError(f"{where}: {name} is neither params/... nor batch_stats/...: give weights of this package's models")
        node = trees[group]
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise UserError(f"{where}: {name} lies below another array: give weights of this package's models")
        node[keys[-1]] = array
    if like is not None:
        _require_like(where, trees, dict(zip(GROUPS, like)))
    return trees["params"], trees["batch_stats"]


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their "/"-joined paths.

    Example:
        >>> named_leaves({"dense": {"kernel": 1, "bias": 2}, "list": [3]})
        {'dense/bias': 2, 'dense/kernel': 1, 'list/0': 3}
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def first_difference(arrays: dict[str, Any], others: dict[str, Any]) -> tuple[str, str, str] | None:
    """The first name under which two sets of named arrays differ in presence, shape or dtype, and both; or None.

    Example:
        >>> first_difference({"a": np.zeros(2), "b": np.zeros(3)}, {"a": np.zeros(2), "b": np.zeros((1, 3))})
        ('b', 'float64[3]', 'float64[1, 3]')
    """
    mine, wanted = ({name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in side.items()} for side in (arrays, others))
    for name in sorted({*mine, *wanted}):
        if mine.get(name) != wanted.get(name):
            return name, mine.get(name, "missing"), wanted.get(name, "missing")
    return None


def _as_stored(array):
    """The array as the file holds it, in row-major order and little-endian."""
    # Not ascontiguousarray, which makes a scalar a vector.
    array = np.asarray(array, order="C")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _split_metadata(where, header):
    """What a header says about the weights, and the checksum of both, or None."""
    try:
        about = json.loads(header.get(_METADATA, "{}"))
    except ValueError as error:
        raise UserError(f"{where}: what its header says about the weights is not JSON ({error}); copy it again") from error
    return about, about.pop(_CHECKSUM, None) if isinstance(about, dict) else None


def _open(path):
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file; give a safetensors file of weights")
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}); copy it again") from error


def _require_like(where, found, like):
    difference = first_difference(named_leaves(found), named_leaves(like))
    if difference:
        name, mine, wanted = difference
        raise UserError(f"{where}: {name} is {mine}, in the model it is {wanted}: give the weights of this model")
