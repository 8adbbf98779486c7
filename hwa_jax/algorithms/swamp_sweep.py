"""How SWAMP depends on N, SWA's start, period and rate, the fraction per cycle and T0, each varied alone from one base."""

import functools
import pathlib
from typing import Any

from ml_collections import ConfigDict

from hwa_jax.algorithms import swamp
from hwa_jax.algorithms.cells import finish_study, new_study
from hwa_jax.errors import Diverged, UserError
from hwa_jax.training.config import default_swamp_config
from hwa_jax.training.environment import environment
from hwa_jax.training.interruption import finished
from hwa_jax.training.sparse_setup import prepare

# Fields that only add or remove trainings, so that finished ones stay valid.
MAY_CHANGE = ("title", "description", "seeds", "sparse_from", *(f"axes.{name}" for name in default_swamp_config().swamp))
BASE = "base"


def default_sweep() -> ConfigDict:
    """All fields of a sweep; `base` is the configuration of one training, `axes` the values of fields of `base.swamp`.

    Example:
        >>> default_sweep().axes.num_particles
        (1, 2, 8)
    """
    config = new_study("Sweep of SWAMP", base=default_swamp_config())
    config.seeds = (0, 1, 2)
    config.sparse_from = 0.8  # levels from this sparsity on count in the report
    config.axes = ConfigDict({
        "num_particles": (1, 2, 8), "swa_start": ("25%", "50%"), "swa_period": ("1 step",), "swa_learning_rate": (0.01, 0.1),
        "fraction": (0.36, 0.5), "ticket_duration": ("0 steps", "1 epoch"),
    })
    return config.lock()


def run(config: ConfigDict, directory: str | pathlib.Path, *, overwrite: bool = False) -> list[dict[str, Any]]:
    """Trains what is missing and returns all cells; the same call continues.

    Args:
        config: as `default_sweep`.
        directory: of `cells/*.json`, one training each.
        overwrite: start over.

    Returns:
        One dictionary per training: "axis" (`BASE` or a field of `swamp`), "value", "base_value", "seed", "num_train", "environment",
        "epochs" of all particles, and "levels", a list of {"sparsity", "validation", "test"} (accuracies) of every cycle;
        without levels, and with the reason in "diverged", where it diverged.

    Raises:
        UserError: as `swamp.train`, or a field of the sweep does not fit.
        Interrupted: a signal stopped it.
    """
    _validate(config)
    planned = {}
    for seed in config.seeds:
        planned[f"{BASE}-seed{seed}"] = functools.partial(_cell, config, BASE, None, seed)
        for axis, values in config.axes.items():
            for value in values:
                name = f"{axis}_{str(value).replace(' ', '_').replace('%', '_percent')}-seed{seed}"
                planned[name] = functools.partial(_cell, config, axis, value, seed)
    return finish_study(config, directory, planned, may_change=MAY_CHANGE, overwrite=overwrite)


def training_of(config: ConfigDict, axis: str, value: Any, seed: int) -> ConfigDict:
    """The configuration of one training."""
    one = default_swamp_config()
    one.update(config.base.to_dict())
    one.seed = seed
    if axis != BASE:
        one.swamp[axis] = value
    return one


def _validate(config):
    if not 0 <= config.sparse_from <= config.base.swamp.target_sparsity:
        raise UserError(f"sparse_from={config.sparse_from}: must be at least 0 and at most base.swamp.target_sparsity={config.base.swamp.target_sparsity}")
    for axis, values in config.axes.items():
        if axis not in config.base.swamp:
            raise UserError(f"axes.{axis}: base.swamp has no such field, give some of {', '.join(sorted(config.base.swamp))}")
        if config.base.swamp[axis] in values:
            raise UserError(f"axes.{axis}={tuple(values)}: {config.base.swamp[axis]!r} is the base's own, which is run anyway; leave it out")


def _cell(config, axis, value, seed, directory):
    setup = prepare(training_of(config, axis, value, seed))
    cell = {
        "axis": axis, "value": value, "base_value": None if axis == BASE else config.base.swamp[axis], "seed": seed,
        "num_train": setup.dataset.train.num_examples, "environment": environment(),
    }
    try:
        cycles = finished(swamp.run(setup, directory))["cycles"]
    except Diverged as error:
        return cell | {"levels": [], "epochs": None, "diverged": str(error)}
    levels = [
        {"sparsity": cycle["sparsity"], **{split: cycle["evaluation"][cycle["solution"]][split]["accuracy"] for split in ("validation", "test")}}
        for cycle in cycles
    ]
    return cell | {"levels": levels, "epochs": sum(cycle["particle_epochs"] for cycle in cycles), "diverged": None}
