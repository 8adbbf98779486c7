"""Tuning for `hwa_comparison`: rate and weight decay by validation accuracy, over one grid for all.

A comparison in which only plain training is tuned favours it: the constant rate at which one network does
best is lower than the one at which an average does.
"""

import itertools
import logging
import pathlib
import shutil
from typing import Any

from ml_collections import ConfigDict

from hwa_jax.algorithms import hwa
from hwa_jax.errors import Diverged, UserError
from hwa_jax.storage import atomic
from hwa_jax.training.interruption import finished
from hwa_jax.training.workdir import read_json

# What tuning trains, and for which of its weights it chooses.
_TUNED = {"plain": {"plain": "outer", "offline": "hwa"}, "hwa": {"hwa": "hwa"}}

_logger = logging.getLogger(__name__)


def tune(config: ConfigDict, directory: pathlib.Path) -> dict[str, dict[str, dict[str, float]]]:
    """Trains what is missing of the grid, point by point, into tuning.json; what `tuned` returns.

    A grid of one point is taken as it is.

    Raises:
        UserError: a seed is for tuning and for reporting.
    """
    shared = set(config.seeds) & set(config.tuning_seeds)
    if shared:
        raise UserError(f"tuning_seeds={tuple(config.tuning_seeds)}: {min(shared)} is also one of seeds, which are reported; choose another")
    path = directory / "tuning.json"
    stored = read_json(path) or {"grid": [], "chosen": {}}
    names = [name for found in _TUNED.values() for name in found]
    for optimizer, schedule in itertools.product(config.optimizers, config.schedules):
        settings = config.optimizers[optimizer]
        grid = list(itertools.product(settings.learning_rates, settings.weight_decays))
        key = f"{optimizer}/{schedule}"
        if len(grid) == 1:
            stored["chosen"][key] = {name: _fields(grid[0]) for name in names}
        while key not in stored["chosen"]:
            missing = _missing_points(stored["grid"], config, grid, optimizer, schedule)
            if missing:
                _logger.info("tuning, %d to go: %s", len(missing), missing[0])
                stored["grid"].append(missing[0] | _validation(config, missing[0], directory / "scratch"))
                atomic.write_json(path, stored)
                shutil.rmtree(directory / "scratch", ignore_errors=True)
            else:
                rows = [row for row in stored["grid"] if (row["optimizer"], row["schedule"]) == (optimizer, schedule)]
                stored["chosen"][key] = {name: _best(rows, name) for name in names}
            atomic.write_json(path, stored)
    atomic.write_json(path, stored)
    return stored["chosen"]


def tuned(directory: str | pathlib.Path) -> dict[str, Any]:
    """What tuning.json holds.

    Returns:
        "chosen": "optimizer/schedule" -> for whom -> learning rate and weight decay; "grid": every point with
        the validation accuracy of those it was trained for.
    """
    return read_json(pathlib.Path(directory) / "tuning.json")


def training_of(config: ConfigDict, kind: str, optimizer: str, schedule: str, seed: int) -> ConfigDict:
    """The configuration of one training of a comparison, at the rate and weight decay of its `base`."""
    one = ConfigDict(config.base.to_dict())
    one.seed, one.schedule.name, one.optimizer.name = seed, schedule, optimizer
    if kind != "hwa":
        one.hwa.update({"num_replicas": 1, "replica_weights": (), "replica_batch_sizes": (), "outer_optimizer": {"name": ""}})
    if kind in ("lookahead", "sam"):
        one.optimizer.wrapper = kind
    return one.lock()


def _missing_points(rows, config, grid, optimizer, schedule):
    points = [
        {"kind": kind, "optimizer": optimizer, "schedule": schedule, **_fields(point), "seed": seed}
        for kind, point, seed in itertools.product(_TUNED, grid, config.tuning_seeds)
    ]
    return [point for point in points if not any(point.items() <= row.items() for row in rows)]


def _fields(point):
    return dict(zip(("learning_rate", "weight_decay"), point))


def _validation(config, point, scratch):
    """For whom -> validation accuracy of one point of the grid; 0 where the training diverged."""
    one = training_of(config, point["kind"], point["optimizer"], point["schedule"], point["seed"])
    one.optimizer.update({name: point[name] for name in ("learning_rate", "weight_decay")})
    one.training.ema_decay = 0.0
    one.evaluation.every = one.training.duration
    try:
        results = finished(hwa.train(one, scratch / "-".join(map(str, point.values()))))
    except Diverged as error:
        return {name: 0.0 for name in _TUNED[point["kind"]]} | {"note": str(error)}
    return {name: results["final"][weights]["validation"]["accuracy"] for name, weights in _TUNED[point["kind"]].items()}


def _best(rows, name):
    """The rate and weight decay with the best mean accuracy over the tuning seeds."""
    accuracies = {}
    for row in rows:
        if name in row:
            accuracies.setdefault((row["learning_rate"], row["weight_decay"]), []).append(row[name])
    return _fields(max(accuracies, key=lambda point: sum(accuracies[point]) / len(accuracies[point])))
