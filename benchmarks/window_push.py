"""Row "window_push": how long the training waits for a push to the window on disk, and what it costs beside it."""

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import timing
from hwa_jax.storage.window_store import WindowStore

TITLE = "Window push: time until it returns over one copy from device to host"
NOTE = (
    "Float32 weights in 20 leaves; the window keeps two members. The background is what the worker thread does after the push has "
    "returned."
)


def cells(options: Any) -> list[dict[str, Any]]:
    """One per number of weights."""
    return [{"row": "window_push", "num_weights": 10**exponent} for exponent in (5, 6, 7)]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields the ratio, then what happens in the background."""
    leaves = [jnp.full(cell["num_weights"] // 20, float(i)) for i in range(20)]
    pushes, copies, background, processor = [], [], [], []
    with tempfile.TemporaryDirectory() as directory, WindowStore(directory, size=2) as window:
        for step in range(repeats + 1):
            # On a CPU device the array's memory is the host's: only an explicit copy is one.
            copies.append(timing.seconds(lambda: [np.array(leaf) for leaf in leaves]))
            pushes.append(timing.seconds(lambda: window.push(step, leaves)))
            before = time.process_time()
            background.append(timing.seconds(window.wait))
            processor.append(time.process_time() - before)
    # The first push starts the thread and the directory.
    yield {"ratios": {"push / copy": timing.summary(pushes[1:], copies[1:])}}
    yield {"figures": {
        "push, ms": 1e3 * np.median(pushes[1:]), "background, ms": 1e3 * np.median(background[1:]),
        "processor time of the background, ms": 1e3 * np.median(processor[1:]),
    }}
