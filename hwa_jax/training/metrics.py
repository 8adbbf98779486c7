"""The run's log: metrics.jsonl, TensorBoard event files, and a progress bar."""

import os
import pathlib
from typing import Any

from tqdm import tqdm

from hwa_jax.storage import json_lines


class MetricsWriter:
    """Rows of a run, appended to `metrics.jsonl` and TensorBoard.

    A row is a dictionary with "step" and "kind" ("train", "push", "evaluation", "restart", "change", "drop"), names of other
    things as strings, and numbers.

    Args:
        directory: the work directory.
        first: rows of later steps, left by a run that was interrupted, are dropped.
        tensorboard: whether to write event files too.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     writer = MetricsWriter(directory, first=0, tensorboard=False)
        ...     writer.write({"step": 1, "kind": "train", "loss": 0.5})
        ...     json_lines.read_json_lines(f"{directory}/metrics.jsonl")
        [{'step': 1, 'kind': 'train', 'loss': 0.5}]
    """

    def __init__(self, directory: str | os.PathLike, *, first: int, tensorboard: bool):
        self._path = pathlib.Path(directory) / "metrics.jsonl"
        rows = json_lines.read_json_lines(self._path)
        kept = [row for row in rows if row["step"] <= first]
        if len(kept) != len(rows):
            json_lines.rewrite_json_lines(self._path, kept)
        self._events = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(pathlib.Path(directory) / "tensorboard"), purge_step=first + 1)

    def write(self, *rows: dict[str, Any]) -> None:
        """Appends rows; durable when it returns."""
        json_lines.append_json_lines(self._path, rows)
        if self._events is None:
            return
        for row in rows:
            tags = [str(value) for name, value in row.items() if isinstance(value, str)]
            for name, value in row.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._events.add_scalar("/".join([*tags, name]), value, row["step"])

    def close(self) -> None:
        """Ends the event file."""
        if self._events is not None:
            self._events.close()


def progress_bar(total: int, first: int, description: str, *, shown: bool) -> tqdm:
    """A bar over steps with rate and remaining time; silent when stderr is not a terminal, or not `shown`."""
    return tqdm(total=total, initial=first, desc=description, unit="step", disable=None if shown else True, dynamic_ncols=True)
