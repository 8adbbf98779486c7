"""A finished cycle of pruning on the disk, whole or absent: its mask, what was averaged, and its figures.

Of several processes process 0 alone reads and writes; what it has read, all are given.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from hwa_jax import masks
from hwa_jax.errors import UserError
from hwa_jax.storage import atomic, checksum
from hwa_jax.storage.sparse_weights import load_sparse_weights, save_sparse_weights
from hwa_jax.training import processes
from hwa_jax.training.weights import Weights
from hwa_jax.training.workdir import read_json


class Solution(NamedTuple):
    """What a finished cycle found.

    Attributes:
        weights: by whose magnitudes the mask is pruned; NumPy arrays, exactly zero where the mask is False.
        metrics: what metrics.json says.
    """

    weights: Weights
    metrics: dict[str, Any]


def cycle_directory(directory: pathlib.Path, number: int) -> pathlib.Path:
    """Where a work directory holds a finished cycle.

    Example:
        >>> cycle_directory(pathlib.Path("run"), 3).as_posix()
        'run/cycles/003'
    """
    return directory / "cycles" / f"{number:03d}"


def read_metrics(directory: pathlib.Path) -> dict[str, Any] | None:
    """The figures of the cycle in `directory`; None if it is not finished.

    Raises:
        UserError: metrics.json is damaged.
    """

    def read():
        with _naming_the_way_out(directory):
            file = directory / "metrics.json"
            metrics = read_json(file)
            if not isinstance(metrics, dict | None):
                raise UserError(f"{file}: is damaged (holds no JSON object); restore it")
            # An earlier version stored none.
            expected = metrics and metrics.pop("checksum", None)
            if expected is not None and expected != checksum.of_json(metrics):
                raise UserError(f"{file}: is damaged (the checksum differs); restore it")
        return metrics

    return processes.from_leader(read)


def read_cycle(directory: pathlib.Path, mask: Any) -> Solution | None:
    """What a cycle found; None if it is not finished.

    Args:
        directory: of the cycle.
        mask: under which it must have been trained.

    Raises:
        UserError: it was trained under another mask, or a file is damaged.
    """
    metrics = read_metrics(directory)
    if metrics is None:
        return None

    def read():
        with _naming_the_way_out(directory):
            params, batch_stats, stored_mask = load_sparse_weights(directory / f"{metrics['solution']}.safetensors")
            masks.check_equal(mask, stored_mask)
        return Weights(params, batch_stats)

    weights = processes.on_leader(read)
    # Others cannot know the dtypes: recalibrated statistics are float32, whatever the network computes in.
    found = processes.from_leader(lambda: jax.tree.map(lambda leaf: [leaf.shape, leaf.dtype.name], tuple(weights)))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(*leaf), Weights(*found), is_leaf=lambda node: isinstance(node, list))
    return Solution(processes.share(weights, like), metrics)


def write_cycle(
    directory: pathlib.Path, weights: Mapping[str, Weights], mask: Any, metrics: dict[str, Any], about: dict[str, Any]
) -> None:
    """Writes a cycle; on process 0 only.

    Args:
        directory: of the cycle; is there afterwards, or nothing of it.
        weights: "average", and "particle_0" ... where these are not the average itself; NumPy arrays.
        mask: under which it was trained.
        metrics: for metrics.json.
        about: what each file of weights says, beside its name.

    Raises:
        UserError: the disk is full.
    """
    aside = directory.parent / f".{directory.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, these in weights.items():
        save_sparse_weights(aside / f"{name}.safetensors", *these, mask, {"weights": name, **about})
    # Which weights the next mask is made of hangs on one digit of it.
    atomic.write_json(aside / "metrics.json", {**metrics, "checksum": checksum.of_json(metrics)})
    # A cycle that has lost its metrics.json was trained again.
    atomic.remove_directory(directory)
    atomic.commit_directory(aside, directory)


@contextlib.contextmanager
def _naming_the_way_out(directory: pathlib.Path) -> Iterator[None]:
    """Adds to a damage of a finished cycle what may be done about it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; or delete {directory}, and the training makes it again") from error
