"""Row "mask_selection": the global magnitude threshold against NumPy's partition and PyTorch's pruning."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

import timing
from hwa_jax import masks

TITLE = "Mask selection: time of prune_by_magnitude over the other's"
NOTE = (
    "Normal float32 weights in 10 leaves on the host, 20 % removed. np.partition gets the magnitudes in one array, and finds the "
    "threshold alone; torch is torch.nn.utils.prune.global_unstructured. Memory is the rise of the resident set while it runs."
)
NUM_LEAVES, FRACTION = 10, 0.2


def cells(options: Any) -> list[dict[str, Any]]:
    """One per number of weights."""
    return [{"row": "mask_selection", "num_weights": 10**exponent} for exponent in (6, 7, 8)]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields the comparisons, each with the memory of its sides."""
    num_weights = cell["num_weights"]
    weights = np.random.default_rng(0).standard_normal(num_weights, np.float32).reshape(NUM_LEAVES, -1)
    params = {f"kernel{i}": leaf for i, leaf in enumerate(weights)}
    # Where masks lie in a training, beside the weights that were read from disk or averaged.
    mask = {name: jnp.ones(leaf.shape, bool) for name, leaf in params.items()}
    magnitudes = np.abs(weights).reshape(-1)

    def ours():
        masks.prune_by_magnitude(params, mask, FRACTION)

    def partition():
        np.partition(magnitudes, round(FRACTION * num_weights) - 1)

    # Before the others, so that no memory of theirs lies ready.
    yield {"figures": {"peak of ours, MB": _megabytes(ours)}}
    for name, build in {"np.partition": lambda: partition, "torch": lambda: _torch_prune(weights)}.items():
        try:
            other = build()
            yield {"figures": {f"peak of {name}, MB": _megabytes(other)}}
            ratio = timing.compare(timing.repeated(ours), timing.repeated(other), repeats=repeats, limit=120.0)
        except (ImportError, timing.NotRun) as error:
            yield {"not_run": {name: timing.reason(error)}}
            continue
        yield {"ratios": {name: ratio}, "figures": {
            "ours, ms": 1e3 * ratio["ours_seconds"], f"{name}, ms": 1e3 * ratio["other_seconds"],
        }}


def _megabytes(call):
    peak = timing.peak_extra_bytes(call)
    return peak and peak / 1e6


def _torch_prune(weights):
    import torch
    from torch.nn.utils import prune

    def call():
        layers = [torch.nn.Module() for _ in weights]
        for layer, leaf in zip(layers, weights):
            layer.weight = torch.nn.Parameter(torch.from_numpy(leaf))
        prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=FRACTION)

    return call
