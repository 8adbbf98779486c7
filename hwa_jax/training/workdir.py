"""The work directory of a run: what lies where, and whose it is. Of several processes, process 0 alone reads and writes it.

    config.json        the configuration
    environment.json   versions, hardware and topology of the newest start
    checkpoints/       training checkpoints (Orbax)
    window/            the outer weights of the window (Orbax)
    metrics.jsonl      one row per log, push and evaluation; "inner" weights are those of one step before,
                       since at a synchronization the replicas have just been made equal
    tensorboard/       the same as event files
    results.json       written last: a run of so many steps is finished
    hwa.safetensors    the HWA weights with their BatchNorm statistics

What a pruning writes is in `hwa_jax.algorithms.pruning_run`.
"""

import fcntl
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from hwa_jax.errors import UserError
from hwa_jax.storage import atomic
from hwa_jax.training import processes
from hwa_jax.training.config import MAY_CHANGE_ON_RESUME, differences
from hwa_jax.training.environment import environment

_logger = logging.getLogger(__name__)


class Workdir:
    """A directory that one run owns while it is open.

    Args:
        directory: created when missing.
        config: of the run. A directory of another configuration is refused, except for fields
            that may change on resume (`config.MAY_CHANGE_ON_RESUME`).
        fingerprint: of the data; a change of data is refused.
        overwrite: delete what is there.
        may_change: fields of the configuration that may differ from the stored ones.

    Raises:
        UserError: another configuration or other data (the differences are shown), a directory that
            holds something else, or another run that is using it; or, of several processes, one that was
            started with another configuration or other data than process 0.

    Example:
        >>> import tempfile
        >>> from hwa_jax.training.config import default_config
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with Workdir(f"{parent}/run", default_config(), "abc") as workdir:
        ...         workdir.record()
        ...         sorted(path.name for path in workdir.path.iterdir())
        ['.lock', 'config.json', 'environment.json']
    """

    def __init__(
        self, directory: str | os.PathLike, config: ConfigDict, fingerprint: str, *, overwrite: bool = False,
        may_change: Sequence[str] = MAY_CHANGE_ON_RESUME,
    ):
        self.path = pathlib.Path(directory)
        self._may_change = may_change
        self._record = {"config": config.to_dict(), "data_fingerprint": fingerprint}
        self._require_equal_processes(config, fingerprint)
        self._lock = processes.on_leader(lambda: self._take(config, fingerprint, overwrite))

    def record(self) -> None:
        """Writes configuration and environment, on process 0 only: from now on the directory is this run's."""
        atomic.write_json(self.path / "config.json", self._record)
        self._record_environment()

    def results(self, *fields: str) -> dict[str, Any] | None:
        """What a finished run wrote; None if it is not finished.

        Args:
            fields: that it must have, dotted: "config.seed", for example.

        Raises:
            UserError: a file that is damaged.
        """
        return processes.from_leader(lambda: self._read_results(fields))

    def _read_results(self, fields):
        path = self.path / "results.json"
        found = read_json(path)
        for field in fields if found is not None else ():
            node = found
            for name in field.split("."):
                if not isinstance(node, dict) or name not in node:
                    raise UserError(f"{path}: lacks {field!r}: restore it; or delete it, and the same command writes it anew")
                node = node[name]
        return found

    def write_results(self, results: dict[str, Any]) -> None:
        """Marks the run as finished; on process 0 only."""
        atomic.write_json(self.path / "results.json", results)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _require_equal_processes(self, config, fingerprint):
        """Processes that train different things would wait for each other for ever."""
        leading = processes.from_leader(lambda: self._record)
        # Every host has its own place for the data.
        changed = [d for d in differences(leading["config"], config) if d[0] != "data.data_dir"]
        changed += [("data", leading["data_fingerprint"][:12], fingerprint[:12])] * (leading["data_fingerprint"] != fingerprint)
        if changed:
            text = "; ".join(f"{field} is {old!r} there, {new!r} here" for field, old, new in changed)
            raise UserError(f"process {jax.process_index()} was started otherwise than process 0: {text}. Start all with the same flags")

    def _take(self, config, fingerprint, overwrite):
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give a directory as --workdir")
        if not overwrite:
            self._require_mine(config, fingerprint)
        lock = self._acquire()
        if overwrite:
            self._clear()
        return lock

    def _require_mine(self, config, fingerprint):
        stored = read_json(self.path / "config.json")
        if stored is None:
            if self.path.is_dir() and any(not p.name.startswith(".") for p in self.path.iterdir()):
                raise UserError(f"{self.path} holds files but no config.json: give an empty --workdir, or --overwrite to delete them")
            return
        if not isinstance(stored, dict) or set(stored) != set(self._record):
            raise UserError(f"{self.path}/config.json is not of a training: give another --workdir, or --overwrite to delete this one")
        changed = [d for d in differences(stored["config"], config) if d[0] not in self._may_change]
        if changed:
            text = "; ".join(f"{field} was {old!r}, now {new!r}" for field, old, new in changed)
            raise UserError(f"{self.path} belongs to another configuration: {text}. Choose another --workdir, or --overwrite to delete it")
        if stored["data_fingerprint"] != fingerprint:
            raise UserError(f"{self.path}: the run was made with other data (fingerprint {stored['data_fingerprint'][:12]}, "
                            f"now {fingerprint[:12]}): restore the data, or choose another --workdir")

    def _acquire(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise UserError(f"{self.path}: cannot write there ({error.strerror}): give another --workdir") from error
        try:
            # The kernel drops the lock with the process, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise UserError(f"{self.path}: another process is using it: wait for it, or choose another --workdir") from error
        return lock

    def _clear(self):
        for path in self.path.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _record_environment(self):
        before, now = read_json(self.path / "environment.json"), environment()
        # What an earlier version did not record has not changed.
        changed = sorted(key for key in before or {} if before[key] != now.get(key))
        if changed:
            _logger.warning("resuming under another %s: bit-equality with an uninterrupted run is not promised", ", ".join(changed))
        atomic.write_json(self.path / "environment.json", now)


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file, None if there is no file.

    Raises:
        UserError: not JSON, or a file that cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: restore it, or start over with --overwrite") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give another --workdir, or start over with --overwrite") from error
