"""What the programs in experiments/ share: one clear line for bad input, and a compilation cache."""

import logging
import os
import pathlib
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from hwa_jax.errors import UserError
from hwa_jax.training import processes
from hwa_jax.training.interruption import Interrupted

INTERRUPTED = 143  # what a shell reports for SIGTERM


def run(main: Callable[..., int | None], commands: Sequence[str] = (), *, several_processes: bool = False) -> None:
    """Parses the flags, runs `main` and exits.

    Bad flags, an unknown field of the configuration or a value of the wrong type, and every `UserError`
    end as one line `error: ...` on stderr with exit code 2. Other exceptions keep their traceback.

    Args:
        main: takes nothing, returns an exit code; None means 0.
        commands: words of which one may stand before or among the flags; `main` then takes it, None
            where there is none.
        several_processes: whether it has flags to run as one of several. They end together, with the
            line of the first that failed.
    """
    if several_processes:
        _define_process_flags()

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
            # A configuration file that does not load is noticed at its first use only.
            if "config" in flags.FLAGS and flags.FLAGS.config is not None:
                flags.FLAGS.config.keys()
            return rest
        except (flags.Error, UserError) as error:
            # What a configuration file raises may come as a flag's error, with its traceback.
            before, trace, after = str(error).partition("Traceback (most recent call last):")
            _fail(before + after.strip().splitlines()[-1] if trace else error)
        except BrokenPipeError:  # --help into a pager that was closed
            sys.exit(0)
        except (LookupError, NameError, AttributeError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
            _fail(_explain(error))

    def guarded(argv):
        command = argv[1] if argv[1:2] and argv[1] in commands else None
        unexpected = argv[1:] if command is None else argv[2:]
        if unexpected:
            known = f", and the commands are: {', '.join(commands)}" if commands else ""
            _fail(f"unexpected arguments: {' '.join(unexpected)}; flags begin with --{known}")
        try:
            _log_plainly()
            if several_processes and not _join():
                # Process 0 says what all of them see.
                logging.getLogger("hwa_jax").setLevel(logging.ERROR)
            return main(command) if commands else main()
        except UserError as error:
            _fail(error)
        except Interrupted:
            print("stopped by a signal: the same command continues", file=sys.stderr)
            return INTERRUPTED
        except (Exception, KeyboardInterrupt) as error:
            if processes.are_several():
                processes.explain_lost(error, flags.FLAGS.peer_timeout)
                traceback.print_exc()
                processes.end_all(_one_line(f"{type(error).__name__}: {error}"), 1)
            raise

    app.run(guarded, flags_parser=parse)


def run_study(
    study: Callable[..., Sequence[Mapping]], report: Callable[[ConfigDict, pathlib.Path, Sequence[Mapping], dict[str, Any]], tuple[pathlib.Path, str]]
) -> None:
    """`run` for a program of many trainings: has the flags --config, --workdir and --overwrite, prints a table and where the report is.

    Args:
        study: (configuration, directory, `overwrite`) -> cells, trains what is missing.
        report: (configuration, directory, cells, what every report says of its origin) -> the report's path, and a table to print.
    """
    config = config_flags.DEFINE_config_file("config", None, "configuration file, see configs/")
    workdir = flags.DEFINE_string("workdir", None, "directory for figures, tables and plots")
    overwrite = flags.DEFINE_bool("overwrite", False, "start over, deleting what --workdir holds")
    flags.mark_flags_as_required(["config", "workdir"])
    for flag in (config, workdir, overwrite):
        # --help shows those of the main module only.
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])

    def main():
        directory = pathlib.Path(workdir.value)
        enable_compilation_cache(f"{directory}.compiled")
        cells = study(config.value, directory, overwrite=overwrite.value)
        path, table = report(config.value, directory, cells, {"description": config.value.description, "command": command_line()})
        print(f"{table}\n\nreport with plots: {path}")

    run(main)


def require_writable(path: str | os.PathLike, *, overwrite: bool) -> None:
    """Checks before the work that a file can be written there after it.

    Raises:
        UserError: it exists and may not be replaced, or no directory can be made for it; names `--output`.
    """
    path = pathlib.Path(path).absolute()
    if path.is_dir() or (path.exists() and not overwrite):
        raise UserError(f"--output={path}: exists: give another file" + ("" if path.is_dir() else ", or --overwrite to replace it"))
    nearest = _nearest_parent(path)
    if not _can_write(nearest):
        raise UserError(f"--output={path}: {nearest} is not a directory that can be written to: give another file")


def require_directory(path: str | os.PathLike) -> None:
    """Checks before the work that files can be written into a directory after it.

    Raises:
        UserError: it is a file, or no directory can be made there; names `--output`.
    """
    path = pathlib.Path(path).absolute()
    nearest = path if path.exists() else _nearest_parent(path)
    if not _can_write(nearest):
        raise UserError(f"--output={path}: {nearest} is not a directory that can be written to: give another directory")


def enable_compilation_cache(directory: str | os.PathLike) -> None:
    """Keeps compiled programs in `directory`, so that the next start need not compile them again.

    JAX_COMPILATION_CACHE_DIR wins where it is set. Where no directory can be made nothing is kept.
    """
    import jax

    directory = pathlib.Path(directory).absolute()
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR") and _can_write(_nearest_parent(directory)):
        jax.config.update("jax_compilation_cache_dir", str(directory))
    # The small programs too: a training has dozens of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def command_line() -> str:
    """The command of this process, for a report: how to make it again."""
    return shlex.join(["python", *sys.argv])


def _nearest_parent(path):
    return next(parent for parent in path.parents if parent.exists())


def _can_write(directory):
    return directory.is_dir() and os.access(directory, os.W_OK)


def _define_process_flags():
    flags.DEFINE_string("coordinator", None, "host:port of process 0, to run as one of several processes")
    flags.DEFINE_integer("num_processes", None, "how many processes there are", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "which of them this is, from 0", lower_bound=0)
    flags.DEFINE_integer("peer_timeout", 20, "seconds of silence after which another process is lost, and this one ends", lower_bound=5)
    flags.DEFINE_bool("distributed", False, "run as one of the processes that Slurm, Open MPI, Kubernetes or a TPU pod started")


def _join():
    """Joins the other processes where the flags say so; returns whether this one leads."""
    names = ("coordinator", "num_processes", "process_id")
    coordinator, num_processes, process_id = values = [flags.FLAGS[name].value for name in names]
    missing = [name for name, value in zip(names, values) if value is None]
    if len(missing) == len(names):
        if not flags.FLAGS.distributed:
            return True
    elif missing:
        raise UserError(f"--{missing[0]}: is missing: --coordinator, --num_processes and --process_id go together")
    elif process_id >= num_processes:
        raise UserError(f"--process_id={process_id}: of {num_processes} processes, give at most {num_processes - 1}")
    elif not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator={coordinator}: give host:port, the port as a number")
    processes.join(coordinator, num_processes, process_id, peer_timeout=flags.FLAGS.peer_timeout)
    return processes.is_leader()


def _log_plainly():
    """Our own messages as lines on stderr; of the libraries only warnings, unless --verbosity asks for more."""
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    logger = logging.getLogger("hwa_jax")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _explain(error):
    """What ml_collections, or a configuration file, raises about an override or about the file."""
    # Quoted once for every layer it came through.
    text = str(error).replace("\\n", "\n").replace("\\", "")
    close = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    if close:
        return f"the configuration has no field {close[2]!r}: did you mean {close[1]!r}?"
    name = text.strip("\"'")
    if name.isidentifier():
        return f"the configuration has no field {name!r}: hwa_jax/training/config.py lists all"
    reason = text.rpartition("[Errno ")[2].partition("] ")[2] or text
    return f"--config: the file does not load ({type(error).__name__}: {reason}): correct it, or give another; see configs/"


def _fail(error):
    line = _one_line(error)
    print(f"error: {line}", file=sys.stderr)
    if processes.are_several():
        processes.end_all(line, 2)
    sys.exit(2)


def _one_line(error):
    return " ".join(str(error).split())
