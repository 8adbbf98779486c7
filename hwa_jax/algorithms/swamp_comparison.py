"""SWAMP beside iterative magnitude pruning and what lies between them, over seeds: tuning, trainings and figures.

The trainings are those of `swamp_methods`, and two methods more need none of their own kind: "imp_ensemble", the
mean prediction of two independent networks of iterative magnitude pruning, and "imp_best", the best of N by validation.

The learning rate is tuned for iterative magnitude pruning, and all methods take it: they share the ticket of a
seed, so differences within a seed are paired. "imp_own_rate" has a grid of its own, which may reach to rates at
which particles diverge. SWA's constant rate is tuned for SWAMP at the common learning rate. All by
validation accuracy, the mean over the sparse cycles, on seeds that are not reported.

The figures of a method and seed are one JSON file, written when they are complete; what is complete is not
trained again.
"""

import functools
import itertools
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from hwa_jax import particles
from hwa_jax.algorithms.cells import new_study
from hwa_jax.algorithms.stored_run import SPLITS
from hwa_jax.algorithms.swamp_methods import PrunedRun, algorithm, fields_of
from hwa_jax.analysis.connectivity import paths
from hwa_jax.errors import Diverged, UserError
from hwa_jax.storage import atomic
from hwa_jax.training.config import default_swamp_config
from hwa_jax.training.environment import environment
from hwa_jax.training.together import alone, most_seeds, together
from hwa_jax.training.workdir import Workdir, read_json

ENSEMBLE, BEST_OF_N = "imp_ensemble", "imp_best"

# Fields that only add or remove trainings, so that finished ones stay valid.
MAY_CHANGE = ("title", "description", "seeds", "seeds_at_once", "methods", "own_learning_rates")

# Between the seeds of independent networks.
_NEXT_MEMBER = 1_000_000
_POSITIONS = tuple(position / 10 for position in range(11))
_MOST_PAIRED = 4

_logger = logging.getLogger(__name__)


def default_comparison() -> ConfigDict:
    """All fields of a comparison; `base` is the configuration of SWAMP, whose `num_particles` is N.

    Example:
        >>> default_comparison().base.swamp.num_particles
        4
    """
    config = new_study("Comparison", base=default_swamp_config())
    config.seeds = (0, 1, 2)
    config.seeds_at_once = 0  # trained as one program, method by method; 0: one on a CPU, elsewhere all, if the memory holds them
    config.tuning_seeds = (100,)  # never reported
    config.tuning_sparsity = 0.8  # from here on a cycle counts in tuning
    config.learning_rates = (0.05, 0.1, 0.2)
    config.swa_learning_rates = (0.02, 0.05, 0.1)
    config.own_learning_rates = (0.05, 0.1, 0.2)  # of imp_own_rate
    config.few_particles = 2  # of swamp_few
    config.many_particles = 8  # of particles_many
    config.plus_cycles = 5  # cycles with one particle, of swamp_plus
    config.early_ticket = "0 steps"  # T0 of imp_early, swamp_early, swamp_early_gated
    config.methods = _known(config)
    return config.lock()


def run(config: ConfigDict, directory: str | pathlib.Path, *, overwrite: bool = False) -> list[dict[str, Any]]:
    """Tunes, trains what is missing, and returns all cells; the same call continues.

    Args:
        config: as `default_comparison`.
        directory: `cells/*.json` are the figures, `tuning.json` the grid and the choice; `scratch/` holds the
            trainings of the seeds, or point of a grid, that are running.
        overwrite: start over.

    Returns:
        One dictionary per method and seed; `hwa_jax.report.sparsity_comparison` says which keys it has.

    Raises:
        UserError: as `swamp.train`, or a field of the comparison does not fit.
        Interrupted: a signal stopped it.
    """
    _validate(config)
    with Workdir(directory, config, "", overwrite=overwrite, may_change=MAY_CHANGE) as workdir:
        workdir.record()
        rates = _tune(config, workdir.path)
        (workdir.path / "cells").mkdir(exist_ok=True)
        paths = {(seed, method): workdir.path / "cells" / f"{method}-seed{seed}.json" for seed in config.seeds for method in config.methods}
        size = most_seeds(config.seeds_at_once, len(config.seeds))
        for start in range(0, len(config.seeds), size):
            _train_together(config, config.seeds[start : start + size], rates, paths, workdir.path / "scratch")
        atomic.remove_directory(workdir.path / "scratch")
        return [read_json(path) for path in paths.values()]


def _train_together(config, seeds, rates, paths, scratch):
    """Writes the cells of these seeds that are missing, method by method."""
    directories = {seed: scratch / f"seed{seed}" for seed in seeds}
    for method in config.methods:
        missing = [seed for seed in seeds if read_json(paths[seed, method]) is None]
        if missing:
            _logger.info("%s: seeds %s", method, ", ".join(map(str, missing)))
        cells = together([functools.partial(_cell, config, method, seed, rates, directories[seed]) for seed in missing])
        for seed, cell in zip(missing, cells):
            atomic.write_json(paths[seed, method], cell)
    # Only now: methods of one seed use each other's trainings.
    for directory in directories.values():
        atomic.remove_directory(directory)


def _validate(config):
    known, swamp = _known(config), config.base.swamp
    if config.seeds_at_once < 0:
        raise UserError(f"seeds_at_once={config.seeds_at_once}: must be at least 0")
    for field, fits, fix in (
        ("num_particles", type(swamp.num_particles) is int and swamp.num_particles > 1, "give a whole number of at least 2"),
        ("swa", swamp.swa, "must be True"), ("averaging", swamp.averaging == "always", "must be 'always'"),
        ("gate_fraction", swamp.gate_fraction, "the gated methods need one, 0.05 for example"),
    ):
        if not fits:
            raise UserError(f"base.swamp.{field}={swamp[field]!r}: {fix}; the methods vary it from there")
    for method in config.methods:
        if method not in known:
            raise UserError(f"methods={method!r}: give some of {', '.join(known)}")
    target = config.base.swamp.target_sparsity
    if not 0 <= config.tuning_sparsity <= target:
        raise UserError(f"tuning_sparsity={config.tuning_sparsity}: must be at least 0 and at most base.swamp.target_sparsity={target}")
    shared = set(config.seeds) & set(config.tuning_seeds)
    if shared:
        raise UserError(f"tuning_seeds={tuple(config.tuning_seeds)}: {min(shared)} is also one of seeds, which are reported; choose another")


def _known(config):
    return (*fields_of(config), ENSEMBLE, BEST_OF_N)


def _tune(config: ConfigDict, directory: pathlib.Path) -> dict[str, float]:
    """Trains what is missing of the grids, point by point, into tuning.json; the chosen rates."""
    path = directory / "tuning.json"
    stored = read_json(path) or {"grid": []}

    def best(method, name, grid, rates):
        """Of `grid`, with the other rate as in `rates`; a grid of one is taken as it is."""
        accuracies = {}
        for rate, seed in itertools.product(grid, config.tuning_seeds) if len(grid) > 1 else ():
            point = {"method": method, "seed": seed, **rates, name: rate}
            if not any(point.items() <= row.items() for row in stored["grid"]):
                _logger.info("tuning: %s", point)
                scratch = directory / "scratch" / "-".join(map(str, ("tuning", *point.values())))
                stored["grid"].append(point | {"validation": _mean_validation(config, point, scratch)})
                atomic.write_json(path, stored)
                atomic.remove_directory(scratch)
            accuracies.setdefault(rate, []).extend(row["validation"] for row in stored["grid"] if point.items() <= row.items())
        return max(accuracies, key=lambda rate: sum(accuracies[rate])) if accuracies else grid[0]

    # Until it is chosen, SWA's rate takes no part.
    without = {"swa_learning_rate": 0.0}
    rates = {"learning_rate": best("imp", "learning_rate", config.learning_rates, without)}
    rates["swa_learning_rate"] = best("swamp", "swa_learning_rate", config.swa_learning_rates, rates)
    if "imp_own_rate" in config.methods:
        rates["own_learning_rate"] = best("imp", "learning_rate", config.own_learning_rates, without)
    atomic.write_json(path, {**stored, "chosen": rates})
    return rates


def tuned(directory: str | pathlib.Path) -> dict[str, Any]:
    """What tuning.json holds.

    Returns:
        "chosen": learning rate, SWA's rate and, where it was run, imp_own_rate's; "grid": every point with its validation accuracy,
        the mean over the sparse cycles.
    """
    return read_json(pathlib.Path(directory) / "tuning.json")


def _mean_validation(config, point, scratch):
    """0 where the training diverged."""
    try:
        cycles = alone(algorithm(config, point["method"], point["seed"], point, scratch)).cycles
    except Diverged:
        return 0.0
    sparse = [cycle for cycle in cycles if cycle["sparsity"] >= config.tuning_sparsity]
    return sum(cycle["evaluation"][cycle["solution"]]["validation"]["accuracy"] for cycle in sparse) / len(sparse)


def _cell(config, method, seed, rates, scratch):
    """The figures of a method and seed; without levels, and with the reason, where a training diverged."""
    cell = {"method": method, "seed": seed, "model": config.base.model.name, "rates": rates, "environment": environment()}
    try:
        if method in (ENSEMBLE, BEST_OF_N):
            number = 2 if method == ENSEMBLE else config.base.swamp.num_particles
            members = []
            for k in range(number):
                members.append((yield from algorithm(config, "imp", seed + k * _NEXT_MEMBER, rates, scratch)))
            setup, levels = members[0].setup, list((_ensemble_levels if method == ENSEMBLE else _best_levels)(members))
        else:
            run = yield from algorithm(config, method, seed, rates, scratch)
            setup, levels = run.setup, list(_levels(run))
    except Diverged as error:
        _logger.warning("seed %d: %s: %s", seed, method, error)
        return cell | {"num_train": None, "levels": [], "diverged": str(error)}
    return cell | {"num_train": setup.dataset.train.num_examples, "levels": levels, "diverged": None}


def _levels(run: PrunedRun) -> Iterator[dict[str, Any]]:
    """The figures of each cycle."""
    for cycle, makers in zip(run.cycles, run.mask_makers, strict=True):
        evaluation = cycle["evaluation"]
        found = [metrics for name, metrics in evaluation.items() if name.startswith("particle_")]
        yield {
            **{name: cycle[name] for name in ("cycle", "num_weights", "sparsity", "density_per_layer", "num_particles", "solution", "gate")},
            **evaluation[cycle["solution"]],
            "average": evaluation["average"],
            "particles": _mean(found) if found else None,
            "best_particle": max(found, key=lambda metrics: metrics["validation"]["accuracy"], default=None),
            "barrier": _barrier(run, cycle["cycle"], len(found)) if found else None,
            "epochs": run.setup.periods.ticket / run.setup.periods.epoch + sum(one["particle_epochs"] for one in (*makers, cycle)),
            "seconds": sum(one["seconds"]["training"] for one in (*makers, cycle)),
        }


def _ensemble_levels(members: Sequence[PrunedRun]) -> Iterator[dict[str, Any]]:
    """Predictions of independent networks, averaged; the mask is the first one's."""
    evaluator = members[0].setup.evaluator
    for cycle, singles in enumerate(zip(*map(_levels, members), strict=True)):
        weights = particles.stack([member.weights(cycle, "average")[0] for member in members])
        splits = {"train": members[0].setup.train_sample, "validation": members[0].setup.validation, "test": members[0].setup.test}
        yield singles[0] | {
            **{name: evaluator.ensemble(*weights, split) for name, split in splits.items()},
            "particles": _mean(singles), **{name: sum(single[name] for single in singles) for name in ("epochs", "seconds")},
        }


def _best_levels(members: Sequence[PrunedRun]) -> Iterator[dict[str, Any]]:
    """At each level the network with the best validation accuracy; the cost of all."""
    for singles in zip(*map(_levels, members), strict=True):
        best = max(singles, key=lambda single: single["validation"]["accuracy"])
        yield best | {name: sum(single[name] for single in singles) for name in ("epochs", "seconds")}


def _mean(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return jax.tree.map(lambda *values: sum(values) / len(values), *({split: one[split] for split in SPLITS} for one in found))


def _barrier(run: PrunedRun, cycle: int, num_particles: int) -> dict[str, float]:
    """Mean and maximum of the barrier in training loss, nats, over the pairs of the first few particles."""
    names = [f"particle_{number}" for number in range(min(num_particles, _MOST_PAIRED))]
    weights = {name: run.weights(cycle, name)[0] for name in names}
    heights = [path.loss_barrier for path in paths(run.setup, weights, run.setup.train_sample, _POSITIONS).values()]
    return {"mean": sum(heights) / len(heights), "max": max(heights)}
