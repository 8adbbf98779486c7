"""Studies: many trainings, one JSON file of figures each; a finished one is not made again."""

import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from hwa_jax.storage import atomic
from hwa_jax.training.workdir import Workdir, read_json

_logger = logging.getLogger(__name__)


def new_study(title: str, **bases: ConfigDict) -> ConfigDict:
    """The fields that every study has: title, description, and the configurations of its trainings, which log no TensorBoard files.

    Args:
        title: of its report.
        **bases: field of the study -> configuration of a training.

    Returns:
        The configuration, not locked.

    Example:
        >>> from hwa_jax.training.config import default_config
        >>> new_study("Sweep", base=default_config()).base.logging.tensorboard
        False
    """
    config = ConfigDict({"title": title, "description": "", **bases})
    for name in bases:
        config[name].unlock().logging.tensorboard = False
    return config


def finish_study(
    config: ConfigDict, directory: str | pathlib.Path, planned: Mapping[str, Callable[[pathlib.Path], Any]], *, may_change: Sequence[str],
    overwrite: bool = False,
) -> list[Any]:
    """`finish_cells` in a directory that belongs to this configuration.

    Args:
        config: of the study.
        directory: the work directory.
        planned: as there.
        may_change: fields that may differ from those of the call that began it.
        overwrite: start over.

    Raises:
        UserError: as `Workdir` and `finish_cells`.
    """
    with Workdir(directory, config, "", overwrite=overwrite, may_change=may_change) as workdir:
        workdir.record()
        return finish_cells(workdir.path, planned)


def finish_cells(directory: pathlib.Path, planned: Mapping[str, Callable[[pathlib.Path], Any]]) -> list[Any]:
    """Makes the figures that are missing, one after the other; the same call continues.

    Args:
        directory: `cells/NAME.json` are the figures, `scratch/` holds the training that is running.
        planned: name -> (a directory for its training, which is deleted afterwards) -> figures, ready for JSON.

    Returns:
        The figures in the order of `planned`, as the files have them.

    Raises:
        UserError: a file is damaged, or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     first = finish_cells(pathlib.Path(parent), {"a": lambda scratch: {"accuracy": 0.5}})
        ...     again = finish_cells(pathlib.Path(parent), {"a": lambda scratch: {"accuracy": 0.7}})
        >>> first, again
        ([{'accuracy': 0.5}], [{'accuracy': 0.5}])
    """
    finish_groups(directory, [[name] for name in planned], lambda names, scratch: [planned[name](scratch / name) for name in names])
    return [read_json(directory / "cells" / f"{name}.json") for name in planned]


def finish_groups(
    directory: pathlib.Path, groups: Sequence[Sequence[str]], make: Callable[[Sequence[str], pathlib.Path], Sequence[Any]]
) -> None:
    """`finish_cells`, where several cells are made together.

    Args:
        directory: as there.
        groups: names of cells.
        make: (names of a group whose cells are missing, a directory that is deleted afterwards) -> their figures.
    """
    (directory / "cells").mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(groups, 1):
        missing = {name: path for name in group if read_json(path := directory / "cells" / f"{name}.json") is None}
        if missing:
            _logger.info("training %d of %d: %s", number, len(groups), ", ".join(missing))
            for path, figures in zip(missing.values(), make(list(missing), directory / "scratch")):
                atomic.write_json(path, figures)
            # Only now: what a kill leaves is either the trainings or their figures.
            shutil.rmtree(directory / "scratch", ignore_errors=True)
