"""Small trainings on digits for tests, and the readings that compare them."""

import hashlib
import json
import os
import pathlib

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file

from hwa_jax.algorithms import hwa
from hwa_jax.storage.checkpoint import CheckpointStore
from hwa_jax.training.config import default_config
from hwa_jax.training.setup import prepare

# 90 training images, 9 steps per epoch; 18 steps are four cycles of 4 and a partial one of 2.
SMALL = {
    "data.num_train": 120, "data.validation_fraction": 0.25, "model.name": "mlp", "num_devices": 1,
    "optimizer.momentum": 0.0, "optimizer.nesterov": False, "optimizer.learning_rate": 0.05,
    "training.batch_size": 10, "training.duration": "2 epochs", "hwa.sync_period": "4 steps", "hwa.window_size": 3,
    "evaluation.every": "9 steps", "evaluation.batch_size": 32, "evaluation.train_examples": 50,
    "checkpoint.every": "5 steps", "logging.every": "6 steps", "logging.tensorboard": False,
}


@pytest.fixture(scope="session")
def compilation_cache_dir(tmp_path_factory):
    """One cache of compiled programs for all small trainings, child processes and xdist's workers included."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="module")
def compiled_once(compilation_cache_dir):
    """Equal programs are compiled once in all modules that ask for it, and nothing changes for the others."""
    before = {name: getattr(jax.config, name, False) for name in _CACHE}
    for name, value in _CACHE.items():
        jax.config.update(name, str(compilation_cache_dir) if value is None else value)
    compilation_cache.reset_cache()
    yield compilation_cache_dir
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


# These trainings last milliseconds, their compilation seconds.
_CACHE = {
    "jax_compilation_cache_dir": None, "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_disable_most_optimizations": True,
}


def small_config(fields=()):
    """`default_config` with the values of SMALL and then `fields`, dotted name -> value."""
    return set_fields(default_config(), {**SMALL, **dict(fields)})


def set_fields(config, fields):
    """The configuration with these fields set, dotted name -> value."""
    for field, value in fields.items():
        *groups, name = field.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[name] = value
    return config


def small_setup(fields=()):
    return prepare(small_config(fields))


def train(directory, fields=(), **keywords):
    """results.json of a small training in `directory`."""
    return hwa.train(small_config(fields), directory, **keywords)


def checkpoint(directory, step=None):
    """The newest checkpoint's TrainState, NumPy leaves, replicas along axis 0."""
    return CheckpointStore(pathlib.Path(directory) / "checkpoints").restore(step=step).tree


def exported(directory):
    """The arrays of hwa.safetensors by path."""
    return load_file(pathlib.Path(directory) / "hwa.safetensors")


def rows(directory, **having):
    """The rows of metrics.jsonl that have these values."""
    lines = (pathlib.Path(directory) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if having.items() <= row.items()]


def by_path(tree):
    """Leaves by "/"-joined path, of a nested dictionary."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def listing(directory):
    """Every file below a directory with its checksum, and every directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in pathlib.Path(directory).rglob("*")
    }
