"""Checkpoints that other programs left: Orbax directories and safetensors files, found and read by name.

An Orbax checkpoint is read without the tree that it was saved from: every leaf comes back as a NumPy
array under its "/"-joined path, whatever devices it was saved on. Nothing in a file is executed.
"""

import glob
import os
import re
from typing import NamedTuple

import jax
import numpy as np

from hwa_jax import sizes
from hwa_jax.errors import UserError
from hwa_jax.storage import safetensors

# In every directory that Orbax's PyTree handlers write, and nowhere else.
_ORBAX_TREE = "_METADATA"

# In the name of a directory that Orbax has not finished.
_UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoint(NamedTuple):
    """One checkpoint in memory.

    Attributes:
        arrays: name -> NumPy array.
        header: entries of a safetensors header; empty for Orbax.
    """

    arrays: dict[str, np.ndarray]
    header: dict[str, str]


def find(pattern: str) -> list[str]:
    """The paths that a glob matches, in the order of the numbers in them: step_9 before step_10.

    Args:
        pattern: as the shell's, "**" included; "~" is the home directory.

    Returns:
        Paths of safetensors files, or of directories that hold one Orbax tree each: for a
        step of a CheckpointManager, the directory of its only item.

    Raises:
        UserError: nothing matches, something that matches is not a checkpoint, or both formats do.
    """
    paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True), key=_natural_order)
    if not paths:
        raise UserError(f"--checkpoints={pattern}: matches nothing; quote it and give a glob such as 'runs/*/model.safetensors'")
    for path in paths:
        # Our own checkpoints hold stacked replicas and the optimizer, and name their leaves elsewhere.
        if any(os.path.isfile(os.path.join(place, "tree.json")) for place in (path, os.path.dirname(path))):
            raise UserError(f"{path}: is of a work directory of hwa_jax: make a file of it with experiments/evaluate.py export")
    found = [_orbax_tree(path) if os.path.isdir(path) else path for path in paths]
    formats = {os.path.isdir(path): path for path in paths}
    if len(formats) > 1:
        raise UserError(f"--checkpoints={pattern}: {formats[True]} is a directory and {formats[False]} a file: give one format at a time")
    return found


def read(path: str) -> Checkpoint:
    """Reads one of the paths that `find` returned.

    Raises:
        UserError: incomplete or damaged, holds no arrays, or an array with a NaN or infinity, which is named.
    """
    arrays, header = (_read_orbax(path), {}) if os.path.isdir(path) else safetensors.read_arrays(path)
    if not arrays:
        raise UserError(f"{path}: holds no arrays: leave it out")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds NaN or infinity: leave this checkpoint out")
    return Checkpoint(arrays, header)


def _natural_order(path):
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _orbax_tree(path):
    def is_tree(directory):
        return os.path.isfile(os.path.join(directory, _ORBAX_TREE))

    if _UNFINISHED in path:
        raise UserError(f"{path}: a save that was interrupted: delete it, or narrow the glob")
    if is_tree(path):
        return path
    children = sorted(os.listdir(path))
    items = [name for name in children if is_tree(os.path.join(path, name))]
    if len(items) > 1:
        raise UserError(f"{path}: holds several items ({', '.join(items)}): add one to the glob, as in '*/{items[0]}'")
    if not items:
        steps = [name for name in children if os.path.isdir(os.path.join(path, name))]
        hint = f"; it holds {steps[0]}: add /* to the glob" if steps else ""
        raise UserError(f"{path}: not a complete Orbax checkpoint, which has a file {_ORBAX_TREE}{hint}")
    return os.path.join(path, items[0])


def _read_orbax(path):
    import orbax.checkpoint as ocp
    from etils import epath

    directory = epath.Path(path).absolute()
    # The handler, not a Checkpointer, which warns of every item that lies inside a step.
    handler = ocp.PyTreeCheckpointHandler()
    try:
        _require_readable(directory)
        stored = handler.metadata(directory).tree
        arrays = [leaf for leaf in jax.tree.leaves(stored) if hasattr(leaf, "dtype")]
        sizes.require_memory(sizes.num_bytes((leaf.shape, leaf.dtype) for leaf in arrays))
        restore = jax.tree.map(_restore_args, stored)
        tree = handler.restore(directory, args=ocp.args.PyTreeRestore(restore_args=restore))
    except MemoryError:
        raise
    # Whatever Orbax, TensorStore or JSON makes of altered bytes.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a whole Orbax checkpoint ({reason}): leave it out") from error
    finally:
        handler.close()
    # Text, such as a tokenizer's name, has no average.
    return {name: np.asarray(leaf) for name, leaf in safetensors.named_leaves(tree).items() if not isinstance(leaf, str)}


def _require_readable(directory):
    """Reads every value once, in turn: on damage Orbax's parallel reads leave tracebacks of their threads behind."""
    import tensorstore

    if (directory / "manifest.ocdbt").exists():
        values = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{directory}/"}).result()
        for key in values.list().result():
            values.read(key).result()


def _restore_args(leaf):
    import orbax.checkpoint as ocp

    # As NumPy arrays, since the devices that it was saved on need not exist here.
    return ocp.RestoreArgs(restore_type=np.ndarray) if hasattr(leaf, "dtype") else ocp.RestoreArgs()
