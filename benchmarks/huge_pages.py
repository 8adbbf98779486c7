"""Row "huge_pages": a training step in a process whose memory comes in huge pages, and stays, over one with glibc's defaults."""

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

import timing

TITLE = "Huge pages: time of a step with glibc's settings below over its defaults"
SETTINGS = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
NOTE = (
    "XLA's CPU client takes the memory of every step anew, and the kernel fills it page by page. Environment of the first side: "
    + " ".join(f"{name}={value}" for name, value in SETTINGS.items())
    + ". Two processes in turns; the step is that of the first table. They help where transparent huge pages are \"always\" or \"madvise\"."
)
STEPS = {"cnn_s": 20, "resnet20": 1}  # a turn


def cells(options: Any) -> list[dict[str, Any]]:
    """One per network."""
    return [{"row": "huge_pages", "model": model, "num_particles": 4} for model in options.models if model in STEPS]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields the ratio."""
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        raise timing.NotRun("for CPUs and glibc alone")
    defaults = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    with contextlib.ExitStack() as stack:
        sides = [stack.enter_context(_serving(cell, environment)) for environment in ({**defaults, **SETTINGS}, defaults)]
        rounds = [[_seconds(side) for side in sides] for _ in range(1 + repeats)][1:]
    ratio = timing.summary(*zip(*rounds))
    yield {"ratios": {"settings / defaults": ratio}, "figures": {
        "step with the settings, ms": 1e3 * ratio["ours_seconds"] / STEPS[cell["model"]],
        "step with the defaults, ms": 1e3 * ratio["other_seconds"] / STEPS[cell["model"]],
    }}


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
