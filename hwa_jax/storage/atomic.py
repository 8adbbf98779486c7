"""Files and directories that are complete or absent, whatever moment the process dies at.

Everything is written aside in the same directory, synchronized to the disk and
renamed; a rename within one directory is atomic on POSIX file systems. A leftover
of a killed write has a name that starts with a dot and is replaced by the next
write. One process at a time writes a given path.
"""

import contextlib
import errno
import json
import os
import shutil

from hwa_jax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT)


def write_bytes(path, data):
    """Replaces the file ``path`` by ``data``; durable when it returns.

    Args:
        path: str or path-like; its directory must exist.
        data: bytes.

    Raises:
        UserError: the disk is full or the path cannot be written; the old file is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_bytes(f"{directory}/a", b"12")
        ...     open(f"{directory}/a", "rb").read()
        b'12'
    """
    path = os.path.abspath(path)
    directory, name = os.path.split(path)
    aside = os.path.join(directory, f".{name}.tmp")
    try:
        with explain_write_errors(path, len(data)):
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            sync_directory(directory)
    finally:
        if os.path.lexists(aside):
            os.remove(aside)


def write_text(path, text):
    """Replaces the file ``path`` by ``text`` in UTF-8; as ``write_bytes``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_text(f"{directory}/a", "HWA")
        ...     open(f"{directory}/a").read()
        'HWA'
    """
    write_bytes(path, text.encode())


def write_json(path, value):
    """Replaces the file ``path`` by ``value`` as indented JSON; as ``write_bytes``.

    Raises:
        TypeError: ``value`` holds something that JSON does not know; the old file is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     write_json(f"{directory}/a", {"accuracy": 0.5})
        ...     json.load(open(f"{directory}/a"))
        {'accuracy': 0.5}
    """
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def explain_write_errors(path, num_bytes):
    """Turns a full disk, or a path that cannot be written, into one clear line.

    Args:
        path: what is written inside the ``with`` block.
        num_bytes: about how many bytes that takes.

    Raises:
        UserError: names the path, and the bytes needed and free if the disk is full. Any other
            exception passes.

    Example:
        >>> with explain_write_errors("/a/b", 12):
        ...     raise OSError(errno.EACCES, "Permission denied")
        Traceback (most recent call last):
        ...
        hwa_jax.errors.UserError: /a/b: cannot be written (Permission denied): choose a path that can
    """
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        # TensorStore reports a full disk in words only.
        if code in _FULL or "No space left on device" in str(error):
            raise UserError(
                f"{path}: the disk is full, {num_bytes:,} bytes are needed and"
                f" {free_bytes(path):,} are free: free some space and run it again"
            ) from error
        if code in _REFUSED:
            raise UserError(
                f"{path}: cannot be written ({os.strerror(code)}): choose a path that can"
            ) from error
        raise


def free_bytes(path):
    """Bytes free for this user on the file system that holds ``path``, or would hold it.

    Example:
        >>> free_bytes("/a/path/yet/to/be/made") > 0
        True
    """
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def sync_directory(path):
    """Makes the names in the directory ``path`` durable: creations, renames, removals.

    Example:
        >>> sync_directory(".")
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit_directory(aside, path):
    """Renames the finished directory ``aside`` to its sibling ``path``; durable when it returns.

    Args:
        aside: directory whose files are written and closed; every one is synchronized first.
        path: a name that does not exist yet, in the same directory.

    Raises:
        OSError: ``path`` exists and is not an empty directory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     os.mkdir(f"{directory}/.aside")
        ...     commit_directory(f"{directory}/.aside", f"{directory}/done")
        ...     os.listdir(directory)
        ['done']
    """
    for directory, _, names in os.walk(aside):
        for name in names:
            with open(os.path.join(directory, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(directory)
    os.rename(aside, path)
    sync_directory(os.path.dirname(os.path.abspath(path)))


def remove_directory(path):
    """Removes a directory, if it is there: first its name, in one step, then what it holds.

    A removal that is killed leaves the whole directory, or a leftover whose name starts
    with a dot.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     os.mkdir(f"{directory}/old")
        ...     remove_directory(f"{directory}/old")
        ...     os.listdir(directory)
        []
    """
    if not os.path.isdir(path):
        return
    parent, name = os.path.split(os.path.abspath(path))
    aside = os.path.join(parent, f".removed-{name}")
    if os.path.isdir(aside):
        shutil.rmtree(aside)
    os.rename(path, aside)
    sync_directory(parent)
    shutil.rmtree(aside)
