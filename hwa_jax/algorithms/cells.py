"""Many trainings, one JSON file of figures each: a finished one is not made again."""

import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from hwa_jax.storage import atomic
from hwa_jax.training.workdir import read_json

_logger = logging.getLogger(__name__)


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
    (directory / "cells").mkdir(parents=True, exist_ok=True)
    found = []
    for number, (name, make) in enumerate(planned.items(), 1):
        path = directory / "cells" / f"{name}.json"
        if read_json(path) is None:
            _logger.info("training %d of %d: %s", number, len(planned), name)
            atomic.write_json(path, make(directory / "scratch" / name))
            # Only now: what a kill leaves is either the training or its figures.
            shutil.rmtree(directory / "scratch", ignore_errors=True)
        found.append(read_json(path))
    return found
