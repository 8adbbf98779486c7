"""Row "cpu_settings": a training step under settings of the environment over one without them."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

import timing


def _shell(environment):
    return "`" + " ".join(f"{name}={value}" for name, value in environment.items()) + "`"


TITLE = "Settings of a CPU: time of a step with them over the defaults"
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
SETTINGS = {"huge pages": HUGE_PAGES, "two devices": TWO_DEVICES, "both": HUGE_PAGES | TWO_DEVICES}
NOTE = (
    "The step is that of the first table, in a process for each setting; processes take turns. XLA's CPU client takes the memory of every step anew, and "
    f"huge pages, {_shell(HUGE_PAGES)}, have 512 times fewer page faults; they need glibc 2.35 and transparent huge pages on \"madvise\" or \"always\". "
    f"Two devices, {_shell(TWO_DEVICES)}, carry half of the particles each."
)
STEPS = {"cnn_s": 20, "resnet20": 1}  # a turn


def cells(options: Any) -> list[dict[str, Any]]:
    """One per network."""
    return [{"row": "cpu_settings", "model": model, "num_particles": 4} for model in options.models if model in STEPS]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields all ratios at once."""
    if jax.default_backend() != "cpu":
        raise timing.NotRun("for CPUs alone")
    names = {name for settings in SETTINGS.values() for name in settings}
    defaults = {name: value for name, value in os.environ.items() if name not in names}
    with contextlib.ExitStack() as stack:
        sides = {name: stack.enter_context(_serving(cell, defaults | settings)) for name, settings in {**SETTINGS, "": {}}.items()}
        turns = [{name: _seconds(side) for name, side in sides.items()} for _ in range(1 + repeats)][1:]
    ratios = {name: timing.summary([turn[name] for turn in turns], [turn[""] for turn in turns]) for name in SETTINGS}
    yield {"ratios": ratios, "figures": {"step with the defaults, ms": 1e3 * ratios["both"]["other_seconds"] / STEPS[cell["model"]]}}


@contextlib.contextmanager
def _serving(cell, environment):
    command = [sys.executable, __file__, cell["model"], str(cell["num_particles"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _seconds(process):
    time.sleep(timing.PAUSE_SECONDS)
    print("turn", file=process.stdin, flush=True)
    return float(process.stdout.readline())


def _serve(model, num_particles):
    """A turn for every line that is read; writes its seconds."""
    from jax_step import Program

    step = Program(model, num_particles)
    for _ in sys.stdin:
        start = time.perf_counter()
        step(STEPS[model])
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
