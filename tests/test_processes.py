"""One training over several processes: the numbers of one process, one writer, one end."""

import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from hwa_jax.training import peers
from hwa_jax.training.processes import explain_lost
from hwa_jax.training.workdir import read_json
from killed_processes import LOST, MARGIN, PEER_TIMEOUT, Kill, kill_once, stop_once
from process_runs import FIELDS, SECONDS, TRAIN_HWA, Processes, free_port, run, run_in_float64
from programs import ROOT, call
from training_runs import checkpoint, compilation_cache_dir, compiled_once, exported, listing, rows, train  # noqa: F401

WATCHED = {"model.norm": "batch", "evaluation.averaging_health": True}


def assert_same_weights(mine, theirs, rtol):
    others = exported(theirs)
    for name, leaf in exported(mine).items():
        np.testing.assert_allclose(leaf, others[name], rtol=0, atol=rtol * np.abs(others[name]).max(), err_msg=name)


def assert_same_numbers(mine, theirs, rtol):
    """Weights, checkpoints and log rows; relative to the largest weight of a leaf."""
    assert_same_weights(mine, theirs, rtol)
    ours, others = _leaves(checkpoint(mine)), _leaves(checkpoint(theirs))
    assert ours.keys() == others.keys()
    for name, leaf in others.items():
        np.testing.assert_allclose(ours[name], leaf, rtol=0, atol=rtol * np.abs(leaf).max(initial=0), err_msg=name)
    for row, other in zip(rows(mine), rows(theirs), strict=True):
        (measured, rest), (expected, other_rest) = _floats_and_others(row), _floats_and_others(other)
        assert rest == other_rest and measured == pytest.approx(expected, rel=10 * rtol, abs=10 * rtol), (row, other)


def _leaves(tree):
    # `distance` is the norm of a difference, which loses digits.
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    return {name: leaf for name, leaf in named.items() if "distance" not in name and np.issubdtype(leaf.dtype, np.floating)}


def _floats_and_others(row):
    floats = {name: value for name, value in row.items() if isinstance(value, float)}
    return floats, {name: value for name, value in row.items() if name not in floats}


@pytest.fixture(scope="module")
def on_two_processes(compilation_cache_dir, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("processes") / "run"
    return directory, run(directory, 2, 2, compiled=compilation_cache_dir)


def test_two_processes_are_one_training(on_two_processes, compiled_once, tmp_path):  # noqa: F811
    directory, ends = on_two_processes
    train(tmp_path / "one", {**FIELDS, "num_devices": 1})
    assert_same_numbers(directory, tmp_path / "one", 1e-5)
    train(tmp_path / "four", {**FIELDS, "num_devices": 4})
    assert_same_numbers(directory, tmp_path / "four", 1e-5)
    assert read_json(directory / "environment.json")["num_processes"] == 2
    # Process 0 alone speaks.
    assert "weights:" in ends[0][1] and ends[1][1] == ""


def test_kills_of_one_process_and_of_both_and_a_stuck_one(on_two_processes, compilation_cache_dir, tmp_path):  # noqa: F811
    layout, rng = {"program": TRAIN_HWA, "devices": 2, "compiled": compilation_cache_dir}, random.Random(0)
    # After the checkpoint of step 10.
    assert kill_once(tmp_path / "run", Kill("step", "within", (1,)), 11, rng, **layout) == 11
    stop_once(tmp_path / "run", 0, "step", 11, rng, **layout)
    assert kill_once(tmp_path / "run", Kill("push", "within", (0, 1)), 1, rng, **layout) == 12
    run(tmp_path / "run", 2, **layout)
    assert_same_weights(tmp_path / "run", on_two_processes[0], 0)


@pytest.mark.slow
def test_two_processes_watch_their_averages_as_one_does(compilation_cache_dir, compiled_once, tmp_path):  # noqa: F811
    run(tmp_path / "two", 2, 2, WATCHED, compiled=compilation_cache_dir)
    train(tmp_path / "one", {**FIELDS, **WATCHED, "num_devices": 1})
    assert_same_numbers(tmp_path / "two", tmp_path / "one", 1e-5)
    # All but the first push measure everything: the window has two ends.
    assert len([row for row in rows(tmp_path / "one", kind="health") if None not in row.values()]) == 4


@pytest.mark.slow
def test_a_cycle_in_float64(compilation_cache_dir, tmp_path):  # noqa: F811
    """All four steps and the average at their end."""
    fields = {"training.duration": "4 steps", "hwa.sync_period": "4 steps"}
    for name, layout in (("two", (2, 2)), ("one", (1, 1))):
        run_in_float64(tmp_path / name, *layout, fields, program=TRAIN_HWA, compiled=compilation_cache_dir)
    params = jax.tree.leaves(checkpoint(tmp_path / "one").params)
    assert {(leaf.dtype, len(leaf)) for leaf in params} == {(np.dtype(np.float64), 4)}
    assert all(np.ptp(leaf, axis=0).max() < 1e-15 < np.ptp(leaf) for leaf in params)
    assert_same_numbers(tmp_path / "two", tmp_path / "one", 1e-9)


@pytest.mark.slow
def test_one_process_continues_what_two_began(on_two_processes, compilation_cache_dir, tmp_path):  # noqa: F811
    fields = {"training.duration": "10 steps"}
    run(tmp_path / "a", 2, 2, fields, compiled=compilation_cache_dir)
    run(tmp_path / "a", 1, 4, compiled=compilation_cache_dir)
    run(tmp_path / "b", 1, 4, fields, compiled=compilation_cache_dir)
    [(_, _, stderr), _] = run(tmp_path / "b", 2, 2, compiled=compilation_cache_dir)
    assert "resuming from the checkpoint of step 10" in stderr and "under another num_processes" in stderr
    for name in ("a", "b"):
        assert_same_weights(tmp_path / name, on_two_processes[0], 1e-5)


@pytest.mark.slow
def test_a_batch_that_two_processes_share(compilation_cache_dir, compiled_once, tmp_path):  # noqa: F811
    fields = {"hwa.num_replicas": 1, "training.batch_size": 16, "model.norm": "batch"}
    run(tmp_path / "two", 2, 2, {**fields, "hwa.data_parallel": 4}, compiled=compilation_cache_dir)
    train(tmp_path / "one", {**FIELDS, **fields, "num_devices": 1})
    assert_same_weights(tmp_path / "two", tmp_path / "one", 1e-5)


@pytest.mark.slow
def test_two_processes_go_on_with_other_replicas_as_one_does(compilation_cache_dir, tmp_path):  # noqa: F811
    for name, layout in (("two", (2, 2)), ("one", (1, 4))):
        run(tmp_path / name, *layout, {"training.duration": "10 steps"}, compiled=compilation_cache_dir)
        [(_, _, stderr), *_] = run(tmp_path / name, *layout, {"hwa.num_replicas": 8}, compiled=compilation_cache_dir)
        assert "8 replicas instead of 4" in stderr
        assert [row["step"] for row in rows(tmp_path / name, kind="restart")] == [10]
    assert_same_weights(tmp_path / "two", tmp_path / "one", 1e-5)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(compilation_cache_dir, tmp_path):  # noqa: F811
    fields = {"training.duration": "1000000 steps", "hwa.sync_period": "1000 steps", "logging.every": "500 steps",
              "evaluation.every": "1000000 steps", "checkpoint.every": "1000000 steps"}
    with Processes(tmp_path, 2, 2, fields, compiled=compilation_cache_dir) as processes:
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "metrics.jsonl").is_file():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        processes.interrupt(1)
        ends = processes.ended()
    assert [code for code, _, _ in ends] == [143, 143], ends
    stopped = int(checkpoint(tmp_path).step)
    assert 0 < stopped < 1000000 and f"stopped by a signal after step {stopped} of 1000000" in ends[0][2]


@pytest.mark.slow
def test_what_ends_one_process_ends_all_with_its_line(compilation_cache_dir, tmp_path):  # noqa: F811
    with Processes(tmp_path / "a", 2, 1, compiled=compilation_cache_dir, others={1: ["--config.seed=3"]}) as processes:
        ends = processes.ended()
    said = "process 1 was started otherwise than process 0: seed is 0 there, 3 here"
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert f"error: process 1 ended: {said}" in ends[0][2] and f"error: {said}" in ends[1][2]
    # What process 0 refuses, all refuse.
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    with Processes(tmp_path / "b", 2, 1, compiled=compilation_cache_dir) as processes:
        ends = processes.ended()
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert all("holds files but no config.json" in stderr for _, _, stderr in ends)
    assert list(listing(tmp_path / "b")) == ["thesis.tex"]


@pytest.mark.parametrize(("error", "waits"), [
    (ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"), True), (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed"), True),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), False), (ValueError("shapes differ"), False), (KeyboardInterrupt(), False),
])
def test_an_error_of_the_runtime_waits_for_the_name_of_the_lost_one(monkeypatch, error, waits):
    waited = []
    monkeypatch.setattr(peers, "wait_for_verdict", waited.append)
    explain_lost(error, 7)
    assert waited == [7] * waits


ABORT = f"""
import os, sys, time
from hwa_jax.training import peers, processes
coordinator, mine, aborting = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
processes.join(coordinator, 2, mine, peer_timeout={PEER_TIMEOUT})
if mine == aborting:
    time.sleep(3 * peers.POLL_SECONDS)  # until the other one has heard it
    print("the cause", file=sys.stderr, flush=True)
    os.abort()
time.sleep({SECONDS})
"""


@pytest.mark.parametrize("aborting", [0, 1])
def test_an_abort_keeps_its_cause_and_is_named_by_the_other(aborting):
    command = [sys.executable, "-c", ABORT, f"127.0.0.1:{free_port()}"]
    pair = [subprocess.Popen([*command, str(number), str(aborting)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for number in range(2)]
    try:
        _, cause = pair[aborting].communicate(timeout=SECONDS)
        _, verdict = pair[1 - aborting].communicate(timeout=PEER_TIMEOUT + MARGIN)
    finally:
        for process in pair:
            process.kill()
            process.wait()
    assert pair[aborting].returncode == -signal.SIGABRT and "the cause" in cause and "error: " not in cause, cause
    assert pair[1 - aborting].returncode == 1 and [line for line in verdict.splitlines() if line.startswith("error: ")] == [LOST[aborting]], verdict


FLAGS = {
    "alone": (["--coordinator=a:1"], "--num_processes: is missing"),
    "no id": (["--coordinator=a:1", "--num_processes=2"], "--process_id: is missing"),
    "id": (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "--process_id=2: of 2 processes, give at most 1"),
    "no port": (["--coordinator=a", "--num_processes=2", "--process_id=0"], "--coordinator=a: give host:port"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags_that_do_not_fit_are_refused(case, tmp_path):
    flags, message = FLAGS[case]
    ended = call("train_hwa.py", f"--config={ROOT / 'configs/hwa_digits.py'}", f"--workdir={tmp_path / 'run'}", *flags)
    assert ended.code == 2 and ended.stderr.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_without_a_cluster_there_is_nothing_to_detect(compilation_cache_dir, tmp_path):  # noqa: F811
    with Processes(tmp_path / "run", 1, 1, compiled=compilation_cache_dir, others={0: ["--distributed"]}) as processes:
        [(code, _, stderr)] = processes.ended()
    assert code == 2 and "error: --distributed: no cluster was detected" in stderr
