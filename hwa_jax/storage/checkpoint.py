"""Training checkpoints: the newest one that is complete, or the one before it."""

from typing import Any, NamedTuple

import jax

from hwa_jax.errors import UserError
from hwa_jax.storage import saved_trees, tree_directory, tree_structure
from hwa_jax.storage.saved_trees import checked_integer


class Restored(NamedTuple):
    """A checkpoint: its step, the tree with NumPy leaves, and the metadata saved with it."""

    step: int
    tree: Any
    metadata: Any


class CheckpointStore:
    """Checkpoints in a directory, one per step, the newest ``keep`` of them.

    ``save`` is synchronous: when it returns, the checkpoint is on the disk, and only then are
    older ones removed. A process killed at any moment leaves whole checkpoints only.
    Every leaf has a checksum, so a checkpoint that the disk damaged is noticed and the one
    before it is restored. Damaged checkpoints do not count among the ``keep``.

    Args:
        directory: str or path-like; created by the first save.
        keep: number of checkpoints kept, at least 1; 2 leave one to fall back to.

    Raises:
        ValueError: ``keep`` is less than 1.
        UserError: ``directory`` is a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     store = CheckpointStore(directory)
        ...     store.save(10, {"w": 1.5}, {"seed": 0})
        ...     step, tree, metadata = CheckpointStore(directory).restore()
        >>> step, float(tree["w"]), metadata
        (10, 1.5, {'seed': 0})
    """

    def __init__(self, directory, *, keep=2):
        self._keep = checked_integer("keep", keep, 1)
        self._trees = saved_trees.SavedTrees(directory)

    @property
    def steps(self):
        """Steps of the checkpoints that are stored and not known to be damaged, ascending."""
        return self._trees.steps

    def save(self, step, tree, metadata=None):
        """Stores a checkpoint, in place of one with the same step; durable when it returns.

        Args:
            step: int, at least 0.
            tree: dicts, lists, tuples, NamedTuples and None, of numbers and arrays on any device.
                PRNG keys go in as ``jax.random.key_data``.
            metadata: anything that JSON knows; tuples come back as lists.

        Raises:
            UserError: the disk is full or the directory cannot be written; the checkpoints
                that were there stay.
            TypeError: a leaf cannot be stored; names it. Or ``metadata`` is not for JSON.
        """
        step = checked_integer("step", step, 0)
        structure, leaves = tree_structure.describe(tree)
        self._trees.save(step, structure, tree_directory.host_copy(leaves), metadata)
        self._trees.keep_newest(self._keep)

    def restore(self, like=None, step=None):
        """The newest checkpoint that is whole, or the one of ``step``.

        Args:
            like: tree whose containers, shapes and dtypes the checkpoint must have; its leaves
                may be ``jax.ShapeDtypeStruct``. The result has its very containers. Or a function
                that makes it from the metadata. None: the containers are rebuilt from the file.
            step: int, or None for the newest. A damaged newest one is passed over with a
                warning that names it; a damaged ``step`` raises.

        Returns:
            ``Restored(step, tree, metadata)``, or None if there is no checkpoint at all.

        Raises:
            UserError: every checkpoint is damaged; or ``step`` is, or does not exist; or the
                tree differs from ``like``: names the first leaf that does, and both.
        """
        if step is not None:
            step = checked_integer("step", step, 0)
            return self._as(like, step, self._trees.load(step))
        for newest in self._trees.steps[::-1]:
            saved = self._trees.load_or_skip(newest)
            if saved is not None:
                return self._as(like, newest, saved)
        if self._trees.damaged:
            raise UserError(
                f"{self._trees.directory}: every checkpoint is damaged, of steps"
                f" {sorted(self._trees.damaged)}: delete the directory to start over"
            )
        return None

    def truncate(self, after):
        """Removes the checkpoints with step > ``after``, damaged ones included.

        Training that goes on from an older checkpoint needs it: a newer one would be restored next.
        """
        self._trees.truncate(after)

    def _as(self, like, step, saved):
        if like is None:
            tree = tree_structure.rebuild(saved.structure, saved.leaves)
            return Restored(step, tree, saved.metadata)
        like = like(saved.metadata) if callable(like) else like
        wanted, _ = tree_structure.describe(like)
        if difference := tree_structure.first_difference(saved.structure, wanted):
            path, stored, expected = difference
            raise UserError(
                f"{self._trees.directory}: step {step} has {stored} at {path}, where {expected} is"
                " expected: it belongs to another model or optimizer, choose another directory"
            )
        tree = jax.tree.unflatten(jax.tree.structure(like), saved.leaves)
        return Restored(step, tree, saved.metadata)
