"""Programs of experiments/ run inside the test's process, through the same flags and the same end."""

import contextlib
import io
import logging
import os
import pathlib
import runpy
import sys
from typing import NamedTuple

from absl import app, flags
from absl import logging as absl_logging

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Far beyond what a busy machine needs; a test that waits so long for a process has failed.
SECONDS = 400


def process_environment(devices, compiled):
    """Variables of a process with so many fake devices that keeps its compiled programs in a directory."""
    return {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(ROOT),
    }


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    stdout: str
    stderr: str


def call(program, *arguments):
    """Runs experiments/PROGRAM with these arguments; flags, log handlers and argv are as before afterwards.

    An exception that the program does not turn into an exit passes.
    """
    app.define_help_flags()
    known, argv, verbosity = set(flags.FLAGS), sys.argv, absl_logging.get_verbosity()
    handlers = {logger: list(logger.handlers) for logger in map(logging.getLogger, ("hwa_jax", None))}
    sys.argv = [str(ROOT / "experiments" / program), *map(str, arguments)]
    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            runpy.run_path(sys.argv[0], run_name="__main__")
        raise AssertionError(f"{program} did not exit")
    except SystemExit as ended:
        return Ended(ended.code or 0, stdout.getvalue(), stderr.getvalue())
    finally:
        absl_logging.set_verbosity(verbosity)
        for logger, before in handlers.items():
            logger.handlers[:] = before
        sys.modules.pop("config_config", None)  # where config_flags loads every configuration file
        for name in set(flags.FLAGS) - known:
            # Flags of libraries that were imported on the way stay, as the libraries do.
            module = flags.FLAGS.find_module_defining_flag(name)
            if name.startswith("config.") or module == "hwa_jax.training.program" or module not in sys.modules:
                delattr(flags.FLAGS, name)
        sys.argv = argv


def config_file(directory, module):
    """A configuration file in `directory` whose get_config is `tiny` of a module of tests/."""
    file = pathlib.Path(directory) / "config.py"
    file.write_text(f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom {module} import tiny as get_config\n")
    return file
