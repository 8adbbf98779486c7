"""SIGKILL at recorded moments of a push, an eviction, a replacement and a truncation.

A child process pushes; a patched function tells the parent that the moment has come and
blocks; the parent kills the child there. Every moment is asserted to have been reached.
"""

import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from storage_cases import Dense, tmp_path  # noqa: F401

from hwa_jax.storage import atomic, tree_directory
from hwa_jax.storage.checkpoint import CheckpointStore
from hwa_jax.storage.window_store import WindowStore

SIZE, KEEP, DURABLE = 3, 4, 6

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["hwa_jax.storage.checkpoint", "hwa_jax.storage.window_store"])


def member(step, version=0):
    rng = np.random.default_rng([step, version])
    kernel = rng.normal(size=(5, 4)).astype(np.float32)
    return {"dense": Dense(kernel, rng.normal(size=4).astype(np.float32)), "step": np.int32(step)}


# moment -> the object that is patched, the function, and where the child stops in a call of it
MOMENTS = {
    "Orbax has written, not renamed": (ocp.PyTreeCheckpointHandler, "finalize", "before"),
    "arrays without tree.json": (tree_directory, "write_arrays", "after"),
    "before the rename": (atomic, "commit_directory", "before"),
    "after the rename": (atomic, "commit_directory", "after"),
    "before a removal": (atomic, "remove_directory", "before"),
    "half removed": (shutil, "rmtree", "inside"),
    "after a removal": (atomic, "remove_directory", "after"),
}


def stop_at(moment, connection):
    """Makes the next call reach ``moment``, say so and stay there."""
    owner, name, where = MOMENTS[moment]
    original = getattr(owner, name)

    def reached():
        connection.send(moment)
        connection.recv()

    def patched(*args, **kwargs):
        if where == "inside":
            if ".removed-" not in os.fspath(args[0]):
                return original(*args, **kwargs)
            os.remove(os.path.join(args[0], "tree.json"))
            original(os.path.join(args[0], "arrays", "d"))
        if where != "after":
            reached()
        result = original(*args, **kwargs)
        if where == "after":
            reached()
        return result

    setattr(owner, name, patched)


def run_child(directory, action, moment, connection):
    window = WindowStore(directory, SIZE, keep=KEEP)
    for step in range(1, DURABLE + 1):
        window.push(step, member(step))
    window.wait()
    if moment == "between":
        connection.send(moment)
        connection.recv()
    stop_at(moment, connection)
    if action == "push":
        window.push(DURABLE + 1, member(DURABLE + 1))
        window.wait()
    elif action == "replace":
        window.push(DURABLE, member(DURABLE, version=1))
        window.wait()
    else:
        window.truncate(after=DURABLE - 2)
    connection.send("finished without reaching the moment")


def killed_at(target, *args):
    """Runs ``target`` in a child until it reports a moment, kills it, returns the report."""
    ours, theirs = processes.Pipe()
    child = processes.Process(target=target, args=(*args, theirs))
    child.start()
    theirs.close()
    report = ours.recv()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    return report


def check_window(directory, versions):
    """Steps are contiguous, the mean is NumPy's mean of these members, and pushing goes on."""
    steps = sorted(versions)
    with WindowStore(directory, SIZE, keep=KEEP) as window:
        assert window.stored_steps == steps
        assert window.steps == steps[-SIZE:]
        assert steps == list(range(steps[0], steps[-1] + 1))
        members = [member(step, versions[step]) for step in window.steps]
        mean = window.mean()
        expected = np.mean([m["dense"].kernel.astype(np.float64) for m in members], axis=0)
        np.testing.assert_array_equal(mean["dense"].kernel, expected.astype(np.float32))
        assert type(mean["dense"]) is Dense and mean["step"] == steps[-1]
        for step in range(steps[-1] + 1, steps[-1] + 3):
            window.push(step, member(step))
        assert window.stored_steps == [*steps, steps[-1] + 1, steps[-1] + 2][-KEEP:]
        newest = member(steps[-1] + 2)["dense"].bias
        np.testing.assert_array_equal(window.mean(size=1)["dense"].bias, newest)
    assert sorted(os.listdir(directory)) == [f"step_{s:08d}.0" for s in window.stored_steps] or any(
        versions.values()
    )
    assert not [name for name in os.listdir(directory) if name.startswith(".")]


@pytest.mark.parametrize(
    "moment, stored",
    [
        ("between", [3, 4, 5, 6]),
        ("Orbax has written, not renamed", [3, 4, 5, 6]),
        ("arrays without tree.json", [3, 4, 5, 6]),
        ("before the rename", [3, 4, 5, 6]),
        ("after the rename", [3, 4, 5, 6, 7]),
        ("before a removal", [3, 4, 5, 6, 7]),
        ("half removed", [4, 5, 6, 7]),
        ("after a removal", [4, 5, 6, 7]),
    ],
)
def test_kill_in_a_push(tmp_path, moment, stored):
    assert killed_at(run_child, tmp_path, "push", moment) == moment
    check_window(tmp_path, dict.fromkeys(stored, 0))


@pytest.mark.parametrize(
    "moment, version",
    [
        ("before the rename", 0),
        ("after the rename", 1),
        ("half removed", 1),
    ],
)
def test_kill_in_a_replacement(tmp_path, moment, version):
    assert killed_at(run_child, tmp_path, "replace", moment) == moment
    check_window(tmp_path, {3: 0, 4: 0, 5: 0, 6: version})


@pytest.mark.parametrize(
    "moment, newest", [("before a removal", 6), ("half removed", 5), ("after a removal", 5)]
)
def test_kill_in_a_truncation(tmp_path, moment, newest):
    assert killed_at(run_child, tmp_path, "truncate", moment) == moment
    with WindowStore(tmp_path, SIZE, keep=KEEP) as window:
        assert window.stored_steps == list(range(3, newest + 1))
        window.truncate(after=DURABLE - 2)
    check_window(tmp_path, {3: 0, 4: 0})


def save_checkpoints(directory, moment, connection):
    store = CheckpointStore(directory, keep=1)
    store.save(1, member(1), {"epoch": 1})
    stop_at(moment, connection)
    store.save(2, member(2), {"epoch": 2})


@pytest.mark.parametrize(
    "moment, step",
    [("arrays without tree.json", 1), ("before the rename", 1), ("half removed", 2)],
)
def test_kill_in_a_checkpoint(tmp_path, moment, step):
    assert killed_at(save_checkpoints, tmp_path, moment) == moment
    store = CheckpointStore(tmp_path, keep=1)
    restored = store.restore(like=member(0))
    assert (restored.step, restored.metadata) == (step, {"epoch": step})
    np.testing.assert_array_equal(restored.tree["dense"].kernel, member(step)["dense"].kernel)
    store.save(3, member(3))
    assert os.listdir(tmp_path) == ["step_00000003.0"]


def push_on(directory, connection):
    window = WindowStore(directory, SIZE, keep=KEEP)
    connection.send("open")
    step = window.steps[-1] + 1 if window.steps else 1
    while True:
        window.push(step, member(step))
        step += 1


@pytest.mark.slow
def test_kills_at_random_times(tmp_path):
    rng = random.Random(0)
    newest = 0
    for _ in range(40):
        ours, theirs = processes.Pipe()
        child = processes.Process(target=push_on, args=(tmp_path, theirs))
        child.start()
        assert ours.recv() == "open"
        time.sleep(rng.uniform(0.0, 1.0))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        with WindowStore(tmp_path, SIZE, keep=KEEP) as window:
            steps = window.stored_steps
            assert steps == list(range(max(1, steps[-1] - len(steps) + 1), steps[-1] + 1))
            assert len(steps) >= min(KEEP, steps[-1]) and steps[-1] >= newest
            for step in steps:
                kernel = window.member(step)["dense"].kernel
                np.testing.assert_array_equal(kernel, member(step)["dense"].kernel)
            newest = steps[-1]
    assert newest > 40
