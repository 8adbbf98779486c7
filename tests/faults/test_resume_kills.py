"""SIGKILL and SIGTERM in every phase of a training: the same command again ends where an uninterrupted run ends."""

import collections
import itertools
import random
import signal
import time

import jax
import numpy as np
import pytest

from killed_training import Child, run_through, watched_command
from training_runs import SMALL, checkpoint, compilation_cache_dir, exported, rows  # noqa: F401

EVENTS = ("epoch", "step", "inner evaluation", "synchronization", "push", "evaluation", "log", "checkpoint")
STORES = ("window commit", "window eviction", "checkpoints commit", "checkpoints eviction")
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
    assert Child(command, directory).phases() == {*EVENTS, *STORES, "finish"} - {"window eviction"}
    assert len(rows(directory, kind="push")) == 4 and len(rows(directory, kind="train")) == 7
    return directory


def assert_same_run(directory, uninterrupted):
    mine, theirs = exported(directory), exported(uninterrupted)
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, checkpoint(directory), checkpoint(uninterrupted))
    assert rows(directory) == rows(uninterrupted)


def test_kills_while_something_is_written(command, uninterrupted, tmp_path):
    kills = [("push", "within"), ("checkpoint", "within"), ("evaluation", "exit")]
    run_through(command, tmp_path / "run", kills, seed=0)
    assert_same_run(tmp_path / "run", uninterrupted)


MOMENTS = ("enter", "within", "exit")


def hundred_moments():
    """Ten runs of ten kills; every phase before, within and after it, at least twice. The end comes once in a run, as its last kill."""
    each = list(itertools.product((*EVENTS, *STORES), MOMENTS))
    moments = [*each, *each, *random.Random(0).sample(each, 90 - 2 * len(each))]
    random.Random(1).shuffle(moments)
    return [[*moments[9 * run:9 * run + 9], ("finish", MOMENTS[run % 3])] for run in range(10)]


def test_a_hundred_moments_are_all_phases():
    runs = hundred_moments()
    assert len(runs) == 10 and {len(kills) for kills in runs} == {10}
    counts = collections.Counter(itertools.chain(*runs))
    assert counts.keys() == set(itertools.product((*EVENTS, *STORES, "finish"), MOMENTS)) and min(counts.values()) == 2


@pytest.fixture(scope="module")
def long_command(compilation_cache_dir):  # noqa: F811
    """As `command`, of a run that is long enough for ten kills, and whose window loses members."""
    fields = {"training.duration": "60 steps", "hwa.sync_period": "2 steps", "hwa.window_size": 2, "logging.tensorboard": False}
    return watched_command("train_hwa.py", "hwa_digits.py", {**FIELDS, **fields}, compilation_cache_dir)


@pytest.fixture(scope="module")
def long_uninterrupted(long_command, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert Child(long_command, directory).phases() == {*EVENTS, *STORES, "finish"}
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_kills_at_a_hundred_moments(long_command, long_uninterrupted, tmp_path, number):
    run_through(long_command, tmp_path / "run", hundred_moments()[number], seed=number)
    assert_same_run(tmp_path / "run", long_uninterrupted)


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


@pytest.mark.slow
@pytest.mark.parametrize("phase", EVENTS)
def test_a_signal_within_a_phase_and_a_kill_while_its_checkpoint_is_written(command, uninterrupted, tmp_path, phase):
    rng = random.Random(phase)
    for killed in (True, False):
        child = Child(command, tmp_path / "run")
        done = child.reach(phase, "within", 7, rng)
        child.process.send_signal(signal.SIGTERM)
        child.wait_for("exit", phase, done)
        child.go()
        if killed:
            # All of it is written, and nothing has its name yet.
            child.wait_for("enter", "checkpoints commit", done)
            child.kill()
            assert list((tmp_path / "run" / "checkpoints").glob(f".saving-step_{done:08d}.*"))
        else:
            assert child.finish() == 143
        # Where it was killed that of every third step is left, one of this very step among them.
        assert int(checkpoint(tmp_path / "run").step) == (done - done % 3 if killed else done)
    assert Child(command, tmp_path / "run").finish() == 0
    assert_same_run(tmp_path / "run", uninterrupted)
