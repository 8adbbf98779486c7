"""The ticket trained under masks that are given: for one-shot masks, and to compare masks by training alone.

    train the dense network T0 epochs                       -> matching ticket θ_T0, that of `imp` with the same configuration
    for each mask m: train θ_T0∘m for T epochs
"""

import os
from collections.abc import Sequence
from typing import Any

from hwa_jax.algorithms.imp import train_one
from hwa_jax.algorithms.pruning_run import PruningRun
from hwa_jax.training.sparse_setup import SparseSetup
from hwa_jax.training.together import Algorithm


def algorithm(setup: SparseSetup, directory: str | os.PathLike, given: Sequence[Any]) -> Algorithm[dict[str, Any] | None]:
    """Trains one particle under each mask, cycle by cycle; resumes and returns as `hwa_jax.algorithms.swamp.algorithm`.

    Args:
        setup: the pieces; fraction and target of `config.swamp` decide nothing here.
        directory: the work directory.
        given: one mask or more.

    Raises:
        UserError: as `hwa_jax.algorithms.swamp.train`, or a cycle was trained under another mask.
    """
    with PruningRun(setup, directory) as run:
        ticket = yield from run.train_ticket()
        for cycle, mask in enumerate(given):
            solution = yield from train_one(run, cycle, ticket, mask)
        return run.finish(cycle, solution)
