"""Pytrees on disk, one directory per step, each checked when it is read.

    DIRECTORY/step_00000012.0/     see tree_directory.py

The number after the dot counts replacements: a new version of a step gets its own
directory before the old one goes, so there is no moment without either. A step is
written in a directory whose name starts with a dot, synchronized and renamed, and
renamed back to such a name before it is removed; so a listed step is a whole one, and
what a killed process leaves is recognized by its dot.

This takes the place of Orbax's ``CheckpointManager``, whose eviction is not atomic and which may
drop or skip a save without an error. One process writes at a time.
"""

import errno
import os
import re
import shutil

import numpy as np
from absl import logging

from hwa_jax.errors import UserError
from hwa_jax.storage import atomic, tree_directory, tree_structure

_NAME = re.compile(r"step_(\d{8,})\.(\d+)")
_LEFTOVER = re.compile(r"\.(saving|removed)-step_\d{8,}\.\d+")

# What tree.json and Orbax's own files may take beside the arrays, in bytes.
_OVERHEAD = 1 << 16


class SavedTrees:
    """The steps in one directory. Only writing changes the directory; opening and reading do not.

    Args:
        directory: str or path-like; the first save creates it.

    Attributes:
        damaged: set of steps known to be damaged; they are on the disk but not in ``steps``.

    Raises:
        UserError: ``directory`` is a file.
    """

    def __init__(self, directory):
        self.directory = os.path.abspath(directory)
        self.damaged = set()
        self._cleaned = False
        if os.path.exists(self.directory) and not os.path.isdir(self.directory):
            raise UserError(f"{self.directory}: is a file, not a directory: choose another path")

    @property
    def steps(self):
        """The steps that are stored and not known to be damaged, ascending."""
        return sorted(set(self._names()) - self.damaged)

    def save(self, step, structure, leaves, metadata=None):
        """Stores a tree under ``step``, in place of what is there; durable when it returns.

        Args:
            step: int, at least 0.
            structure: of the tree, by ``tree_structure.describe``.
            leaves: NumPy arrays in its order.
            metadata: anything that JSON knows.

        Raises:
            UserError: the disk is full or the directory cannot be written; what was stored stays.
        """
        revisions = self._names().get(step, [])
        name = f"step_{step:08d}.{_revision(revisions[-1]) + 1 if revisions else 0}"
        aside = os.path.join(self.directory, f".saving-{name}")
        needed = sum(leaf.nbytes for leaf in leaves) + _OVERHEAD
        try:
            with atomic.explain_write_errors(self.directory, needed):
                self._make_directory()
                self._clean()
                # Asked first, because Orbax logs a traceback per thread when the disk runs full.
                if atomic.free_bytes(self.directory) < needed:
                    raise OSError(errno.ENOSPC, "")
                tree_directory.write(aside, structure, leaves, metadata)
                atomic.commit_directory(aside, os.path.join(self.directory, name))
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self.damaged.discard(step)
        for old in revisions:
            atomic.remove_directory(os.path.join(self.directory, old))

    def load(self, step):
        """The tree stored under ``step``, checked against its checksums.

        Returns:
            ``tree_directory.SavedTree``: structure, leaves, metadata.

        Raises:
            UserError: the step is not there, or truncated, altered or incomplete; names its
                directory and what is wrong. A damaged step is in ``damaged`` afterwards.
        """
        names = self._names()
        if step not in names or step in self.damaged:
            there = ", ".join(map(str, sorted(set(names) - self.damaged))) or "none"
            raise UserError(f"{self.directory}: has no undamaged step {step}: it has {there}")
        path = os.path.join(self.directory, names[step][-1])
        try:
            return tree_directory.read(path)
        except MemoryError:
            raise
        # Whatever Orbax, TensorStore or JSON makes of altered bytes.
        except Exception as error:
            self.damaged.add(step)
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: is damaged ({reason}): delete this directory to go on without it"
            ) from error

    def load_or_skip(self, step, structure=None):
        """As ``load``, but a damaged step gives None and a warning of one line.

        Args:
            structure: None, or what the step is expected to have; another one counts as damage.
        """
        try:
            saved = self.load(step)
        except UserError as error:
            logging.warning("step %d is left out: %s", step, error)
            return None
        if structure is not None and tree_structure.first_difference(structure, saved.structure):
            path, expected, found = tree_structure.first_difference(structure, saved.structure)
            self.damaged.add(step)
            logging.warning(
                "step %d in %s is left out: %s is %s, but %s in newer steps",
                step, self.directory, path, found, expected,
            )  # fmt: skip
            return None
        return saved

    def keep_newest(self, count):
        """Removes, oldest first, every step older than the newest ``count`` undamaged ones."""
        kept = self.steps[-count:]
        for step in sorted(self._names()):
            if kept and step < kept[0]:
                self._remove(step)

    def truncate(self, after):
        """Removes, newest first, every step that is greater than ``after``."""
        self._clean()
        for step in sorted(self._names(), reverse=True):
            if step > after:
                self._remove(step)

    def _make_directory(self):
        if not os.path.isdir(self.directory):
            os.makedirs(self.directory)
            atomic.sync_directory(os.path.dirname(self.directory))

    def _names(self):
        """The directory names of each step, oldest revision first."""
        names = {}
        for name in os.listdir(self.directory) if os.path.isdir(self.directory) else ():
            if match := _NAME.fullmatch(name):
                names.setdefault(int(match[1]), []).append(name)
        return {step: sorted(found, key=_revision) for step, found in names.items()}

    def _remove(self, step):
        for name in self._names()[step]:
            atomic.remove_directory(os.path.join(self.directory, name))
        self.damaged.discard(step)

    def _clean(self):
        """Removes what a killed process left; only before writing, as a writer may be beside us."""
        if self._cleaned or not os.path.isdir(self.directory):
            return
        for name in os.listdir(self.directory):
            if _LEFTOVER.fullmatch(name):
                shutil.rmtree(os.path.join(self.directory, name))
        for revisions in self._names().values():
            for name in revisions[:-1]:
                atomic.remove_directory(os.path.join(self.directory, name))
        self._cleaned = True


def checked_integer(name, value, least):
    """``value`` as an int, at least ``least``; the error names it ``name``.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is too small.

    Example:
        >>> checked_integer("step", np.int64(3), least=0)
        3
    """
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}={value!r}: must be an integer")
    if value < least:
        raise ValueError(f"{name}={value}: must be at least {least}")
    return value.__index__()


def _revision(name):
    return int(_NAME.fullmatch(name)[2])
