r"""Iterative magnitude pruning with weight rewinding.

    train the dense network T0 epochs                       -> matching ticket θ_T0
    mask m = 1
    repeat: train θ_T0∘m for T epochs                       -> θ
            if the target sparsity is reached: θ is the final sparse network
            m = keep the largest |θ_i| among the remaining, globally, removing a fraction of what remains
            rewind weights, optimizer state and schedule to θ_T0∘m

References:
    Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019, arXiv 1803.03635.
    Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020, arXiv 1912.05671.
"""

import itertools
import os
from typing import Any

from ml_collections import ConfigDict

from hwa_jax.algorithms.cycle_files import Solution
from hwa_jax.algorithms.pruning_run import PruningRun
from hwa_jax.algorithms.swamp import particle_weights
from hwa_jax.errors import UserError
from hwa_jax.training.sparse_setup import SparseSetup, prepare
from hwa_jax.training.step import TrainState
from hwa_jax.training.together import Algorithm, alone

# What makes the configuration of SWAMP one of IMP.
FIELDS = {"num_particles": 1, "swa": False, "rewind": "ticket"}


def train(config: ConfigDict, directory: str | os.PathLike, *, overwrite: bool = False) -> dict[str, Any] | None:
    """Prunes by IMP; resumes, returns and raises as `hwa_jax.algorithms.swamp.train`.

    Args:
        config: as `hwa_jax.training.config.default_swamp_config`, with `config.swamp.update(imp.FIELDS)`.
        directory: the work directory.
        overwrite: start over, deleting what is there.

    Raises:
        UserError: a field of `FIELDS` that is set otherwise, and as there.
    """
    return run(prepare(config), directory, overwrite=overwrite)


def run(setup: SparseSetup, directory: str | os.PathLike, *, overwrite: bool = False) -> dict[str, Any] | None:
    """`train`, for callers that have prepared the pieces and go on to use them."""
    return alone(algorithm(setup, directory, overwrite=overwrite))


def algorithm(setup: SparseSetup, directory: str | os.PathLike, *, overwrite: bool = False) -> Algorithm[dict[str, Any] | None]:
    """`run`, as `hwa_jax.training.together` trains several seeds."""
    for field, value in FIELDS.items():
        if setup.config.swamp[field] != value:
            raise UserError(f"swamp.{field}={setup.config.swamp[field]!r}: is {value!r} in iterative magnitude pruning")
    with PruningRun(setup, directory, overwrite=overwrite) as run:
        if run.results() is not None:
            return run.results()
        ticket = yield from run.train_ticket()
        mask = setup.dense_mask()
        for cycle in itertools.count():
            solution = yield from train_one(run, cycle, ticket, mask)
            if run.is_target(cycle, mask):
                return run.finish(cycle, solution)
            mask = run.prune(cycle, solution.weights, mask)


def train_one(run: PruningRun, cycle: int, ticket: TrainState, mask: Any) -> Algorithm[Solution]:
    """One particle trained from θ_T0∘m, and stored; read, where the cycle has finished before."""
    solution = run.stored(cycle, mask)
    if solution is None:
        trained = yield from run.train_particles(cycle, 1, ticket, mask)
        solution = run.store(trained, *particle_weights(trained))
    return solution
