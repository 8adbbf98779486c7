"""Row "compile_time": compiling the step of eight particles over that of one."""

from collections.abc import Iterator
from typing import Any

import jax

import timing
from jax_step import Program

TITLE = "Compile time: N = 8 over N = 1"
NOTE = "Tracing, lowering and compiling of a training step, the caches cleared before each; in turns."


def cells(options: Any) -> list[dict[str, Any]]:
    """One."""
    return [{"row": "compile_time", "model": "wrn-16-1"}]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields the ratio; at most three rounds."""
    many, one = [], []
    for _ in range(min(repeats, 3)):
        for num_particles, taken in ((8, many), (1, one)):
            jax.clear_caches()
            taken.append(Program(cell["model"], num_particles).compile_seconds)
        ratio = timing.summary(many, one)
        yield {"ratios": {"N = 8 / N = 1": ratio}, "figures": {
            "N = 8, s": ratio["ours_seconds"], "N = 1, s": ratio["other_seconds"],
        }}
