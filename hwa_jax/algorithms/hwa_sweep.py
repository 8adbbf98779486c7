"""How HWA depends on K, H, I, the stride of its window, the start of offline averaging and the schedule.

K, H and schedule need a training each; I, stride and start are swept afterwards from the stored window, at no training
cost. At the end of a training, averaging from a start on is averaging the last I pushes, so one family of windows serves both.
"""

import functools
import itertools
import pathlib
from typing import Any

from ml_collections import ConfigDict

from hwa_jax.algorithms import hwa, window_choice
from hwa_jax.algorithms.cells import finish_study, new_study
from hwa_jax.errors import Diverged, UserError
from hwa_jax.training.config import default_config
from hwa_jax.training.duration import Duration
from hwa_jax.training.environment import environment
from hwa_jax.training.interruption import finished
from hwa_jax.training.setup import prepare
from hwa_jax.training.weights import recalibrated

# Fields that only add or remove trainings, so that finished ones stay valid.
MAY_CHANGE = ("title", "description", "seeds", "num_replicas", "sync_periods", "schedules")


def default_sweep() -> ConfigDict:
    """All fields of a sweep; `base` is the configuration of one training.

    Example:
        >>> default_sweep().num_replicas
        (1, 2, 4)
    """
    config = new_study("Sweep of HWA", base=default_config())
    # All members, so that other windows can be averaged afterwards.
    config.base.hwa.keep_pushes = 10**6
    config.seeds = (0, 1, 2)
    config.num_replicas = (1, 2, 4)
    config.sync_periods = ("1 step", "10 steps", "1 epoch", "5 epochs")  # a push every epoch, or every H where that is longer
    config.schedules = ("constant", "cosine")
    config.strides = (1, 2, 4)
    config.starts = ("0%", "25%", "50%", "75%")  # of offline averaging
    return config.lock()


def run(config: ConfigDict, directory: str | pathlib.Path, *, overwrite: bool = False) -> list[dict[str, Any]]:
    """Trains what is missing and returns all cells; the same call continues.

    Args:
        config: as `default_sweep`.
        directory: of `cells/*.json`, one training each.
        overwrite: start over.

    Returns:
        One dictionary per training: "num_replicas", "sync_period" and "push_period" (steps), "schedule", "seed", "num_train", "epochs",
        "bytes_communicated", "seconds", "environment"; "windows", a list of {"window_size", "stride", "accuracy", "nll"} on the validation
        split; "starts", start -> stride -> window size; and "test", the accuracy of "outer", "base" (the base's I) and "chosen" (the window
        with the best validation accuracy). Without windows, and with the reason in "diverged", where it diverged.

    Raises:
        UserError: as `hwa.train`, or a field of the sweep does not fit.
        Interrupted: a signal stopped it.
    """
    _validate(config)
    planned = {}
    for seed, schedule, num_replicas in itertools.product(config.seeds, config.schedules, config.num_replicas):
        # One replica synchronizes with nobody.
        for period in config.sync_periods if num_replicas > 1 else ("1 epoch",):
            name = f"k{num_replicas}-h{period.replace(' ', '_')}-{schedule}-seed{seed}"
            planned[name] = functools.partial(_cell, config, training_of(config, num_replicas, period, schedule, seed))
    return finish_study(config, directory, planned, may_change=MAY_CHANGE, overwrite=overwrite)


def training_of(config: ConfigDict, num_replicas: int, sync_period: str, schedule: str, seed: int) -> ConfigDict:
    """The configuration of one training; H in epochs is pushed itself if it is longer than an epoch."""
    one = ConfigDict(config.base.to_dict())
    period = Duration.parse(sync_period, "sync_periods")
    is_long = period.unit == "epochs" and period.value > 1
    one.seed, one.schedule.name = seed, schedule
    one.hwa.update({"num_replicas": num_replicas, "sync_period": sync_period, "push_every": "" if is_long else "1 epoch"})
    return one.lock()


def _validate(config):
    for field in ("seeds", "num_replicas", "sync_periods", "schedules", "strides", "starts"):
        if not len(config[field]):
            raise UserError(f"{field}=(): give at least one")
    if config.base.hwa.keep_pushes < 10**6:
        raise UserError(f"base.hwa.keep_pushes={config.base.hwa.keep_pushes}: windows are swept over all pushes, give 1000000")
    if type(config.base.hwa.window_size) is not int:
        raise UserError(f"base.hwa.window_size={config.base.hwa.window_size!r}: the sweep compares it with the best one, give a number")
    if 1 not in config.strides or any(type(stride) is not int or stride < 1 for stride in config.strides):
        raise UserError(f"strides={tuple(config.strides)}: give whole numbers of at least 1, and 1 among them")
    for start in config.starts:
        if Duration.parse(start, "starts").unit != "percent":
            raise UserError(f"starts={start!r}: give a share of the training, 25% for example")


def _cell(config, training, directory):
    setup = prepare(training)
    cell = {
        "num_replicas": setup.num_replicas, "sync_period": setup.periods.sync, "push_period": setup.periods.push,
        "schedule": training.schedule.name, "seed": training.seed, "num_train": setup.train.num_examples,
        "epochs": setup.periods.total / setup.periods.epoch, "environment": environment(),
    }
    try:
        results = finished(hwa.run(setup, directory))
    except Diverged as error:
        return cell | {"diverged": str(error), "windows": []}
    with hwa.open_window(setup, directory) as window:
        return cell | {
            "bytes_communicated": results["bytes_communicated"], "seconds": results["seconds"]["training"], "diverged": None,
            **_swept(setup, window, config),
        }


def _swept(setup, window, config):
    """Every window of the stored members on the validation split, and three of them on the test split."""
    steps, total = window.stored_steps, setup.periods.total
    starts = {
        start: {str(stride): -(-sum(step > Duration.parse(start).steps(setup.periods.epoch, total) for step in steps) // stride) for stride in config.strides}
        for start in config.starts
    }
    windows, best = [], None
    for stride in config.strides:
        sizes = set(window_choice.candidates(-(-len(steps) // stride))) | {sizes[str(stride)] for sizes in starts.values()}
        for size in sorted(sizes - {0}):
            weights = recalibrated(setup, *window.mean(size=size, stride=stride))
            metrics = setup.evaluator.one(*weights, setup.validation)
            windows.append({"window_size": size, "stride": stride, "accuracy": metrics["accuracy"], "nll": metrics["nll"]})
            quality = (metrics["accuracy"], -metrics["nll"])
            if best is None or quality > best[0]:
                best = (quality, weights)
    base = recalibrated(setup, *window.mean(size=setup.config.hwa.window_size))
    outer = recalibrated(setup, *window.mean(size=1))
    test = {name: setup.evaluator.one(*weights, setup.test)["accuracy"] for name, weights in (("outer", outer), ("base", base), ("chosen", best[1]))}
    return {"windows": windows, "starts": starts, "test": test}
