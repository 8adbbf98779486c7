"""The figures of one training of a comparison of HWA: a cell for every method that it serves."""

import logging
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hwa_jax.algorithms import hwa
from hwa_jax.errors import Diverged, UserError
from hwa_jax.storage import json_lines
from hwa_jax.training.duration import Duration
from hwa_jax.training.environment import environment
from hwa_jax.training.interruption import finished
from hwa_jax.training.setup import Setup
from hwa_jax.training.together import Algorithm
from hwa_jax.training.weights import recalibrated

# Settings that cells of earlier versions do not name.
EARLIER = {"averaging": None, "replica_batch_sizes": None}

_logger = logging.getLogger(__name__)


class Trajectory(NamedTuple):
    """One training and the methods that it serves.

    Attributes:
        name: unique; of its files.
        config: of the training.
        weights: method -> the weights of the training that it evaluates.
        comparison: "equal_steps", "equal_compute" or "both", as in a cell of the report.
        gradients: per step.
    """

    name: str
    config: ConfigDict
    weights: dict[str, str]
    comparison: str
    gradients: int = 1


def algorithm(trajectory: Trajectory, setup: Setup, scratch: pathlib.Path, uniform_start: str) -> Algorithm[list[dict[str, Any]]]:
    """Trains, and returns the cells; without figures where the training diverged.

    Args:
        trajectory: what to train.
        setup: its pieces.
        scratch: where its work directory is made.
        uniform_start: a duration, after which the uniform average begins.

    Raises:
        UserError: as `hwa.train`.
        Interrupted: a signal stopped it; the same again continues.
    """
    directory = scratch / trajectory.name
    try:
        results = finished((yield from hwa.algorithm(setup, directory)))
    except Diverged as error:
        _logger.warning("%s: %s", trajectory.name, error)
        return [_cell(setup, trajectory, _no_results(setup), method, _NO_FIGURES) for method in trajectory.weights]
    figures = _figures(setup, directory, results)
    if "uniform" in trajectory.weights.values():
        start = Duration.parse(uniform_start, "uniform_start").steps(setup.periods.epoch, setup.periods.total)
        figures["uniform"] = _uniform_figures(setup, directory, start)
    cells = [_cell(setup, trajectory, results, method, figures[name]) for method, name in trajectory.weights.items()]
    return cells


# Of a training that diverged: null, which the report counts as such.
_NOTHING = {"accuracy": None, "nll": None, "ece": None}
_NO_FIGURES = {"train": _NOTHING, "validation": _NOTHING, "test": _NOTHING, "curve": []}


def _no_results(setup):
    epochs = setup.periods.total / setup.periods.epoch
    return {"epochs": epochs, "bytes_communicated": None, "synchronizations": None, "seconds": {"training": None}}


def _figures(setup, directory, results):
    """Weights -> final metrics and validation curve."""
    rows = [row for row in json_lines.read_json_lines(directory / "metrics.jsonl") if row["kind"] == "evaluation"]
    return {
        name: {**final, "curve": [
            _point(setup, row["step"], row) for row in rows if (row["weights"], row["split"]) == (name, "validation")
        ]}
        for name, final in results["final"].items()
    }


def _point(setup, step, metrics):
    return {"step": step, "epoch": step / setup.periods.epoch, "accuracy": metrics["accuracy"], "nll": metrics["nll"]}


def _uniform_figures(setup, directory, start):
    """The uniform average of the stored weights after `start` steps: no training of its own."""
    with hwa.open_window(setup, directory) as window:
        steps = [step for step in window.stored_steps if step > start]
        if not steps:
            raise UserError(f"uniform_start={start} steps: nothing is pushed after it; start earlier")
        curve = []
        for number, step in enumerate(steps, 1):
            if step % setup.periods.evaluation == 0 or step == steps[-1]:
                weights = recalibrated(setup, *window.mean(size=number, upto=step))
                curve.append(_point(setup, step, setup.evaluator.one(*weights, setup.validation)))
    return {**setup.evaluate(weights), "curve": curve}


def _cell(setup, trajectory, results, method, figures):
    config, epochs = setup.config, results["epochs"]
    averaged = method in ("hwa", "online", "offline_window", "offline_uniform")
    return {
        "method": method, "optimizer": config.optimizer.name, "schedule": config.schedule.name,
        "comparison": trajectory.comparison, "seed": config.seed, "num_train": setup.dataset.train.num_examples,
        "num_replicas": config.hwa.num_replicas,
        "sync_period": setup.periods.sync if averaged else None,
        "averaging": _averaging(config.hwa) if method in ("hwa", "online") else None,
        "replica_batch_sizes": _joined(config.hwa.replica_batch_sizes) if method in ("hwa", "online") else None,
        "window_size": config.hwa.window_size if method in ("hwa", "offline_window") else None,
        "epochs_per_replica": epochs, "compute_epochs": epochs * config.hwa.num_replicas * trajectory.gradients,
        "bytes_communicated": results["bytes_communicated"], "synchronizations": results["synchronizations"],
        "seconds": results["seconds"]["training"], "environment": environment(),
        "learning_rate": config.optimizer.learning_rate, "weight_decay": config.optimizer.weight_decay, **figures,
    }


def _averaging(fields):
    """What is special about the online average, for the report; None if nothing."""
    outer, special = fields.outer_optimizer, []
    if fields.sync_dtype:
        special.append(fields.sync_dtype)
    if outer.name:
        momentum = f" {'Nesterov' if outer.nesterov else 'momentum'} {outer.momentum:g}" if outer.name == "sgd" and outer.momentum else ""
        special.append(f"outer {outer.name} {outer.learning_rate:g}{momentum}")
    if fields.replica_weights:
        special.append(f"weights {_joined(fields.replica_weights)}")
    if fields.optimizer_state != "local":
        special.append(f"optimizer state: {fields.optimizer_state}")
    return ", ".join(special) or None


def _joined(numbers):
    return ":".join(f"{number:g}" for number in numbers) or None
