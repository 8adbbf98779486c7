r"""The average of checkpoints that exist already: offline averaging for a training that is over.

    uniform    (1/n) Σ p_i
    ema        a_1 = p_1,  a_i = decay · a_{i-1} + (1 - decay) · p_i
    window     the uniform average of the newest `size`

All three are weighted means, so members are added one by one to a float64 sum: memory is about
four times the size of a float32 checkpoint, however many there are.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from hwa_jax.errors import UserError
from hwa_jax.storage import found_checkpoints, safetensors
from hwa_jax.storage.float64_mean import Float64Mean
from hwa_jax.storage.found_checkpoints import Checkpoint
from hwa_jax.training.predictor import description
from hwa_jax.training.setup import Setup
from hwa_jax.training.weights import recalibrated

AVERAGES = ("uniform", "ema", "window")


def shares(kind: str, count: int, *, decay: float | None = None, size: int | None = None) -> list[float]:
    """The weight of each checkpoint in the average, oldest first; only those of the window for "window".

    Args:
        kind: one of `AVERAGES`.
        count: number of checkpoints, at least 1.
        decay: of "ema", at least 0 and below 1.
        size: of "window", at least 1; more than `count` takes all.

    Returns:
        Weights of the newest checkpoints, relative to each other.

    Raises:
        UserError: an argument out of range, missing, or of another kind of average.

    Example:
        >>> shares("uniform", 2), shares("ema", 3, decay=0.5), shares("window", 5, size=2)
        ([1.0, 1.0], [0.25, 0.25, 0.5], [1.0, 1.0])
    """
    for name, value, owner in (("decay", decay, "ema"), ("size", size, "window")):
        if value is None and kind == owner:
            raise UserError(f"average={kind!r}: give {name} as well")
        if value is not None and kind != owner:
            raise UserError(f"{name}={value}: belongs to average={owner!r}, not to {kind!r}: leave it out")
    if decay is not None and not 0 <= decay < 1:
        raise UserError(f"decay={decay}: must be at least 0 and below 1")
    if size is not None and size < 1:
        raise UserError(f"size={size}: must be at least 1 checkpoint")
    if kind == "ema":
        # The first checkpoint is where the average starts, so it keeps what the later ones leave.
        return [decay ** (count - 1)] + [(1 - decay) * decay ** (count - 1 - i) for i in range(1, count)]
    return [1.0] * min(count, size or count)


def average(paths: Sequence[str], weights: Sequence[float]) -> Checkpoint:
    """The weighted mean of checkpoints, in float64, rounded once to their dtypes.

    Args:
        paths: as `found_checkpoints.find` returns them, oldest first.
        weights: one for each, as `shares` returns them.

    Returns:
        Arrays and header as the newest checkpoint's; an array of integers or booleans is the newest one's.

    Raises:
        UserError: a checkpoint cannot be read, holds NaN, or is of another model than the first: names
            the first array that differs, and both.
    """
    mean, first = Float64Mean(), None
    for path, weight in zip(paths, weights, strict=True):
        arrays, header = found_checkpoints.read(path)
        shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
        first = first or shapes
        difference = safetensors.first_difference(shapes, first)
        if difference:
            name, mine, other = difference
            raise UserError(f"{path}: {name} is {mine}, in {paths[0]} it is {other}: give checkpoints of one model")
        names = sorted(arrays)
        mean.add([arrays[name] for name in names], weight)
        del arrays  # before the next one is read
    return Checkpoint(dict(zip(names, mean.value())), header)


def batch_norm_names(arrays: dict[str, np.ndarray]) -> list[str]:
    """The names that look like BatchNorm's running statistics, in Flax or PyTorch.

    Example:
        >>> batch_norm_names({"bn1.running_mean": 0, "batch_stats/norm/var": 0, "conv.weight": 0})
        ['bn1.running_mean', 'batch_stats/norm/var']
    """
    return [name for name in arrays if "batch_stats/" in name or name.endswith(("running_mean", "running_var"))]


def save(averaged: Checkpoint, path: str | os.PathLike, about: dict[str, Any]) -> None:
    """Writes an average as safetensors; the header says what it is an average of.

    What the newest checkpoint's header says goes along: the format for other programs, and for files
    that `experiments/evaluate.py export` wrote the network, so that `load_predictor` reads the average too.

    Raises:
        UserError: the disk is full.
    """
    others = dict(averaged.header)
    network = {key: value for key, value in safetensors.own_metadata(others).items() if key in ("model", "mean", "std")}
    safetensors.write_arrays(path, averaged.arrays, {"average": about, **network}, others)


def save_recalibrated(averaged: Checkpoint, path: str | os.PathLike, about: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """As `save`, with BatchNorm statistics recomputed for the averaged weights.

    Args:
        averaged: arrays named params/... and batch_stats/..., of the network of `setup`.
        path: of the file.
        about: what it is an average of.
        setup: network and data.

    Returns:
        Metrics on the validation split.

    Raises:
        UserError: weights of another network; names the first leaf that differs. Or the disk is full.
    """
    like = jax.eval_shape(setup.model.init, jax.random.key(0))
    weights = safetensors.as_weights("the average", averaged.arrays, like)
    weights = recalibrated(setup, *jax.device_put(weights, setup.replicated))
    safetensors.save_weights(path, *weights, {"average": about, "config": setup.config.to_dict(), **description(setup)})
    return setup.evaluator.one(*weights, setup.validation)
