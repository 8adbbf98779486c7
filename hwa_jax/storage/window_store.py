"""The sliding window of weights on disk: HWA's offline average of more than memory holds."""

import contextlib

import jax

from hwa_jax.errors import UserError
from hwa_jax.storage import saved_trees, tree_directory, tree_structure
from hwa_jax.storage.float64_mean import Float64Mean
from hwa_jax.storage.saved_trees import checked_integer
from hwa_jax.storage.worker import Worker

# Members of up to so many bytes together also stay in memory, so that the mean of a
# small model reads nothing.
_CACHE_BYTES = 1 << 28

# Copies that may wait for the disk: enough to hide one slow save, few enough for the memory.
_QUEUE_LENGTH = 2


class WindowStore:
    """A sliding window of pytrees over time, stored in a directory, and its mean.

    With members W_e pushed one per cycle and window length I = ``size``, ``mean()`` is

        (1 / min(I, e + 1)) * sum of W_i over i = max(0, e - I + 1) .. e

    the HWA weights (Gu et al. 2023, METHODS.md section 1). ``push`` copies the arrays to the
    host, hands the copy to one worker thread and returns; every other method waits for the
    pushes before it. An error of a save surfaces at the next call; the pushes that waited
    behind it are dropped, so the window never has a hole, and pushing may go on after it.
    What was pushed is durable after ``wait``, ``close`` or the end of a ``with`` block; a program
    that ends without them loses what still waits, and is warned.

    A killed process leaves whole members only. A member that is damaged nevertheless
    (truncated, altered, incomplete, of another structure than the newest) is never
    averaged: the newest ``size`` members are checked at open, every other one when it is
    read, and a damaged one is left out with a warning that names it, as if it had never been
    pushed. Opening and reading change nothing on the disk, so that a window can be read
    while another process pushes; one process at a time may push, and a reader that is to see
    a replaced member opens the window again. Up to 256 MiB of members stay in memory.

    Args:
        directory: str or path-like; created by the first push. An existing window continues.
        size: number of members in the window, I, at least 1.
        keep: number of members kept on the disk, at least ``size``, which is the default. More
            are needed to resume from a checkpoint that is older than the newest push (see
            ``truncate``) and to average over other windows afterwards (see ``mean``).

    Raises:
        ValueError: ``size`` or ``keep`` is out of range.
        UserError: ``directory`` is a file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with WindowStore(directory, size=2) as window:
        ...         for step in (1, 2, 3):
        ...             window.push(step, {"w": 0.5 * step})
        ...     with WindowStore(directory, size=2) as window:
        ...         window.steps, float(window.mean()["w"])
        ([2, 3], 1.25)
    """

    def __init__(self, directory, size, *, keep=None):
        self._size = checked_integer("size", size, 1)
        self._keep = self._size if keep is None else checked_integer("keep", keep, self._size)
        self._trees = saved_trees.SavedTrees(directory)
        self._cache = {}
        name = f"pushes to {self._trees.directory}"
        self._worker = Worker(self._save, _QUEUE_LENGTH, name)
        self._structure = None
        self._treedef = None
        self._described = None
        self._check_newest()

    @property
    def steps(self):
        """Steps of the newest ``size`` members, ascending; list of int."""
        return self.stored_steps[-self._size :]

    @property
    def stored_steps(self):
        """Steps of all members that are kept, ascending; list of int."""
        self.wait()
        return self._trees.steps

    def push(self, step, tree):
        """Appends a member; or replaces the newest one, if it has the same step.

        Args:
            step: int, at least the step of the newest member.
            tree: of arrays on any device, of the structure, shapes and dtypes of the other
                members. They are copied before this returns, and may then be donated.
                NaN is stored like any other number: whether to go on is the caller's decision.

        Raises:
            ValueError: ``step`` is older than the newest member; or the window is closed.
            UserError (a ValueError): the tree differs from the other members; names the
                first leaf that does. Or an earlier push failed: the disk is full.
            TypeError: a leaf is not a number or an array of numbers; names the leaf.
        """
        if self._worker.closed:
            raise ValueError(f"push({step}): the window is closed")
        with self._forgetting_what_failed():
            self._worker.raise_error()
        step = checked_integer("step", step, 0)
        if self._newest is not None and step < self._newest:
            raise ValueError(
                f"push({step}): older than the newest member, {self._newest}:"
                f" truncate(after={step - 1}) goes back"
            )
        structure, leaves = self._describe(tree)
        self._check_structure(step, structure)
        with self._forgetting_what_failed():
            self._worker.submit(step, structure, tree_directory.host_copy(leaves))
        self._newest = step
        self._structure, self._treedef = structure, jax.tree.structure(tree)

    def mean(self, size=None, stride=1, upto=None):
        """The mean of members, summed in float64 and rounded once.

        Args:
            size: at most how many members are averaged; None means the window's size.
            stride: distance between them: every ``stride``-th member, counted backwards from
                the newest. Together they reach ``(size - 1) * stride`` members back.
            upto: the newest member that may be used is the last one with step <= ``upto``.

        Returns:
            A tree of NumPy arrays in the structure and dtypes of the members. A leaf that
            is neither float nor complex (a counter, a mask) is the newest member's.

        Raises:
            ValueError: there is no such member.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as directory:
            ...     with WindowStore(directory, size=2, keep=9) as window:
            ...         for step in (1, 2, 3, 4, 5):
            ...             window.push(step, float(step))
            ...         means = window.mean(), window.mean(stride=3), window.mean(size=4, upto=3)
            >>> [float(mean) for mean in means]
            [4.5, 3.5, 2.0]
        """
        size = self._size if size is None else checked_integer("size", size, 1)
        stride = checked_integer("stride", stride, 1)
        self.wait()
        while True:
            steps = [s for s in self._trees.steps if upto is None or s <= upto]
            steps = steps[::-1][::stride][:size][::-1]
            if not steps:
                until = "" if upto is None else f" up to step {upto}"
                raise ValueError(f"{self._trees.directory}: the window has no member{until}")
            mean = Float64Mean()
            for step in steps:
                leaves = self._read(step)
                if leaves is None:
                    break
                mean.add(leaves)
            else:
                return jax.tree.unflatten(self._treedef, mean.value())

    def member(self, step):
        """The member that was pushed at ``step``, as a tree of NumPy arrays.

        Raises:
            UserError: there is none, or it is damaged.
        """
        self.wait()
        saved = self._trees.load(checked_integer("step", step, 0))
        return tree_structure.rebuild(saved.structure, saved.leaves)

    def require_like(self, tree):
        """Refuses a window whose members differ from ``tree``; leaves may be ``ShapeDtypeStruct``.

        Raises:
            UserError: names the first leaf that differs.
        """
        self.wait()
        difference = self._structure and tree_structure.first_difference(
            self._structure, tree_structure.describe(tree)[0]
        )
        if difference:
            path, stored, expected = difference
            raise UserError(
                f"{self._trees.directory}: {path} is {stored}, where {expected} is expected: it"
                " belongs to another model, choose another directory"
            )

    def truncate(self, after):
        """Removes the members with step > ``after``: back to where a checkpoint was made.

        An uninterrupted run and one that is resumed have the same window, if ``keep`` is at least
        ``size`` plus the number of pushes between two checkpoints.
        """
        self.wait()
        self._trees.truncate(after)
        self._forget()

    def wait(self):
        """Returns when every push is durable.

        Raises:
            UserError: the disk is full, or the directory cannot be written.
        """
        with self._forgetting_what_failed():
            self._worker.wait()

    def close(self):
        """Waits for the pushes and ends the worker thread. Reading stays possible.

        Raises:
            UserError: as ``wait``.
        """
        with self._forgetting_what_failed():
            self._worker.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @contextlib.contextmanager
    def _forgetting_what_failed(self):
        try:
            yield
        except Exception:
            self._forget()
            raise

    def _check_newest(self):
        """Checks the newest ``size`` members: reads them, so that the damaged ones are known."""
        checked = 0
        for step in self._trees.steps[::-1]:
            checked += self._read(step) is not None
            if checked == self._size:
                break
        self._forget()

    def _forget(self):
        """Takes the newest member, the structure and the cache from what the disk has now."""
        steps = self._trees.steps
        self._newest = steps[-1] if steps else None
        if not steps:
            self._structure = None
        self._drop_evicted()

    def _drop_evicted(self):
        steps = self._trees.steps
        self._cache = {step: leaves for step, leaves in self._cache.items() if step in steps}

    def _describe(self, tree):
        """Structure and leaves of a tree; one like the last is not walked again, which takes longer than a small one's copy."""
        try:
            leaves, treedef = jax.tree.flatten(tree)
        except ValueError:  # keys that cannot be sorted: describe names them
            return tree_structure.describe(tree)
        kind = treedef, [(getattr(leaf, "shape", None), getattr(leaf, "dtype", type(leaf))) for leaf in leaves]
        if self._described is None or self._described[0] != kind:
            self._described = kind, tree_structure.describe(tree)[0]
        return self._described[1], leaves

    def _check_structure(self, step, structure):
        if self._structure is None:
            return
        if difference := tree_structure.first_difference(self._structure, structure):
            path, stored, pushed = difference
            raise UserError(
                f"push({step}): {path} is {pushed}, but {stored} in the members in"
                f" {self._trees.directory}: push one structure, or choose another directory"
            )

    def _save(self, step, structure, leaves):
        self._trees.save(step, structure, leaves)
        self._remember(step, leaves)
        self._trees.keep_newest(self._keep)
        self._drop_evicted()

    def _remember(self, step, leaves):
        self._cache.pop(step, None)
        self._cache[step] = leaves
        while sum(leaf.nbytes for held in self._cache.values() for leaf in held) > _CACHE_BYTES:
            del self._cache[min(self._cache)]

    def _read(self, step):
        """Leaves of a member, or None with a warning if it is damaged."""
        if step not in self._cache:
            saved = self._trees.load_or_skip(step, self._structure)
            if saved is None:
                return None
            if self._structure is None:
                self._structure = saved.structure
                self._treedef = jax.tree.structure(
                    tree_structure.rebuild(saved.structure, saved.leaves)
                )
            self._remember(step, saved.leaves)
            return saved.leaves
        return self._cache[step]
