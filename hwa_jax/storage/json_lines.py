"""Logs of one JSON object per line: appended to, and read back past a torn last line."""

import json
import os

from hwa_jax.errors import UserError
from hwa_jax.storage import atomic


def append_json_lines(path, rows):
    """Appends ``rows`` to the file ``path``, one JSON value a line; durable when it returns.

    A last line torn by a killed append is cut off first.

    Args:
        path: str or path-like; created when it does not exist.
        rows: iterable of values that JSON knows.

    Raises:
        UserError: the disk is full or the path cannot be written.
        TypeError: a row holds something that JSON does not know; nothing is written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     append_json_lines(f"{directory}/metrics.jsonl", [{"step": 1}])
        ...     append_json_lines(f"{directory}/metrics.jsonl", [{"step": 2}])
        ...     read_json_lines(f"{directory}/metrics.jsonl")
        [{'step': 1}, {'step': 2}]
    """
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with atomic.explain_write_errors(path, len(text)), open(path, "a+b") as file:
        file.truncate(_complete_size(file))
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path):
    """The rows of the file ``path``, without a torn last line; none if it does not exist.

    Returns:
        list of the decoded values, in the order of the file.

    Raises:
        UserError: a line before the last one is not JSON; names the file and the line.

    Example:
        >>> read_json_lines("a/file/that/is/not/there")
        []
    """
    if not os.path.exists(path):
        return []
    with open(path, "rb") as file:
        size = _complete_size(file)
        file.seek(0)
        lines = file.read(size).split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(
                    f"{path}: line {number} is not JSON: remove the line, or the file"
                ) from error
    return rows


def rewrite_json_lines(path, rows):
    """Replaces the file ``path`` by ``rows``, whole or not at all; as ``atomic.write_bytes``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     rewrite_json_lines(f"{directory}/metrics.jsonl", [{"step": 1}])
        ...     read_json_lines(f"{directory}/metrics.jsonl")
        [{'step': 1}]
    """
    atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _complete_size(file):
    """Bytes of the open binary ``file`` up to and including its last newline."""
    size = file.seek(0, os.SEEK_END)
    while size > 0:
        start = max(0, size - 65536)
        file.seek(start)
        newline = file.read(size - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0
