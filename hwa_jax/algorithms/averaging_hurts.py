"""Trainings in which averaging is made to hurt on purpose, and what the watch over averages says of them.

A case is a change of the base configuration; a subject is a data set with its network, and a role: the thresholds of the
watch were looked at on subjects for "setting", and are judged on those for "judging". All trainings run with the watch;
what is true is measured afterwards on the test split, which the watch never sees, from the stored window. Some cases are
trained once more with one replica, which is offline averaging alone.
"""

import functools
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from hwa_jax.algorithms import hwa, hwa_weights, stored_run, window_choice
from hwa_jax.algorithms.cells import finish_study, new_study
from hwa_jax.analysis.connectivity import path_metrics
from hwa_jax.data import Split
from hwa_jax.errors import UserError
from hwa_jax.storage.json_lines import read_json_lines
from hwa_jax.storage.window_store import WindowStore
from hwa_jax.training.config import default_config
from hwa_jax.training.environment import environment
from hwa_jax.training.interruption import finished
from hwa_jax.training.setup import Setup, prepare
from hwa_jax.training.weights import Weights, recalibrated

ROLES = ("setting", "judging")
# Behind the name of a case: with one replica.
ALONE = " alone"

# Fields that only add or remove trainings, so that finished ones stay valid.
MAY_CHANGE = ("title", "description", "alone")


def default_study() -> ConfigDict:
    """All fields of the study; `base` is the configuration of one training.

    Example:
        >>> sorted(default_study().cases)
        ['apart', 'decay', 'early', 'healthy', 'long', 'stale']
    """
    config = new_study("When averaging hurts", base=default_config())
    config.base.evaluation.averaging_health = True
    # All members, so that other windows can be averaged afterwards.
    config.base.hwa.keep_pushes = 10**6
    config.subjects = ConfigDict()  # name -> {"role", "seeds", and groups of `base` with their fields}
    config.test_examples = 2000  # at most so many, the first of the test split
    config.positions = 11  # between the window's ends
    config.cases = ConfigDict({
        "healthy": {},
        # The window holds every push of a training that is still learning fast.
        "early": {"training": {"duration": "6.5 epochs"}, "optimizer": {"learning_rate": 0.01}, "hwa": {"window_size": 7}},
        # Later pushes alone, but the network is still learning.
        "long": {"optimizer": {"learning_rate": 0.002}, "hwa": {"window_size": 12, "offline_start": "3 epochs"}},
        # The rate falls before the network has settled, and the window reaches back to the high one.
        "decay": {
            "optimizer": {"learning_rate": 0.02}, "schedule": {"name": "step", "milestones": ("25%",), "factor": 0.1},
            "hwa": {"window_size": 17, "offline_start": "3 epochs"},
        },
        # The running statistics of the latest weights are left in place when the average is swapped in.
        "stale": {"model": {"norm": "batch"}, "optimizer": {"learning_rate": 0.2}, "hwa": {"window_size": 16}},
        # The replicas never meet before the end.
        "apart": {
            "training": {"duration": "14.5 epochs"}, "optimizer": {"learning_rate": 0.1}, "hwa": {"num_replicas": 4, "sync_period": "20 epochs"},
        },
    })
    config.alone = ("early", "long", "decay")  # cases that are trained with one replica too
    return config.lock()


def run(config: ConfigDict, directory: str | pathlib.Path, *, overwrite: bool = False) -> list[dict[str, Any]]:
    """Trains what is missing and returns all cells; the same call continues.

    Args:
        config: as `default_study`.
        directory: of `cells/*.json`, one training each.
        overwrite: start over.

    Returns:
        One dictionary per subject, "case" (with `ALONE` behind its name where there is one replica) and seed, with "pushes" (rows "health" of the
        log, and "test_gap", "test_gap_error", "test_stale_gap" beside them), "by_size" (gap on the test split by window length), "path"
        (between the window's ends), "accuracy" of latest, average, chosen average and the one with stale statistics on the test split, and "replicas", the
        last gap between mean and replicas.

    Raises:
        UserError: as `hwa.train`, or a field of the study does not fit.
        Interrupted: a signal stopped it.
    """
    _validate(config)
    cases = [*config.cases, *(f"{case}{ALONE}" for case in config.alone)]
    planned = {
        f"{subject}-{case.replace(' ', '_')}-seed{seed}": functools.partial(_cell, config, subject, case, seed)
        for subject, about in config.subjects.items() for seed in about.seeds for case in cases
    }
    return finish_study(config, directory, planned, may_change=MAY_CHANGE, overwrite=overwrite)


def training_of(config: ConfigDict, subject: str, case: str, seed: int) -> ConfigDict:
    """The configuration of one training of the study."""
    one = ConfigDict(config.base.to_dict())
    for fields in (config.subjects[subject], config.cases[case.removesuffix(ALONE)]):
        one.update({group: values for group, values in fields.items() if group not in ("role", "seeds")})
    if case.endswith(ALONE):
        one.hwa.num_replicas = 1
    one.seed = seed
    return one.lock()


def _validate(config):
    if not config.subjects or not config.base.evaluation.averaging_health:
        raise UserError("subjects, base.evaluation.averaging_health: the study needs a subject, and the watch to be on")
    for case in config.alone:
        if case not in config.cases:
            raise UserError(f"alone={case!r}: give some of {', '.join(config.cases)}")
    for name, about in config.subjects.items():
        if about.role not in ROLES:
            raise UserError(f"subjects.{name}.role={about.role!r}: give one of {', '.join(ROLES)}")
    seeds = {role: {seed for about in config.subjects.values() if about.role == role for seed in about.seeds} for role in ROLES}
    if shared := seeds["setting"] & seeds["judging"]:
        raise UserError(f"subjects: seed {min(shared)} is for setting thresholds and for judging them; choose another")


class _Finished(NamedTuple):
    """A training that has finished, and the images that say what is true."""

    setup: Setup
    window: WindowStore
    split: Split


def _cell(config, subject, case, seed, directory):
    setup = prepare(training_of(config, subject, case, seed))
    finished(hwa.run(setup, directory))
    rows = [row for row in read_json_lines(directory / "metrics.jsonl") if row["kind"] == "health"]
    with hwa.open_window(setup, directory) as window:
        done = _Finished(setup, window, setup.test.select(slice(config.test_examples)))
        size, total = setup.config.hwa.window_size, setup.periods.total
        pushes = [row | _truth(done, size, row["step"]) for row in rows]
        sizes = window_choice.candidates(len(window.stored_steps))
        by_size = [{"window_size": size, "test_gap": _gap(done, size, total)[0]} for size in sizes]
        # On validation, as `hwa.window_size="auto"` chooses among all members.
        best = max(sizes, key=lambda size: _quality(done, size, total))
        weights = {name: _average(done, members, total) for name, members in (("latest", 1), ("average", size), ("chosen", best))}
        weights["stale"] = _with_stale_statistics(done, weights["average"], total)
        accuracy = {name: setup.evaluator.one(*these, done.split)["accuracy"] for name, these in weights.items()}
        path = _path(done, size, config.positions)
    return {
        "subject": subject, "role": config.subjects[subject].role, "case": case, "seed": seed,
        "num_train": setup.train.num_examples, "environment": environment(), "window_size": size, "chosen": best,
        "pushes": pushes, "by_size": by_size, "path": path, "accuracy": accuracy, "replicas": _replicas(done, directory),
    }


def _average(done, size, upto):
    return recalibrated(done.setup, *done.window.mean(size=size, upto=upto))


def _gap(done, size, upto):
    """Loss of the average of `size` members minus that of the newest, nats, and its standard error."""
    ours, latest = (done.setup.evaluator.examples(*_average(done, size, upto), done.split)[0] for size in (size, 1))
    return float((ours - latest).mean()), float((ours - latest).std(ddof=1) / math.sqrt(len(ours)))


def _truth(done, size, upto):
    gap, error = _gap(done, size, upto)
    found = {"test_gap": gap, "test_gap_error": error, "test_stale_gap": None}
    fresh = _average(done, size, upto)
    if fresh.batch_stats:
        stale = _with_stale_statistics(done, fresh, upto)
        with_stale, with_fresh = (done.setup.evaluator.one(*weights, done.split)["nll"] for weights in (stale, fresh))
        found["test_stale_gap"] = with_stale - with_fresh
    return found


def _quality(done, size, upto):
    metrics = done.setup.evaluator.one(*_average(done, size, upto), done.setup.validation)
    return metrics["accuracy"], -metrics["nll"]


def _with_stale_statistics(done, average, upto):
    """The running statistics of the latest weights instead of its own."""
    return average._replace(batch_stats=done.window.mean(size=1, upto=upto).batch_stats)


def _path(done, size, num_positions):
    """Loss and error on the test split between the oldest and the newest member of the last window."""
    members = done.window.stored_steps[-size:]
    ends = [Weights(*done.window.member(step)) for step in (members[0], members[-1])]
    path = path_metrics(done.setup, *ends, done.split, np.linspace(0, 1, num_positions))
    return {"position": path.positions.tolist(), "loss": path.loss.tolist(), "error": path.error.tolist()}


def _replicas(done, directory):
    """Loss of the outer weights minus the mean of the replicas' at the end, nats; None where the last step made them equal."""
    if done.setup.num_replicas == 1 or done.setup.periods.total % done.setup.periods.sync == 0:
        return None
    run = stored_run.open_run(directory)
    replicas = recalibrated(run.setup, run.state.params, run.state.batch_stats, stacked=True)
    # The stored run lies on devices of its own.
    split = run.setup.test.select(slice(done.split.num_examples))
    inner = np.mean([metrics["nll"] for metrics in run.setup.evaluator.stacked(*replicas, split)])
    outer = recalibrated(run.setup, *hwa_weights.outer_weights(run.setup, run.state))
    return float(run.setup.evaluator.one(*outer, split)["nll"] - inner)
