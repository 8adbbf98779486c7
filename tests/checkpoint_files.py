"""Checkpoints as another framework would have left them, for the tests that average them."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hwa_jax.algorithms import checkpoint_average
from hwa_jax.storage import found_checkpoints


def member(value):
    """A checkpoint as PyTorch names them; the mean of the floating arrays is the mean of the values."""
    return {
        "fc.weight": np.full((3, 2), value, np.float32),
        "half": np.full(2, value, ml_dtypes.bfloat16),
        "num_batches_tracked": np.array(10 * value, np.int64),
        "mask": np.array([value > 4, True]),
    }


@pytest.fixture
def files(tmp_path):
    """Values 1, 2, 6 in this order of steps; not the order of the letters."""
    for step, value in ((9, 1), (10, 2), (100, 6)):
        save_file(member(value), tmp_path / f"model_{step}.safetensors", {"format": "pt"})
    return str(tmp_path / "model_*.safetensors")


def averaged(pattern, kind="uniform", **options):
    paths = found_checkpoints.find(pattern)
    shares = checkpoint_average.shares(kind, len(paths), **options)
    return checkpoint_average.average(paths[-len(shares):], shares)
