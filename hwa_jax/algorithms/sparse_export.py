"""A cycle of a pruning as one file to ship, and what it saves: bytes, operations, and measured time."""

import logging
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hwa_jax import masks
from hwa_jax.algorithms.cycle_files import read_metrics
from hwa_jax.algorithms.stored_run import finished_cycles, published, read_record
from hwa_jax.storage import safetensors
from hwa_jax.storage.sparse_weights import load_sparse_weights, save_sparse_weights
from hwa_jax.training import predictor
from hwa_jax.training.environment import environment
from hwa_jax.training.latency import Choice, choose_layers, median_seconds, random_images
from hwa_jax.training.sparse_predictor import SparseNetwork, load_sparse_predictor
from hwa_jax.training.workdir import read_json

_logger = logging.getLogger(__name__)


class StoredCycle(NamedTuple):
    """What a finished cycle found, as its work directory has it.

    Attributes:
        params, batch_stats, mask: NumPy arrays, exactly zero where the mask is False.
        facts: about them, what the file of an export says.
    """

    params: Any
    batch_stats: Any
    mask: Any
    facts: dict[str, Any]


def open_cycle(directory: str | os.PathLike, cycle: int | None = None) -> StoredCycle:
    """Reads a cycle of a work directory of `swamp.train`, finished or not; the data set is not needed.

    Args:
        directory: the work directory; another process may be training in it.
        cycle: its number, from 0; None for the last one that is finished.

    Raises:
        UserError: no work directory, not of a pruning, no such cycle, or a damaged file.
    """
    directory = pathlib.Path(directory)
    record = read_record(directory, "swamp")
    finished, cycle = finished_cycles(directory, cycle)
    stored = finished[cycle]
    metrics = read_metrics(stored)
    weights = stored / f"{metrics['solution']}.safetensors"
    params, batch_stats, mask = load_sparse_weights(weights)
    about = {key: value for key, value in safetensors.load_metadata(weights).items() if key != "shapes"}
    facts = {
        **about, "num_particles": metrics["num_particles"], "sparsity": metrics["sparsity"],
        "metrics": metrics["evaluation"][metrics["solution"]], "config": published(record["config"]),
        "data_fingerprint": record["data_fingerprint"], "environment": read_json(directory / "environment.json") or {},
    }
    return StoredCycle(params, batch_stats, mask, facts)


def export(cycle: StoredCycle, path: str | os.PathLike, batch_sizes: Sequence[int]) -> dict[str, Any]:
    """Writes one file of masks and remaining values, which `load_sparse_predictor` reads, and measures what it saves.

    Args:
        cycle: as `open_cycle` returns it.
        path: of the file; its directory exists.
        batch_sizes: images in a batch, for which is measured which layers run faster as CSR matrices.

    Returns:
        What `hwa_jax.report.sparse_report` writes: "facts" (the metadata of the file), "environment" of the
        measurements, "parameters", "flops" per image, "bytes", "latency" (one row a batch size, where "alternatives"
        are seconds by number of CSR layers, before the choice) and "layers"; times in seconds.

    Raises:
        UserError: the disk is full.
    """
    network, measured_with, choices = SparseNetwork(cycle.facts, *cycle[:3]), _environment(), {}
    for size in batch_sizes:
        _logger.info("batch size %d: measuring", size)
        choices[size] = choose_layers(network, size)
    facts = {**cycle.facts, "execution": {str(size): choice.chosen for size, choice in choices.items()}}
    save_sparse_weights(path, *cycle[:3], facts)
    # On a machine with a GPU the dense network's weights would be copied from there at every call.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        dense = predictor.predictor(predictor.network(facts), cycle[:2], facts)
    predict = load_sparse_predictor(path)
    latency = [_latency(network, dense, predict, size, choice) for size, choice in choices.items()]
    layers = _layers(network, cycle, choices)
    return {
        "facts": facts, "environment": measured_with, "parameters": _parameters(cycle), "layers": layers, "latency": latency,
        "flops": {form: sum(layer["flops"][form] for layer in layers) for form in ("dense", "sparse")},
        "bytes": _bytes(network, cycle, path),
    }


def _latency(network, dense, predict, batch_size, choice):
    images = random_images(network, batch_size)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        seconds = median_seconds({"dense": lambda: dense(images), "predict": lambda: predict(images)})
        difference = np.abs(dense(images) - predict(images)).max()
    return {
        "batch_size": batch_size, "seconds": seconds, "csr_layers": choice.chosen,
        "alternatives": {str(number): seconds for number, seconds in choice.network.items()},
        "weight_bytes": network.program(batch_size, choice.chosen).num_bytes, "largest_difference": float(difference),
    }


def _layers(network: SparseNetwork, cycle: StoredCycle, choices: dict[int, Choice]):
    kept = safetensors.named_leaves({"params": cycle.mask})
    layers = []
    for name, layer in network.layers(1).items():
        dense = math.prod(layer.kernel.shape)
        remaining = int(kept[name].sum()) if name in kept else dense
        layers.append({
            "name": name, "shape": list(layer.kernel.shape), "weights": {"dense": dense, "remaining": remaining},
            "flops": {"dense": layer.flops(dense), "sparse": layer.flops(remaining)},
            "seconds": {str(size): choice.layers.get(name) for size, choice in choices.items()},
        })
    return layers


def _parameters(cycle):
    dense = sum(leaf.size for leaf in jax.tree.leaves(cycle.params))
    prunable = sum(leaf.size for leaf in jax.tree.leaves(cycle.mask))
    remaining = masks.count(cycle.mask)
    return {"dense": dense, "remaining": dense - prunable + remaining, "prunable": prunable, "prunable_remaining": remaining}


def _bytes(network, cycle, path):
    from safetensors.numpy import save

    arrays = safetensors.named_leaves({"params": cycle.params, "batch_stats": cycle.batch_stats})
    return {
        "dense_file": len(save(arrays)), "sparse_file": os.path.getsize(path),
        "dense_weights": sum(array.nbytes for array in arrays.values()),
        "csr_weights": network.program(1, list(network.matrices)).num_bytes,
    }


def _environment():
    import scipy

    found, load = environment(), os.getloadavg()[0]
    if load > found["cpu_cores"] / 2:
        _logger.warning("the machine is busy (load average %.1f on %d cores): measure again when it is not", load, found["cpu_cores"])
    return {**found, "scipy": scipy.__version__, "load_average": round(load, 2)}
