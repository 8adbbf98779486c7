"""Small prunings on digits for tests, and the readings that compare them."""

import pathlib

import jax
import jax.numpy as jnp

from hwa_jax import particles
from hwa_jax.algorithms import imp, swamp
from hwa_jax.storage.safetensors import named_leaves
from hwa_jax.storage.sparse_weights import load_sparse_weights
from hwa_jax.training.config import default_swamp_config
from hwa_jax.training.sparse_setup import prepare
from training_runs import set_fields

# 90 training images, 9 steps per epoch: a ticket of 4 steps and cycles of 8; 36 % go in each.
SMALL_PRUNING = {
    "data.num_train": 120, "data.validation_fraction": 0.25, "model.name": "mlp", "num_devices": 1,
    "optimizer.momentum": 0.5, "optimizer.nesterov": False, "optimizer.learning_rate": 0.05, "optimizer.weight_decay": 0.01,
    "training.batch_size": 10, "training.duration": "8 steps", "swamp.ticket_duration": "4 steps", "swamp.num_particles": 2,
    "swamp.fraction": 0.36, "swamp.target_sparsity": 0.5, "swamp.swa_start": "50%", "swamp.swa_period": "2 steps",
    "swamp.swa_learning_rate": 0.02, "swamp.gate_fraction": 0.0, "evaluation.batch_size": 500, "evaluation.train_examples": 50,
    "checkpoint.every": "3 steps", "logging.every": "4 steps", "logging.tensorboard": False,
}
IMP = {f"swamp.{name}": value for name, value in imp.FIELDS.items()}


def pruning_config(fields=()):
    """`default_swamp_config` with the values of SMALL_PRUNING and then `fields`, dotted name -> value."""
    return set_fields(default_swamp_config(), {**SMALL_PRUNING, **dict(fields)})


def pruning_setup(fields=()):
    return prepare(pruning_config(fields))


def prune(directory, fields=(), algorithm=swamp, **keywords):
    """results.json of a small pruning in `directory`."""
    return algorithm.train(pruning_config(fields), directory, **keywords)


def cycle_weights(directory, cycle, name="average"):
    """(params, mask) of a finished cycle, arrays by path; the mask of prunable leaves alone."""
    params, _, mask = load_sparse_weights(pathlib.Path(directory) / "cycles" / f"{cycle:03d}" / f"{name}.safetensors")
    return named_leaves(params), named_leaves(mask)


def stacked_state(setup, trees):
    """A state whose particles have these weights."""
    origin = jax.tree.map(lambda leaf: leaf[0], setup.with_particles(1).initial_state()._replace(step=()))._replace(step=jnp.int32(0))
    state = setup.particles_at(origin, setup.dense_mask())
    return state._replace(params=particles.stack(trees))
