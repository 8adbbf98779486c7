"""SWAMP that dies in every phase of a cycle: the same command again ends where an uninterrupted run ends."""

import json
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from hwa_jax.algorithms.pruning_run import PruningRun
from hwa_jax.errors import UserError
from hwa_jax.storage import atomic
from hwa_jax.storage.checkpoint import CheckpointStore
from hwa_jax.training import loop
from hwa_jax.training.session import Session
from killed_training import Child, watched_command
from pruning_runs import SMALL_PRUNING, prune
from training_runs import compilation_cache_dir, compiled_once, listing, rows  # noqa: F401

# A small part of everything: statistics to average, a gate, averages over time, checkpoints that lie between two logs.
FIELDS = {
    **SMALL_PRUNING, "training.duration": "5 steps", "swamp.swa_start": "1 steps", "swamp.gate_fraction": 0.1, "model.norm": "batch",
    "checkpoint.every": "2 steps", "logging.every": "3 steps", "logging.tensorboard": True, "swamp.averaging": "when_safe",
}
# "weights" is a file of the average or of one particle.
PHASES = ("epoch", "step", "collect", "log", "checkpoint", "checkpoints commit", "checkpoints eviction", "weights", "store", "prune", "finish")


def assert_same_run(mine, theirs):
    cycles = sorted(path.name for path in (theirs / "cycles").iterdir())
    files = {path.relative_to(theirs) for path in theirs.rglob("*.safetensors")}
    # In each cycle the average and two particles, and the final network.
    assert {path.relative_to(mine) for path in mine.rglob("*.safetensors")} == files and len(files) == 3 * len(cycles) + 1
    for path in files:
        assert (mine / path).read_bytes() == (theirs / path).read_bytes(), path
    for cycle in cycles:
        metrics = [json.loads((run / "cycles" / cycle / "metrics.json").read_text()) for run in (mine, theirs)]
        # A checksum of all, seconds included.
        assert {**metrics[0], "seconds": 0, "checksum": 0} == {**metrics[1], "seconds": 0, "checksum": 0}
    tickets = [CheckpointStore(run / "ticket").restore().tree for run in (mine, theirs)]
    jax.tree.map(np.testing.assert_array_equal, *tickets)
    assert rows(mine) == rows(theirs)
    assert not (mine / "checkpoints").exists()


class Died(BaseException):
    """The process is gone, as far as this one can act it."""


def dying(function, after, *, done):
    """`function`, until its call number `after`, from 0: that one dies, before its work or once it is done."""
    calls = iter(range(10**6))

    def call(*args, **keywords):
        dies = next(calls) == after
        if dies and not done:
            raise Died
        result = function(*args, **keywords)
        if dies:
            raise Died
        return result

    return call


@pytest.fixture(scope="module")
def uninterrupted(compiled_once, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("uninterrupted")
    prune(directory, FIELDS)
    return directory


# Where it dies, how often that has been called since the start, and whether its work was done.
DEATHS = [
    (Session, "step", 2, False),  # the ticket, from its start
    (CheckpointStore, "save", 2, True),  # the ticket's end, the ticket, step 6 of cycle 0
    (Session, "step", 3, True),  # three steps to the end of cycle 0, the first one of cycle 1
    (loop, "perform", 11, True),  # the third step of cycle 1
    (PruningRun, "store", 0, False),
    (PruningRun, "store", 0, True),
    (PruningRun, "prune", 1, True),
    (atomic, "commit_directory", 1, True),  # the checkpoint of step 8 of cycle 2
    (Session, "step", 0, False),
    (atomic, "remove_directory", 1, False),  # after an old checkpoint, those of cycle 2, which is stored
    (PruningRun, "finish", 0, False),
    (PruningRun, "finish", 0, True),
]


def test_deaths_in_every_phase(uninterrupted, tmp_path):
    for place, name, after, done in DEATHS:
        print(f"dying at call {after} of {name}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, dying(getattr(place, name), after, done=done))
            with pytest.raises(Died):
                prune(tmp_path, FIELDS)
    results = prune(tmp_path, FIELDS)
    assert len(results["cycles"]) == 3
    assert_same_run(tmp_path, uninterrupted)


def test_a_finished_run_returns_at_once(uninterrupted, monkeypatch):
    before = listing(uninterrupted)
    monkeypatch.setattr(loop, "run", None)
    assert prune(uninterrupted, FIELDS)["sparsity"] >= 0.5
    assert listing(uninterrupted) == before


def test_damaged_results_are_refused_by_one_line_and_written_anew(uninterrupted, tmp_path, monkeypatch):
    file = shutil.copytree(uninterrupted, tmp_path / "run") / "results.json"
    whole = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in whole.items() if name != "cycles"}))
    with pytest.raises(UserError, match="results.json: lacks 'cycles': restore it; or delete it"):
        prune(tmp_path / "run", FIELDS)
    file.unlink()
    monkeypatch.setattr(loop, "run", None)
    assert prune(tmp_path / "run", FIELDS) == whole


def test_a_finished_run_continues_to_higher_sparsity(uninterrupted, tmp_path, monkeypatch):
    shutil.copytree(uninterrupted, tmp_path / "extended")
    finished = {path: content for path, content in listing(tmp_path / "extended").items() if path.startswith(("cycles", "ticket"))}
    trained, train = [], PruningRun.train_particles
    monkeypatch.setattr(PruningRun, "train_particles", lambda run, cycle, *args: trained.append(cycle) or train(run, cycle, *args))
    longer = {**FIELDS, "swamp.target_sparsity": 0.7}
    results = prune(tmp_path / "extended", longer)
    assert trained == [3] and len(results["cycles"]) == 4 and results["sparsity"] >= 0.7
    after = listing(tmp_path / "extended")
    assert {path: after[path] for path in finished} == finished
    assert prune(tmp_path / "longer", longer)["final"] == results["final"]
    for name in ("weights.safetensors", "cycles/003/average.safetensors"):
        assert after[name] == listing(tmp_path / "longer")[name]


@pytest.fixture(scope="module")
def command(compilation_cache_dir):  # noqa: F811
    # Ten cycles: every second kill may let a cycle through, and then the next one has to have its phases yet.
    return watched_command("train_swamp.py", "swamp_digits.py", {**FIELDS, "swamp.target_sparsity": 0.98}, compilation_cache_dir)


@pytest.fixture(scope="module")
def uninterrupted_child(command, tmp_path_factory):
    directory = tmp_path_factory.mktemp("child") / "run"
    assert Child(command, directory).phases() == set(PHASES)
    assert len(list((directory / "cycles").iterdir())) == 10
    return directory


def kill_once(command, directory, phase, within, occurrence, rng):
    """One start that is killed before or within a phase that has come the given number of times; returns its step or cycle."""
    child = Child(command, directory)
    for _ in range(occurrence):
        child.wait_for("enter", phase, 0)
        child.go()
    done = child.wait_for("enter", phase, 0)
    if within:
        child.go()
        time.sleep(rng.uniform(0, 0.02))
    child.kill()
    return done


def test_a_kill_in_mid_cycle(command, uninterrupted_child, tmp_path):
    # The ticket has 4 steps: the seventh is the third of the first cycle, after a checkpoint of its second.
    assert kill_once(command, tmp_path / "run", "step", True, 6, random.Random(0)) == 7
    assert (tmp_path / "run" / "checkpoints" / "cycle_000").is_dir() and not (tmp_path / "run" / "cycles").exists()
    # The average of this cycle is written and its first particle is not, or not whole.
    assert kill_once(command, tmp_path / "run", "weights", True, 1, random.Random(0)) == 0
    assert not (tmp_path / "run" / "cycles" / "000").exists()
    assert Child(command, tmp_path / "run").finish() == 0
    assert_same_run(tmp_path / "run", uninterrupted_child)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kills_in_every_phase(command, uninterrupted_child, tmp_path, seed):
    rng = random.Random(seed)
    kills = [(phase, within) for phase in PHASES for within in (False, True)]
    rng.shuffle(kills)
    # The end comes once.
    kills.sort(key=lambda kill: kill[0] == "finish")
    for phase, within in kills:
        occurrence = rng.randint(0, {"step": 3, "weights": 2}.get(phase, 0))
        # It fails if the run ends without this phase: every phase is hit.
        done = kill_once(command, tmp_path / "run", phase, within, occurrence, rng)
        print(f"killed {'within' if within else 'before'} {phase} {done}")
    assert Child(command, tmp_path / "run").finish() == 0
    assert_same_run(tmp_path / "run", uninterrupted_child)


@pytest.mark.slow
def test_a_signal_makes_a_checkpoint(command, uninterrupted_child, tmp_path):
    child = Child(command, tmp_path / "run")
    child.wait_for("enter", "store", 0)
    child.go()
    child.wait_for("enter", "step", 7)
    child.process.send_signal(signal.SIGTERM)
    assert child.finish() == 143
    assert int(CheckpointStore(tmp_path / "run" / "checkpoints" / "cycle_001").restore().tree.step) == 7
    assert Child(command, tmp_path / "run").finish() == 0
    assert_same_run(tmp_path / "run", uninterrupted_child)
