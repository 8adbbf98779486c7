"""Checkpoints and the window of a run of several processes: process 0 stores, the others send and hear.

An array that lies over several processes is gathered to process 0 leaf by leaf, so a checkpoint costs the
network one copy of all replicas, every device the memory of its largest leaf [K, ...], and process 0 the host
memory of all replicas. A restore sends them back the same way. A push costs no network at all, since outer
weights are whole on every device; a mean of the window is sent once.
"""

import os
from typing import Any

from hwa_jax.storage.checkpoint import CheckpointStore, Restored
from hwa_jax.storage.window_store import WindowStore
from hwa_jax.training import processes


class SharedCheckpoints:
    """A `CheckpointStore` that all processes use in the same order.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     checkpoints = SharedCheckpoints(directory, keep=1)
        ...     checkpoints.save(3, {"w": np.ones(2)}, {"seconds": {}})
        ...     checkpoints.restore(like={"w": np.zeros(2)})
        Restored(step=3, tree={'w': array([1., 1.])}, metadata={'seconds': {}})
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int):
        self._store = processes.on_leader(lambda: CheckpointStore(directory, keep=keep))

    @property
    def steps(self) -> list[int]:
        """As `CheckpointStore.steps`."""
        return processes.from_leader(lambda: self._store.steps)

    def save(self, step: int, tree: Any, metadata: Any) -> None:
        """As `CheckpointStore.save`; durable when it returns on process 0."""
        tree = processes.to_leader(tree)
        processes.on_leader(lambda: self._store.save(step, tree, metadata))

    def restore(self, like: Any) -> Restored | None:
        """As `CheckpointStore.restore`, of the newest whole one; `like` is a tree, or makes one from the metadata."""
        restored = processes.on_leader(lambda: self._store.restore(like=like))
        found = processes.from_leader(lambda: restored and [restored.step, restored.metadata])
        if found is None:
            return None
        step, metadata = found
        like = like(metadata) if callable(like) else like
        return Restored(step, processes.share(restored and restored.tree, like), metadata)

    def truncate(self, after: int) -> None:
        """As `CheckpointStore.truncate`."""
        processes.on_leader(lambda: self._store.truncate(after))


class SharedWindow:
    """A `WindowStore` that all processes use in the same order.

    Args:
        directory, size, keep: as of `WindowStore`.
        like: a member's structure, shapes and dtypes; members of another one are refused.

    Raises:
        UserError: as `WindowStore.require_like`.
    """

    def __init__(self, directory: str | os.PathLike, size: int, *, keep: int, like: Any):
        self._like = like
        self._store = processes.on_leader(lambda: WindowStore(directory, size, keep=keep))
        processes.on_leader(lambda: self._store.require_like(like))

    @property
    def steps(self) -> list[int]:
        """As `WindowStore.steps`."""
        return processes.from_leader(lambda: self._store.steps)

    @property
    def stored_steps(self) -> list[int]:
        """As `WindowStore.stored_steps`."""
        return processes.from_leader(lambda: self._store.stored_steps)

    def push(self, step: int, tree: Any) -> None:
        """As `WindowStore.push`; the leaves are whole on every device. Only process 0 can fail."""
        if processes.is_leader():
            self._store.push(step, tree)

    def mean(self, size: int | None = None, *, upto: int) -> Any:
        """As `WindowStore.mean`."""
        return processes.share(processes.on_leader(lambda: self._store.mean(size, upto=upto)), self._like)

    def member(self, step: int) -> Any:
        """As `WindowStore.member`."""
        return processes.share(processes.on_leader(lambda: self._store.member(step)), self._like)

    def truncate(self, after: int) -> None:
        """As `WindowStore.truncate`."""
        processes.on_leader(lambda: self._store.truncate(after))

    def wait(self) -> None:
        """As `WindowStore.wait`."""
        processes.on_leader(lambda: self._store.wait())

    def __enter__(self) -> "SharedWindow":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        # The others may not come here, if it is an error that ends this process.
        if processes.is_leader():
            self._store.close()
