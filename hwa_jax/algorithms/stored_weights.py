"""The weights that a work directory holds, of HWA or of a pruning, arranged for the instruments of `hwa_jax.analysis`."""

import os
import pathlib

from hwa_jax import particles
from hwa_jax.algorithms import hwa_weights, stored_run
from hwa_jax.algorithms.cycle_files import read_metrics
from hwa_jax.analysis.studies import Subject
from hwa_jax.errors import UserError
from hwa_jax.online import is_synchronization_step
from hwa_jax.storage.sparse_weights import load_sparse_weights
from hwa_jax.training.config import default_swamp_config
from hwa_jax.training.sparse_setup import prepare
from hwa_jax.training.weights import Weights
from hwa_jax.training.workdir import read_json


def open_weights(directory: str | os.PathLike, cycle: int | None = None) -> Subject:
    """Reads a work directory of experiments/train_hwa.py or experiments/train_swamp.py; writes nothing.

    Of HWA: the window, and beside its oldest member the outer weights, HWA and the run's other averages, and the
    replicas where they are not at a synchronization. Of a pruning: the particles of one cycle with their average, and
    what every cycle found.

    Args:
        directory: the work directory, finished or not.
        cycle: of a pruning, from 0; None for the last one that is finished.

    Raises:
        UserError: no work directory of these programs, nothing in it yet, other data, or no such cycle.
    """
    directory = pathlib.Path(directory)
    record = read_json(directory / "config.json")
    if record is not None and "swamp" in record.get("config", {}):
        return _of_pruning(directory, record, cycle)
    if cycle is not None:
        raise UserError(f"--cycle={cycle}: belongs to a work directory of experiments/train_swamp.py: leave it out")
    return _of_hwa(directory)


def _of_hwa(directory):
    run = stored_run.open_run(directory)
    setup, state, done = run.setup, run.state, int(run.state.step)
    steps = [step for step in run.window.stored_steps if step <= done]
    if not steps:
        raise UserError(f"--workdir={directory}: its window is empty after step {done}: train longer, or lower hwa.offline_start")
    members = {f"step {step}": Weights(*run.window.member(step)) for step in steps}
    choice = hwa_weights.hwa_choice(setup, state, run.window)
    averaged = dict(list(members.items())[-choice.window_size:])
    compared = hwa_weights.all_weights(setup, state, choice)
    if setup.num_replicas > 1 and not is_synchronization_step(done, setup.periods.sync, setup.periods.sync_start):
        inner = particles.unstack(Weights(state.params, state.batch_stats))
        compared |= {f"inner {k}": one for k, one in enumerate(inner)}
    first, last = list(averaged)[0], list(averaged)[-1]
    return Subject(
        title=f"HWA, step {done} of {setup.periods.total}", environment=run.environment, setup=setup,
        compared={first: averaged[first], **compared}, successive=members, corners=averaged,
        plane={first: averaged[first], last: averaged[last], "hwa": compared["hwa"]}, centre="hwa", mask=None, masks_differ=False,
    )


def _of_pruning(directory, record, cycle):
    config = stored_run.stored_config(directory, record["config"], default_swamp_config())
    setup = prepare(stored_run.for_evaluation(config))
    stored_run.require_same_data(directory, setup, record["data_fingerprint"])
    cycles, cycle = stored_run.finished_cycles(directory, cycle)
    metrics = {number: read_metrics(path) for number, path in cycles.items()}
    found = {f"cycle {number}": _load(path / f"{metrics[number]['solution']}.safetensors")[0] for number, path in cycles.items()}
    average, mask = _load(cycles[cycle] / "average.safetensors")
    files = [cycles[cycle] / f"particle_{n}.safetensors" for n in range(metrics[cycle]["num_particles"])]
    corners = {f"particle {n}": _load(file)[0] for n, file in enumerate(files) if file.exists()}
    spanning = list(corners.items())[:3] if len(corners) > 2 else list(found.items())[-3:]
    return Subject(
        title=f"Pruning, cycle {cycle} of {max(cycles)}, {metrics[cycle]['sparsity']:.1%} pruned",
        environment=read_json(directory / "environment.json") or {}, setup=setup,
        compared={**corners, "average": average}, successive=found,
        corners=corners or {"average": average},
        plane=dict(spanning), centre="average", mask=mask, masks_differ=True,
    )


def _load(path):
    params, batch_stats, mask = load_sparse_weights(path)
    return Weights(params, batch_stats), mask
