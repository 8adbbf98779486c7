"""What the tests of storage share: a directory, members to push, and the mean they must have."""

import os
import pathlib
import tempfile
from typing import NamedTuple

import jax
import numpy as np
import pytest

from hwa_jax.storage.window_store import WindowStore


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where possible: nothing here cuts the power, and a disk's fsync is slow."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield pathlib.Path(directory)


class Dense(NamedTuple):
    kernel: object
    bias: object


def member(step):
    rng = np.random.default_rng(step)
    dense = Dense(rng.normal(size=(3, 4)).astype(np.float32), np.float32(step))
    return {"layers": [dense, None], "moments": (rng.normal(size=5), {})}


def filled(directory, steps, size=3, keep=None):
    window = WindowStore(directory, size, keep=keep)
    for step in steps:
        window.push(step, member(step))
    window.wait()
    return window


def assert_mean_of(mean, steps):
    """Equal to the float64 mean of these members, rounded once, in structure and dtypes too."""
    members = [member(step) for step in steps]
    assert jax.tree.structure(mean) == jax.tree.structure(members[0])

    def check(found, *leaves):
        expected = np.mean([np.float64(leaf) for leaf in leaves], axis=0)
        assert type(found) is np.ndarray and found.dtype == leaves[0].dtype
        np.testing.assert_array_equal(found, expected.astype(found.dtype))

    jax.tree.map(check, mean, *members)
