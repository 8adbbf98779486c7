"""What a step costs on the devices that are here: compiled and run a few times, nothing is written."""

import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from hwa_jax.training.config import default_config
from hwa_jax.training.setup import Setup, prepare
from hwa_jax.training.step import TrainState

_TIMED_STEPS = 5


class StepCost(NamedTuple):
    """A step of all replicas.

    Attributes:
        temporary_bytes: that the compiled step needs beside its arguments, by the compiler's own figure.
        state_bytes: of the training state.
        seconds: mean of a few steps, here and now.
    """

    temporary_bytes: int
    state_bytes: int
    seconds: float


def measure_step(setup: Setup, state: TrainState, extra: dict[str, Any]) -> StepCost:
    """Compiles the step and runs a few.

    Args:
        setup: the pieces of the run.
        state: to start from; it is used up.
        extra: further arguments of the optimizer's update.
    """
    batch_key, noise_key = setup.keys()
    state_bytes, indices = tree_bytes(state), setup.epoch_indices(state.step, batch_key)
    splits = setup.splits(0, batch_key)
    split = next(splits)
    step = setup.step.lower(state, indices, split, noise_key, extra).compile()
    state = jax.block_until_ready(step(state, indices, split, noise_key, extra))
    start = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        state = step(state, indices, split, noise_key, extra)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - start) / _TIMED_STEPS
    return StepCost(step.memory_analysis().temp_size_in_bytes, state_bytes, seconds)


def setup_on_noise(model: str, input_shape: tuple[int, int, int], num_classes: int, batch_size: int) -> Setup:
    """One replica of a network on one device, with images of noise: what a step costs does not depend on what they show.

    Args:
        model: its name.
        input_shape: (height, width, channels) of an image.
        num_classes: at least 2.
        batch_size: of a step.

    Raises:
        UserError: an unknown network, or one that does not fit the images.
    """
    random = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 2 * max(batch_size, num_classes)), ("test", num_classes)):
        arrays[f"x_{split}"] = random.integers(0, 256, (number, *input_shape), np.uint8)
        arrays[f"y_{split}"] = np.arange(number) % num_classes
    config = default_config()
    config.num_devices = config.hwa.num_replicas = 1
    config.model.name, config.training.batch_size = model, batch_size
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "noise.npz"
        np.savez(path, **arrays)
        config.data.update({"source": "numpy", "data_dir": str(path)})
        return prepare(config)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of what only has their shapes and dtypes.

    Example:
        >>> tree_bytes({"w": np.zeros((2, 3), np.float32)})
        24
    """
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
