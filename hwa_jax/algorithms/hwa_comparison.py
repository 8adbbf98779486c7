"""HWA beside what it is made of and what it competes with, over seeds: the trainings and their figures.

One training serves several methods. With E epochs and K replicas:

    plain       K=1, E epochs: the plain optimizer
    offline     K=1, E epochs: EMA (with `base.training.ema_decay`), and two offline averages; the same training
                as plain where tuning chose the same rate and weight decay for both
    hwa         K replicas, E epochs: online averaging (the outer weights) and HWA
    lookahead   K=1, E epochs
    sam         K=1, E epochs, two gradients per step
    plain_xk, offline_xk    as plain and offline, with K·E epochs: HWA's compute

Rate and weight decay are tuned on the validation split, on seeds that are not reported, over one grid for
plain training (its last weights), offline averaging (the window average of the same trainings) and HWA;
Lookahead and SAM take plain training's.

A training's figures are one JSON file, written when it has finished; a finished one is not run again.
"""

import functools
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hwa_jax.algorithms.cells import finish_groups, new_study
from hwa_jax.algorithms.hwa_cells import EARLIER, Trajectory, algorithm
from hwa_jax.algorithms.hwa_tuning import training_of, tune
from hwa_jax.errors import UserError
from hwa_jax.training.config import default_config, validate
from hwa_jax.training.duration import Duration
from hwa_jax.training.setup import prepare
from hwa_jax.training.together import most_seeds, together
from hwa_jax.training.workdir import Workdir, read_json

# Rows of a report tell these apart, for the online average as for HWA.
_TOLD_APART = {"num_replicas", "sync_period", "sync_dtype", "outer_optimizer", "optimizer_state", "replica_weights", "replica_batch_sizes"}
_VARIABLE = {*_TOLD_APART, "push_every", "window_size"}

# Fields that only add or remove trainings, so that finished ones stay valid.
MAY_CHANGE = ("title", "description", "seeds", "seeds_at_once", "schedules", "trajectories", "train_sizes")


class _Kind(NamedTuple):
    weights: dict[str, str]
    comparison: str
    tuned_for: str
    gradients: int = 1


_PLAIN = {"plain": "outer"}
_OFFLINE = {"ema": "ema", "offline_window": "hwa", "offline_uniform": "uniform"}
_KINDS = {
    "plain": _Kind(_PLAIN, "equal_steps", "plain"),
    "plain_xk": _Kind(_PLAIN, "equal_compute", "plain"),
    "offline": _Kind(_OFFLINE, "equal_steps", "offline"),
    "offline_xk": _Kind(_OFFLINE, "equal_compute", "offline"),
    "hwa": _Kind({"online": "outer", "hwa": "hwa"}, "both", "hwa"),
    "lookahead": _Kind({"lookahead": "slow"}, "equal_steps", "plain"),
    "sam": _Kind({"sam": "outer"}, "both", "plain", gradients=2),
}
def default_comparison() -> ConfigDict:
    """All fields of a comparison; `base` is the configuration of one training.

    Example:
        >>> default_comparison().trajectories
        ('plain', 'plain_xk', 'offline', 'offline_xk', 'hwa', 'lookahead', 'sam')
    """
    config = new_study("Comparison", base=default_config())
    config.seeds = (0, 1, 2, 3, 4)
    config.seeds_at_once = 0  # trained as one program; 0: one on a CPU, elsewhere all, if the memory holds them
    config.tuning_seeds = (100,)  # never reported
    config.optimizers = ConfigDict({
        "sgd": ConfigDict({"learning_rates": (0.01, 0.03, 0.1), "weight_decays": (0.0, 5e-4)}),
        "adamw": ConfigDict({"learning_rates": (0.0005, 0.001, 0.003), "weight_decays": (0.0, 0.05)}),
    })
    config.schedules = ("constant", "cosine")
    config.trajectories = tuple(_KINDS)
    config.uniform_start = "50%"  # where the uniform offline average begins
    config.studied = ConfigDict({"optimizer": "sgd", "schedule": "constant"})  # of the two studies that follow
    config.variants = ConfigDict()  # further settings of HWA: name -> fields of `base.hwa`
    config.train_sizes = ()  # further data.num_train, for plain, plain_xk and hwa
    return config.lock()


def run(config: ConfigDict, directory: str | pathlib.Path, *, overwrite: bool = False) -> list[dict[str, Any]]:
    """Tunes, trains what is missing, and returns all cells; the same call continues.

    Args:
        config: as `default_comparison`.
        directory: `cells/*.json` are the finished trainings, `tuning.json` the grid and the choice;
            `scratch/` holds the trainings that are running.
        overwrite: start over.

    Returns:
        One dictionary per method and seed; `hwa_jax.report.comparison` says which keys it has.

    Raises:
        UserError: as `hwa.train`, or a field of the comparison does not fit.
        Interrupted: a signal stopped it.
    """
    _validate(config)
    with Workdir(directory, config, "", overwrite=overwrite, may_change=MAY_CHANGE) as workdir:
        workdir.record()
        planned = {one.name: one for one in trajectories(config, tune(config, workdir.path))}
        finish_groups(workdir.path, _groups(config, planned), functools.partial(_train_together, config, planned))
        return [cell for name in planned for cell in read_cells(workdir.path / "cells" / f"{name}.json")]


def read_cells(path: pathlib.Path) -> list[dict[str, Any]]:
    """The cells of one finished training, a file of `cells/`; those of an earlier version had fewer settings."""
    return [{**EARLIER, **cell} for cell in read_json(path)]


def _validate(config):
    if config.seeds_at_once < 0:
        raise UserError(f"seeds_at_once={config.seeds_at_once}: must be at least 0")
    unknown = [name for name in config.trajectories if name not in _KINDS]
    if unknown:
        raise UserError(f"trajectories={unknown[0]!r}: give some of {', '.join(_KINDS)}")
    if config.studied.optimizer not in config.optimizers or config.studied.schedule not in config.schedules:
        raise UserError(f"studied={config.studied.to_dict()}: must be one of optimizers and one of schedules")
    for name, fields in config.variants.items():
        if not _TOLD_APART & set(fields) or set(fields) - _VARIABLE:
            raise UserError(f"variants.{name}={dict(fields)}: must change one of {', '.join(sorted(_TOLD_APART))}, and may change push_every and window_size")


def trajectories(config: ConfigDict, chosen: dict[str, dict[str, dict[str, float]]]) -> Iterator[Trajectory]:
    """All trainings of a comparison, in the order of its cells, seed by seed.

    Args:
        config: of the comparison.
        chosen: as `tuned` returns it.
    """
    for seed in config.seeds:
        for optimizer, schedule in itertools.product(config.optimizers, config.schedules):
            for kind in config.trajectories:
                yield from _trajectory(config, chosen, kind, optimizer, schedule, seed)
        optimizer, schedule = config.studied.optimizer, config.studied.schedule
        for variant in config.variants:
            yield from _trajectory(config, chosen, "hwa", optimizer, schedule, seed, variant=variant)
        for size in config.train_sizes:
            for kind in ("plain", "plain_xk", "hwa"):
                yield from _trajectory(config, chosen, kind, optimizer, schedule, seed, num_train=size)


def _trajectory(config, chosen, kind, optimizer, schedule, seed, *, variant=None, num_train=None):
    """The training of a kind; none where another one serves its methods too."""
    settings = chosen[f"{optimizer}/{schedule}"]
    weights, comparison, tuned_for, gradients = _KINDS[kind]
    if settings["plain"] == settings["offline"] and num_train is None:
        if weights is _OFFLINE and kind.replace("offline", "plain") in config.trajectories:
            return
        if weights is _PLAIN and kind.replace("plain", "offline") in config.trajectories:
            weights = _PLAIN | _OFFLINE
    one = training_of(config, kind, optimizer, schedule, seed)
    one.optimizer.update(settings[tuned_for])
    if not one.training.ema_decay:
        weights = {method: name for method, name in weights.items() if name != "ema"}
    if "ema" not in weights:
        one.training.ema_decay = 0.0
    if "offline_uniform" in weights:
        # The uniform average is taken over the stored window.
        one.hwa.keep_pushes = 10**6
    name = f"{kind}-{optimizer}-{schedule}-seed{seed}"
    if comparison == "equal_compute":
        one.training.duration = Duration.parse(one.training.duration).times(config.base.hwa.num_replicas)
    if variant is not None:
        one.hwa.update(config.variants[variant])
        name += f"-{variant}"
    if num_train is not None:
        one.data.num_train = num_train
        name += f"-n{num_train}"
    yield Trajectory(name, one, weights, comparison, gradients)


def _groups(config, planned):
    """Names of trainings that differ in nothing but the seed, of `seeds_at_once` seeds after the other."""
    size = most_seeds(config.seeds_at_once, len(config.seeds))
    block = {seed: number // size for number, seed in enumerate(config.seeds)}
    groups = {}
    for name, one in planned.items():
        fields = one.config.to_dict() | {"seed": None}
        groups.setdefault((block[one.config.seed], json.dumps(fields, sort_keys=True)), []).append(name)
    return list(groups.values())


def _train_together(config, planned, names, scratch):
    """The cells of a group."""
    for name in names:
        validate(planned[name].config)
    setup = prepare(planned[names[0]].config)
    return together([
        functools.partial(algorithm, planned[name], setup.with_seed(planned[name].config.seed), scratch, config.uniform_start)
        for name in names
    ])
