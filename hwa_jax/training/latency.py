"""Which layers of a pruned network are worth running as CSR matrices: measured, here and now."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from hwa_jax.training.sparse_predictor import SparseNetwork

# What is within this share of another time is called the same.
MARGIN = 0.05

_SECONDS = 0.2
_FEWEST_REPEATS, _MOST_REPEATS = 5, 500


class Choice(NamedTuple):
    """What was measured for one batch size.

    Attributes:
        layers: kernel name -> {"dense": seconds, "csr": seconds} of the layer alone.
        network: number of CSR layers -> seconds of the whole network; the alternatives.
        chosen: the kernels that run as CSR matrices.
    """

    layers: dict[str, dict[str, float]]
    network: dict[int, float]
    chosen: list[str]


def median_seconds(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The median time of each call, after one that compiles; they take turns, so that other load meets all of them.

    Example:
        >>> sorted(median_seconds({"nothing": lambda: None, "sum": lambda: sum(range(9))}))
        ['nothing', 'sum']
    """
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = {name: [] for name in calls}
    end = time.perf_counter() + _SECONDS * len(calls)
    for repeat in range(_MOST_REPEATS):
        if repeat >= _FEWEST_REPEATS and time.perf_counter() > end:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def choose_layers(network: SparseNetwork, batch_size: int) -> Choice:
    """Finds the layers that run faster as CSR matrices than dense in batches of this size.

    Every layer is measured alone. Then the whole network is, dense, with the layers that were faster, and with all
    of them (unless one by one these took twice as long as dense): a layer costs less beside others of its kind,
    which need no compiled piece between them. The fastest of the three is chosen, dense where the gain is below 5 %.

    Args:
        network: the network.
        batch_size: images in a batch.
    """
    random = np.random.default_rng(0)
    found, layers = network.layers(batch_size), {}
    for name in network.candidates(batch_size):
        inputs = random.standard_normal(found[name].inputs.shape).astype(found[name].inputs.dtype)
        programs = {form: network.layer_program(found[name], form == "csr") for form in ("dense", "csr")}
        layers[name] = median_seconds({form: lambda p=program: p(inputs) for form, program in programs.items()})
    faster = [name for name, seconds in layers.items() if seconds["csr"] < seconds["dense"]]
    dense, csr = (sum(seconds[form] for seconds in layers.values()) for form in ("dense", "csr"))
    # By their number, since each is contained in the next.
    plans = {len(plan): plan for plan in ([], faster, *([list(layers)] if csr < 2 * dense else []))}
    images = random_images(network, batch_size)
    programs = {number: network.program(batch_size, plan) for number, plan in plans.items()}
    seconds = median_seconds({number: lambda p=program: p(images) for number, program in programs.items()})
    fastest = min(seconds, key=seconds.get)
    return Choice(layers, seconds, plans[fastest] if seconds[fastest] < (1 - MARGIN) * seconds[0] else [])


def random_images(network: SparseNetwork, batch_size: int) -> np.ndarray:
    """Images of noise of the network's shape."""
    shape = (batch_size, *network.metadata["model"]["input_shape"])
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)
