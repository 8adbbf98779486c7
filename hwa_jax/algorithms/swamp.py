r"""Sparse Weight Averaging with Multiple Particles: iterative magnitude pruning whose networks are averages.

    train the dense network T0 epochs                       -> matching ticket θ_T0
    mask m = 1
    repeat: N particles start from θ_T0∘m and differ only in SGD noise (batch order, augmentation)
            each trains T epochs; in the last phase, at a constant rate, it collects a uniform average (SWA)
            θ̄ = the mean of the N averages, BatchNorm statistics computed anew
            if the target sparsity is reached: θ̄ is the final sparse network
            m = keep the largest |θ̄_i| among the remaining, globally, removing a fraction of what remains
            rewind weights, optimizer state and schedule to θ_T0∘m

N = 1 without SWA is iterative magnitude pruning, which `hwa_jax.algorithms.imp` writes out.

With averaging="when_safe" a gate stands before the pruning: in nearly dense networks the average is worse
than its particles, since they do not lie in one basin yet. Where its loss on held-out training images is
above the mean of theirs, the mask is pruned by the magnitudes of the best particle instead, and that
particle is what the cycle found. What the gate measured is stored either way.

With rewind="previous" a cycle starts from what the last one found, as Sparse Model Soups do: schedule and
step of the ticket, momentum from zero.

References:
    Choi et al., Sparse Weight Averaging with Multiple Particles for Iterative Magnitude Pruning, ICLR 2024,
    arXiv 2305.14852. Zimmer et al., Sparse Model Soups, ICLR 2024, arXiv 2306.16788.
"""

import itertools
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from hwa_jax import masks, particles
from hwa_jax.algorithms.cycle_files import Solution
from hwa_jax.algorithms.pruning_run import PruningRun, Trained
from hwa_jax.training import processes
from hwa_jax.training.sparse_setup import SparseSetup, prepare
from hwa_jax.training.together import Algorithm, alone
from hwa_jax.training.weights import Weights, recalibrated

_logger = logging.getLogger(__name__)


def train(config: ConfigDict, directory: str | os.PathLike, *, overwrite: bool = False) -> dict[str, Any] | None:
    """Prunes by SWAMP; the same call continues an interrupted run, and returns at once from a finished one.

    A finished run continues to a higher sparsity when `swamp.target_sparsity` is raised.

    Args:
        config: as `hwa_jax.training.config.default_swamp_config`.
        directory: the work directory; see `hwa_jax.algorithms.pruning_run` for what lies there.
        overwrite: start over, deleting what is there.

    Returns:
        The contents of results.json; None if a signal stopped the run (a checkpoint was made, and the
        same call continues).

    Raises:
        UserError: configuration, data, devices or work directory do not fit, or the training diverged.
    """
    return run(prepare(config), directory, overwrite=overwrite)


def run(setup: SparseSetup, directory: str | os.PathLike, *, overwrite: bool = False) -> dict[str, Any] | None:
    """`train`, for callers that have prepared the pieces and go on to use them."""
    return alone(algorithm(setup, directory, overwrite=overwrite))


def algorithm(setup: SparseSetup, directory: str | os.PathLike, *, overwrite: bool = False) -> Algorithm[dict[str, Any] | None]:
    """`run`, as `hwa_jax.training.together` trains several seeds."""
    plan = setup.plan()
    with PruningRun(setup, directory, overwrite=overwrite) as run:
        if run.results() is not None:
            return run.results()
        start = ticket = yield from run.train_ticket()
        mask = setup.dense_mask()
        for cycle in itertools.count():
            solution = run.stored(cycle, mask)
            if solution is None:
                trained = yield from run.train_particles(cycle, plan[cycle].num_particles, start, mask)
                solution = find_solution(run, trained)
            if run.is_target(cycle, mask):
                return run.finish(cycle, solution)
            mask = run.prune(cycle, solution.weights, mask)
            start = ticket if setup.config.swamp.rewind == "ticket" else setup.restarted(ticket, *solution.weights)


def find_solution(run: PruningRun, trained: Trained) -> Solution:
    """θ̄, or the best particle where the gate says that averaging hurts; stored with all that was measured."""
    setup, swamp = trained.setup, trained.setup.config.swamp
    found = particle_weights(trained)
    if len(found) == 1:
        return run.store(trained, found[0])
    average = average_of(trained, found)
    if not setup.held_out.num_examples:
        return run.store(trained, average, found)
    losses = [setup.evaluator.one(*weights, setup.held_out)["nll"] for weights in (average, *found)]
    best = best_particle_if_averaging_hurts(losses[0], losses[1:])
    solution = "average" if best is None or swamp.averaging == "always" else f"particle_{best}"
    if best is not None:
        _logger.info(
            "cycle %d: averaging hurts, held-out loss %.4f against %.4f of its particles: going on with %s",
            trained.cycle, losses[0], sum(losses[1:]) / len(found), solution,
        )
    gate = {"average": losses[0], "particles": losses[1:], "averaging_hurts": best is not None}
    return run.store(trained, average, found, solution=solution, gate=gate)


def particle_weights(trained: Trained) -> list[Weights]:
    """Each particle's SWA average, without SWA its last weights; BatchNorm statistics computed anew."""
    setup, state = trained.setup, trained.state
    params = state.params if setup.swa is None else setup.swa.value(state.ema)
    stacked = recalibrated(setup, params, state.batch_stats, stacked=True)
    return [particles.put(one, setup.replicated) for one in particles.unstack(processes.to_host(stacked))]


def average_of(trained: Trained, found: Sequence[Weights]) -> Weights:
    """θ̄, the mean of particles under one mask, its BatchNorm statistics computed anew."""
    setup = trained.setup
    mean = masks.mean(trained.mask, particles.stack([one.params for one in processes.to_host(found)]))
    return recalibrated(setup, particles.put(mean, setup.replicated), found[0].batch_stats)


def best_particle_if_averaging_hurts(average_loss: float, particle_losses: Sequence[float]) -> int | None:
    """The particle with the lowest loss where the mean of their losses is below the average's; None where averaging does not hurt.

    Against the lowest of them the average would lose by chance alone: of several noisy losses one is always low. Losses that
    are not finite are the highest of all. Among equal particles the first one is the best.

    Example:
        >>> best_particle_if_averaging_hurts(0.6, [0.6, 0.4, 0.4])
        1
        >>> best_particle_if_averaging_hurts(0.45, [0.6, 0.4]) is None
        True
    """
    average_loss, *losses = [loss if math.isfinite(loss) else math.inf for loss in (average_loss, *particle_losses)]
    best = min(range(len(losses)), key=losses.__getitem__)
    # With a particle that diverged the mean says nothing: then the best one has to be better.
    typical = sum(losses) / len(losses) if math.isfinite(sum(losses)) else losses[best]
    return best if typical < average_loss else None
