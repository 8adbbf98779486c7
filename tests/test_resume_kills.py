"""SIGKILL and SIGTERM in every phase of a training: the same command again ends where an uninterrupted run ends."""

import random
import signal
import time

import jax
import numpy as np
import pytest

from killed_training import Child, watched_command
from training_runs import SMALL, checkpoint, compilation_cache_dir, exported, rows  # noqa: F401

PHASES = ("step", "inner evaluation", "synchronization", "push", "evaluation", "log", "checkpoint")
# A small part of everything: statistics to average, momentum, an exponential average, a partial last cycle.
FIELDS = {
    **SMALL, "model.norm": "batch", "optimizer.momentum": 0.9, "training.ema_decay": 0.9, "training.duration": "14 steps",
    "evaluation.every": "4 steps", "checkpoint.every": "3 steps", "logging.every": "2 steps", "logging.tensorboard": True,
}


@pytest.fixture(scope="module")
def command(compilation_cache_dir):  # noqa: F811
    """The command of the run, less its work directory; and its environment."""
    return watched_command("train_hwa.py", "hwa_digits.py", FIELDS, compilation_cache_dir)


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert Child(command, directory).finish() == 0
    assert len(rows(directory, kind="push")) == 4 and len(rows(directory, kind="train")) == 7
    return directory


def assert_same_run(directory, uninterrupted):
    mine, theirs = exported(directory), exported(uninterrupted)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, checkpoint(directory), checkpoint(uninterrupted))
    assert rows(directory) == rows(uninterrupted)


def kill_once(command, directory, phase, moment, least, rng):
    """One start that is killed before, within or after a phase; the step at which it was."""
    child = Child(command, directory)
    done = child.wait_for("enter" if moment == "within" else moment, phase, least)
    if moment == "within":
        child.go()
        time.sleep(rng.uniform(0, 0.02))
    child.kill()
    return done


def run_through(command, directory, kills, seed):
    """Kills the training at the given (phase, moment), one start each, then lets it finish."""
    rng, hit, least = random.Random(seed), [], 1
    for phase, moment in kills:
        done = kill_once(command, directory, phase, moment, least, rng)
        hit.append(phase)
        # Back and forth: sometimes at once after the resume, sometimes further on.
        least = min(done + rng.randint(-2, 3), 8)
    assert Child(command, directory).finish() == 0
    return hit


def test_kills_while_something_is_written(command, uninterrupted, tmp_path):
    kills = [("push", "within"), ("checkpoint", "within"), ("evaluation", "exit")]
    assert run_through(command, tmp_path / "run", kills, seed=0) == [phase for phase, _ in kills]
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_kills_in_every_phase(command, uninterrupted, tmp_path, seed):
    kills = [(phase, moment) for phase in PHASES for moment in ("enter", "within", "exit")]
    random.Random(seed).shuffle(kills)
    chosen = kills[:7] + [(phase, "within") for phase in PHASES]
    hit = run_through(command, tmp_path / "run", chosen, seed)
    assert set(hit) == set(PHASES)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.slow
def test_kills_at_seeded_times(command, uninterrupted, tmp_path):
    rng = random.Random(1)
    for _ in range(6):
        child = Child(command, tmp_path / "run")
        # The first step is slower, since it compiles.
        child.wait_for("exit", "step", 1)
        child.process.stdin.close()
        time.sleep(rng.uniform(0, 0.4))
        child.kill()
        if (tmp_path / "run" / "results.json").exists():
            break
    assert Child(command, tmp_path / "run").finish() == 0
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_makes_a_checkpoint(command, uninterrupted, tmp_path, number):
    child = Child(command, tmp_path / "run")
    child.wait_for("enter", "step", 7)
    child.process.send_signal(number)
    assert child.finish() == 143
    # The step that was running is finished, and nothing of it is lost.
    assert int(checkpoint(tmp_path / "run").step) == 7
    assert Child(command, tmp_path / "run").finish() == 0
    assert_same_run(tmp_path / "run", uninterrupted)
