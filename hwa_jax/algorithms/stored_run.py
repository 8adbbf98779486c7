"""A work directory read again: evaluated and exported, not trained, and not written to."""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from hwa_jax.algorithms import hwa, hwa_weights
from hwa_jax.errors import UserError
from hwa_jax.storage.checkpoint import CheckpointStore
from hwa_jax.storage.safetensors import save_weights
from hwa_jax.storage.window_store import WindowStore
from hwa_jax.training.config import default_config
from hwa_jax.training.predictor import description
from hwa_jax.training.setup import Setup, prepare
from hwa_jax.training.step import TrainState
from hwa_jax.training.weights import recalibrated
from hwa_jax.training.workdir import read_json

SPLITS = ("train", "validation", "test")

# Evaluation -> split -> metric -> value.
Metrics = dict[str, dict[str, dict[str, float]]]


class StoredRun(NamedTuple):
    """A training as its work directory has it.

    Attributes:
        setup: data, network and evaluator, laid out over the devices that are here.
        state: the newest whole checkpoint.
        window: of outer weights; may hold newer ones than `state`, which take no part.
        config: the stored configuration.
        environment: what it was trained with.
    """

    setup: Setup
    state: TrainState
    window: WindowStore
    config: dict[str, Any]
    environment: dict[str, Any]


def open_run(directory: str | os.PathLike) -> StoredRun:
    """Reads a work directory of `hwa.train`, finished or not; another process may be training in it.

    Raises:
        UserError: no work directory, not of HWA, no checkpoint yet, or the data are not what they were.
    """
    directory = pathlib.Path(directory)
    record = read_record(directory, "hwa")
    setup = prepare(for_evaluation(stored_config(directory, record["config"], default_config())))
    require_same_data(directory, setup, record["data_fingerprint"])
    restored = CheckpointStore(directory / "checkpoints").restore(like=jax.eval_shape(setup.initial_state))
    if restored is None:
        raise UserError(f"--workdir={directory}: has no checkpoint yet: train longer, or lower checkpoint.every")
    window = hwa.open_window(setup, directory)
    environment = read_json(directory / "environment.json") or {}
    return StoredRun(setup, setup.place(restored.tree), window, record["config"], environment)


def read_record(directory: pathlib.Path, algorithm: str) -> dict[str, Any]:
    """config.json of a work directory: {"config": ..., "data_fingerprint": ...}.

    Args:
        directory: the work directory.
        algorithm: "hwa" or "swamp"; whose program `directory` must be of.

    Raises:
        UserError: no work directory, or one of another program.
    """
    record, advice = read_json(directory / "config.json"), f"give the --workdir of experiments/train_{algorithm}.py"
    if record is None:
        raise UserError(f"--workdir={directory}: has no config.json: {advice}")
    if algorithm not in record.get("config", {}):
        raise UserError(f"--workdir={directory}: belongs to another program: {advice}")
    return record


def stored_config(directory: pathlib.Path, stored: dict[str, Any], default: ConfigDict) -> ConfigDict:
    """The configuration that a work directory holds.

    Args:
        directory: for the error.
        stored: the "config" of its config.json.
        default: of the algorithm, for what a run of an older version does not say; it is filled in.

    Raises:
        UserError: the file holds no configuration of the algorithm.
    """
    try:
        with default.unlocked():
            default.update(stored)
    except (TypeError, ValueError) as error:
        raise UserError(f"{directory / 'config.json'}: {error}: restore the file") from error
    return default


def require_same_data(directory: pathlib.Path, setup: Setup, fingerprint: str) -> None:
    """Raises a UserError unless the data are those of the run."""
    if setup.dataset.fingerprint != fingerprint:
        raise UserError(
            f"--workdir={directory}: the run was made with other data (fingerprint {fingerprint[:12]}, "
            f"now {setup.dataset.fingerprint[:12]}): restore the data"
        )


def finished_cycles(directory: pathlib.Path, cycle: int | None = None) -> tuple[dict[int, pathlib.Path], int]:
    """The finished cycles of a work directory of `swamp.train`, number -> its directory, and the one that is meant.

    Args:
        directory: the work directory.
        cycle: its number, from 0; None for the last one that is finished.

    Raises:
        UserError: none is finished, or not this one.
    """
    finished = {int(path.parent.name): path.parent for path in sorted(directory.glob("cycles/[0-9]*/metrics.json"))}
    if not finished:
        raise UserError(f"--workdir={directory}: has no finished cycle yet: train longer")
    if cycle is None:
        cycle = max(finished)
    if cycle not in finished:
        raise UserError(f"--cycle={cycle}: finished are {', '.join(map(str, finished))}: give one of them")
    return finished, cycle


def for_evaluation(config: ConfigDict) -> ConfigDict:
    """A configuration, of HWA or of a pruning, that prepares wherever there are devices, not only where it was trained."""
    config = config.copy_and_resolve_references()
    if "hwa" in config:
        config.num_devices, config.hwa.data_parallel = math.gcd(config.hwa.num_replicas, jax.device_count()), 1
    else:
        config.num_devices = min(config.num_devices, jax.device_count())
    config.init_from = ""  # the file may be gone, and the weights are here
    return config


def evaluate(run: StoredRun, weights: Sequence[str] = (), splits: Sequence[str] = ("validation",)) -> Metrics:
    """Metrics of the stored weights.

    Args:
        run: as `open_run` returns it.
        weights: some of "inner", "outer", "hwa" and, where the run keeps them, "ema" and "slow"; empty
            for all. At a synchronization, the last step often is one, the inner weights are equal.
        splits: some of `SPLITS`.

    Returns:
        "outer", "hwa", ..., "inner" (the mean over replicas), "inner 0", "inner 1", ... -> split -> metrics.

    Raises:
        UserError: weights that the run does not have, or an unknown split.
    """
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise UserError(f"--split={unknown[0]}: give some of {', '.join(SPLITS)}")
    kept = hwa_weights.all_weights(run.setup, run.state, hwa_weights.hwa_choice(run.setup, run.state, run.window))
    weights = weights or ("inner", *kept)
    _require_kept(weights, ("inner", *kept))
    metrics = {}
    for name in weights:
        metrics |= _inner(run, splits) if name == "inner" else {name: run.setup.evaluate(kept[name], splits)}
    return metrics


def export(run: StoredRun, path: str | os.PathLike, weights: str = "hwa") -> dict[str, Any]:
    """Writes one safetensors file of weights and BatchNorm statistics, which `load_predictor` reads.

    Args:
        run: as `open_run` returns it.
        path: of the file.
        weights: "outer", "hwa" or, where the run keeps them, "ema" and "slow".

    Returns:
        The metadata of the file: metrics on all splits, configuration, fingerprint, versions; what
        `hwa_jax.report.model_card.model_card` takes.

    Raises:
        UserError: weights that the run does not have, or that are one set per replica; or the disk is full.
    """
    if weights == "inner":
        raise UserError("--weights=inner: one set per replica: export outer, their mean, or hwa")
    setup, choice = run.setup, hwa_weights.hwa_choice(run.setup, run.state, run.window)
    kept = hwa_weights.all_weights(setup, run.state, choice)
    _require_kept([weights], kept)
    done = int(run.state.step)
    facts = {
        "weights": weights, "metrics": setup.evaluate(kept[weights], SPLITS),
        "config": published(run.config), "data_fingerprint": setup.dataset.fingerprint,
        "num_examples": {split: getattr(setup, split).num_examples for split in SPLITS},
        "steps": done, "epochs": done / setup.periods.epoch, "environment": run.environment,
        "window": [step for step in run.window.stored_steps if step <= done][-choice.window_size:] if choice else [],
        **(choice.facts if choice else {}), **description(setup),
    }
    save_weights(path, *kept[weights], facts)
    return facts


def published(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration without the directories of the machine that trained it."""
    return {**config, "init_from": os.path.basename(config["init_from"]), "data": {**config["data"], "data_dir": ""}}


def _require_kept(names, kept):
    for name in names:
        if name not in kept:
            raise UserError(f"--weights={name}: this run has {', '.join(kept)}")


def _inner(run, splits):
    setup, inner = run.setup, recalibrated(run.setup, run.state.params, run.state.batch_stats, stacked=True)
    by_split = {split: setup.evaluator.stacked(*inner, getattr(setup, split)) for split in splits}
    metrics = {"inner": {split: hwa_weights.average_metrics(replicas) for split, replicas in by_split.items()}}
    if setup.num_replicas > 1:
        metrics |= {f"inner {k}": {split: by_split[split][k] for split in splits} for k in range(setup.num_replicas)}
    return metrics
