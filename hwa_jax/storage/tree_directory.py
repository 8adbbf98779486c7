"""One pytree in one directory: arrays by Orbax, everything else and all checksums in JSON.

    tree.json     structure, checksums of leaves and files, metadata; first line: its own checksum
    arrays/       the leaves by number, an Orbax checkpoint of a flat dict

Orbax is used through ``Checkpointer``, the synchronous half of its first API: the
second one, ``experimental.v1``, still renames its functions between releases.
"""

import json
import os
import threading
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from hwa_jax import sizes
from hwa_jax.storage import checksum, tree_structure

# Orbax numbers its saves in one global counter: two threads must not save at once.
_ORBAX = threading.Lock()


class SavedTree(NamedTuple):
    """A tree as it was read: structure, NumPy arrays in its order, the saver's metadata."""

    structure: dict
    leaves: list
    metadata: Any


def write(path, structure, leaves, metadata):
    """Writes a tree into a new directory; neither synchronized nor atomic by itself.

    Args:
        path: of the directory, which must not exist.
        structure: of the tree, by ``tree_structure.describe``.
        leaves: NumPy arrays in its order, as ``host_copy`` returns them.
        metadata: anything that JSON knows.

    Raises:
        OSError: the disk is full, or whatever else it says; TensorStore's errors are ValueErrors.
        TypeError: ``metadata`` is not for JSON.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     structure, leaves = tree_structure.describe({"w": 1.5})
        ...     write(f"{directory}/a", structure, host_copy(leaves), "metadata")
        ...     read(f"{directory}/a")[1:]
        ([array(1.5)], 'metadata')
    """
    os.mkdir(path)
    arrays = os.path.join(path, "arrays")
    write_arrays(arrays, leaves)
    record = {
        "structure": structure,
        "metadata": metadata,
        "leaves": [checksum.of_array(leaf) for leaf in leaves],
        "files": checksum.of_files(arrays),
    }
    text = json.dumps(record)
    with open(os.path.join(path, "tree.json"), "w", encoding="utf-8") as file:
        file.write(f"{zlib.crc32(text.encode()):08x}\n{text}")


def read(path):
    """The tree in a directory, as ``SavedTree``, after all checksums were found right.

    Raises:
        Exception: something is missing, truncated or altered; of many types, because Orbax
            and TensorStore are among those who notice. The text says what it is.
    """
    record = _read_record(os.path.join(path, "tree.json"))
    arrays = os.path.join(path, "arrays")
    # Before Orbax sees them: TensorStore leaves tracebacks of its own behind.
    files = checksum.of_files(arrays)
    for name, expected in record["files"].items():
        if files.get(name) != expected:
            state = "the checksum differs" if name in files else "is missing"
            raise ValueError(f"arrays/{name}: {state}")
    named = tree_structure.leaf_structures(record["structure"])
    sizes.require_memory(sizes.num_bytes((leaf["shape"], leaf["dtype"]) for _, leaf in named))
    leaves = [np.empty(leaf["shape"], np.dtype(leaf["dtype"])) for _, leaf in named]
    leaves = _read_arrays(arrays, leaves)
    for (name, leaf), array, expected in zip(named, leaves, record["leaves"], strict=True):
        if (list(array.shape), array.dtype.name) != (leaf["shape"], leaf["dtype"]):
            raise ValueError(f"leaf {name}: the shape or dtype differs")
        if checksum.of_array(array) != expected:
            raise ValueError(f"leaf {name}: the checksum differs")
    return SavedTree(record["structure"], leaves, record["metadata"])


def host_copy(leaves):
    """NumPy copies of arrays and numbers, in native byte order; the copies own their memory.

    Example:
        >>> host_copy([1.5, np.arange(2, dtype=">i4")])
        [array(1.5), array([0, 1], dtype=int32)]
    """
    for leaf in leaves:
        if hasattr(leaf, "copy_to_host_async"):
            leaf.copy_to_host_async()
    arrays = [np.asarray(leaf) for leaf in leaves]
    return [np.array(array, dtype=array.dtype.newbyteorder("="), order="C") for array in arrays]


def write_arrays(path, leaves):
    """Writes the leaves by number as an Orbax checkpoint; nothing if none has elements."""
    item = _numbered(leaves)
    if item:
        with _ORBAX:
            _orbax().save(path, item)


def _read_arrays(path, templates):
    item = _numbered(templates)
    if not item:
        return templates
    arguments = ocp.args.PyTreeRestore(
        item=item,
        restore_args={key: ocp.RestoreArgs(restore_type=np.ndarray) for key in item},
    )
    with _ORBAX:
        restored = _orbax().restore(path, args=arguments)
    return [restored.get(_number(i), template) for i, template in enumerate(templates)]


def _orbax():
    """Orbax for this process alone; by itself it would wait for all processes of a run."""
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"hwa_jax_{process}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _read_record(path):
    with open(path, encoding="utf-8") as file:
        expected, text = file.read().split("\n", 1)
    if f"{zlib.crc32(text.encode()):08x}" != expected:
        raise ValueError("the checksum of tree.json differs")
    return json.loads(text)


def _numbered(leaves):
    """Orbax's tree. It refuses arrays without elements, which need no bytes either."""
    return {_number(i): leaf for i, leaf in enumerate(leaves) if leaf.size > 0}


def _number(index):
    return f"{index:06d}"
