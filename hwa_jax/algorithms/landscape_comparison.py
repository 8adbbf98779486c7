"""Where averages lie in the loss landscape, over architectures and seeds: claims H7 and S5.

Per architecture and seed two cells of figures. "hwa": a plain training and one of HWA from the same initial weights, with as many steps
per replica; both end one step before a synchronization, where the replicas differ. "swamp": a pruning whose cycles are looked at
one by one. The trainings themselves are deleted, only what the instruments of `hwa_jax.analysis.studies` say is kept.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from hwa_jax.algorithms import hwa, swamp
from hwa_jax.algorithms.cells import finish_study, new_study
from hwa_jax.algorithms.stored_weights import open_weights
from hwa_jax.analysis import studies
from hwa_jax.analysis.studies import Subject
from hwa_jax.errors import UserError
from hwa_jax.training import setup as training_setup
from hwa_jax.training import sparse_setup
from hwa_jax.training.config import default_config, default_swamp_config
from hwa_jax.training.environment import environment
from hwa_jax.training.interruption import finished
from hwa_jax.training.weights import recalibrated

MAY_CHANGE = ("title", "description", "seeds")


def default_study() -> ConfigDict:
    """All fields of the study; `base` is the configuration of HWA, `pruning` that of SWAMP.

    Example:
        >>> default_study().instruments.positions
        11
    """
    config = new_study("Averages in the loss landscape", base=default_config(), pruning=default_swamp_config())
    config.seeds = (0, 1, 2)
    # Name -> fields of "base", "pruning" and "instruments" that are its own.
    config.architectures = ConfigDict()
    config.instruments = ConfigDict({
        "examples": 1000,  # of the test split, its first ones: accuracies, segments and hull
        "curvature_examples": 500,  # of the training split
        "positions": 11,  # on each segment
        "hull_points": 50,
        "samples": 12,  # random vectors for trace and sharpness
        "iterations": 12,  # of Lanczos
    })
    config.levels = (0, 1, 2)  # the pruning's cycles that are looked at
    return config.lock()


def run(config: ConfigDict, directory: str | pathlib.Path, *, overwrite: bool = False) -> list[dict[str, Any]]:
    """Trains and measures what is missing and returns all cells; the same call continues.

    Args:
        config: as `default_study`.
        directory: of `cells/*.json`.
        overwrite: start over.

    Returns:
        One dictionary per study, architecture and seed: "study", "architecture", "seed", "num_train", "environment", and "levels", a list
        of one (HWA) or as many as `levels` (SWAMP) of {"cycle", "sparsity", "metrics" (name -> on the test split), "curvature",
        "connectivity", "hull"}, the last three as `hwa_jax.analysis.studies` returns them; "hull" is None for HWA.

    Raises:
        UserError: as `hwa.train` and `swamp.train`, or a field of the study does not fit.
        Interrupted: a signal stopped it.
    """
    _validate(config)
    planned = {
        f"{study}-{name}-seed{seed}": functools.partial(_cell, config, study, make, name, seed)
        for name in config.architectures for study, make in (("hwa", _hwa_levels), ("swamp", _swamp_levels)) for seed in config.seeds
    }
    return finish_study(config, directory, planned, may_change=MAY_CHANGE, overwrite=overwrite)


def _validate(config):
    if not config.architectures:
        raise UserError("architectures: the study needs at least one")
    for name, fields in config.architectures.items():
        if unknown := set(fields) - {"base", "pruning", "instruments"}:
            raise UserError(f"architectures.{name}.{min(unknown)}: give fields of base, pruning and instruments")


def _cell(config, study, make_levels, name, seed, directory):
    own = ConfigDict({key: config[key].to_dict() for key in ("base", "pruning", "instruments")})
    own.update(config.architectures[name])
    own.base.seed = own.pruning.seed = seed
    own.levels = config.levels
    num_train, levels = make_levels(own.lock(), directory)
    return {"study": study, "architecture": name, "seed": seed, "num_train": num_train, "environment": environment(), "levels": levels}


def _hwa_levels(config, directory):
    found = {}
    for name, num_replicas in (("plain", 1), ("hwa", config.base.hwa.num_replicas)):
        one = ConfigDict(config.base.to_dict())
        one.hwa.num_replicas = num_replicas
        setup = _for_few_test_examples(training_setup.prepare(one.lock()), config)
        finished(hwa.run(setup, directory / name))
        found[name] = open_weights(directory / name)
    # On the host: one replica was laid out over other devices than several are.
    plain, ours = jax.device_get(found["plain"].compared), found["hwa"].compared
    window = found["hwa"].corners
    subject = found["hwa"]._replace(
        compared={"plain": plain["outer"], "offline": plain["hwa"], "inner": ours["inner 0"], "outer": ours["outer"], "HWA": ours["hwa"]},
        # Ends of the segments: two replicas, and oldest and newest member of the window.
        corners={name: ours[name] for name in ("inner 0", "inner 1")},
        successive={name: window[name] for name in (next(iter(window)), next(reversed(window)))},
    )
    return subject.setup.train.num_examples, [_level(subject, config.instruments) | {"cycle": None, "sparsity": 0.0, "hull": None}]


def _swamp_levels(config, directory):
    setup = _for_few_test_examples(sparse_setup.prepare(config.pruning), config)
    results = finished(swamp.run(setup, directory))
    levels = []
    for cycle in config.levels:
        found = open_weights(directory, cycle)
        # The particles are exchangeable: the curvature of one of them stands for all.
        subject = found._replace(compared={name: found.compared[name] for name in ("particle 0", "average")}, successive={})
        split = _test_examples(subject, config.instruments)
        hull = studies.hull_study(subject, split, config.instruments.hull_points, 1.0, 0, _in_silence)
        levels.append(_level(subject, config.instruments) | {"cycle": cycle, "sparsity": results["cycles"][cycle]["sparsity"], "hull": hull})
    return setup.train.num_examples, levels


def _level(subject: Subject, instruments: ConfigDict) -> dict[str, Any]:
    """Metrics and curvature of the compared weights, segments between the corners and between successive weights."""
    split = _test_examples(subject, instruments)
    train = subject.setup.train.select(slice(instruments.curvature_examples))
    ends = subject._replace(compared=subject.corners)
    return {
        "metrics": {name: _metrics(subject, weights, split) for name, weights in subject.compared.items()},
        "curvature": studies.curvature_study(subject, train, instruments.samples, instruments.iterations, 0, _in_silence),
        "connectivity": studies.connectivity_study(ends, split, instruments.positions, _in_silence),
    }


def _metrics(subject, weights, split):
    return subject.setup.evaluator.one(*recalibrated(subject.setup, *weights), split)


def _test_examples(subject, instruments):
    return subject.setup.test.select(slice(instruments.examples))


def _for_few_test_examples(setup, config):
    """The same training, which evaluates no more test images at its end than are looked at here."""
    few = slice(config.instruments.examples)
    dataset = dataclasses.replace(setup.dataset, test=setup.dataset.test.select(few))
    return dataclasses.replace(setup, dataset=dataset, test=setup.test.select(few))


def _in_silence(pieces, _):
    return pieces
