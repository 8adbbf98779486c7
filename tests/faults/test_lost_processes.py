"""One of two processes, or both, killed or stopped: nobody hangs, and the same command goes on to the same bits."""

import random
import signal
import time

import numpy as np
import pytest

from process_runs import SECONDS, Processes, run
from training_runs import checkpoint, compilation_cache_dir, exported  # noqa: F401

PEER_TIMEOUT = 8
# Long enough to be killed in, and never finished.
ENDLESS = {"training.duration": "1000000 steps", "hwa.sync_period": "1000 steps", "logging.every": "500 steps",
           "evaluation.every": "1000000 steps", "checkpoint.every": "1000000 steps"}
SHORT = {"training.duration": "300 steps", "evaluation.every": "300 steps", "checkpoint.every": "20 steps", "logging.every": "20 steps"}


def wait_until(condition, processes):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        assert any(process.poll() is None for process in processes.all), processes.ended()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("stuck", [0, 1])
def test_a_stuck_process_is_named_by_the_other(compilation_cache_dir, tmp_path, stuck):  # noqa: F811
    patience = {number: [f"--peer_timeout={PEER_TIMEOUT}"] for number in (0, 1)}
    with Processes(tmp_path, 2, 1, ENDLESS, compiled=compilation_cache_dir, others=patience) as processes:
        wait_until((tmp_path / "metrics.jsonl").is_file, processes)
        time.sleep(2)  # the watch has heard both
        processes.all[stuck].send_signal(signal.SIGSTOP)
        other = processes.all[1 - stuck]
        _, stderr = other.communicate(timeout=SECONDS)
        assert other.returncode == 1, stderr[-2000:]
    said = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        f"error: process {stuck} has been silent for {PEER_TIMEOUT} s: it is stopped, or its host or network is gone; end it, "
        "and the same command continues (--peer_timeout waits longer)"
    ]


@pytest.mark.slow
def test_kills_of_one_process_and_of_all(compilation_cache_dir, tmp_path):  # noqa: F811
    rng, directory = random.Random(0), tmp_path / "run"
    run(tmp_path / "whole", 2, 1, SHORT, compiled=compilation_cache_dir)
    for victims in ([1], [0], [0, 1]):
        before = sorted(directory.glob("checkpoints/step_*"))
        with Processes(directory, 2, 1, SHORT, compiled=compilation_cache_dir) as processes:
            wait_until(lambda: sorted(directory.glob("checkpoints/step_*")) != before, processes)
            time.sleep(rng.uniform(0, 0.3))
            for number in victims:
                processes.all[number].kill()
            ends = processes.ended()
        assert all(code != 0 for code, _, _ in ends), ends
    run(directory, 2, 1, SHORT, compiled=compilation_cache_dir)
    mine, whole = exported(directory), exported(tmp_path / "whole")
    for name, leaf in mine.items():
        np.testing.assert_array_equal(leaf, whole[name], err_msg=name)
    assert int(checkpoint(directory).step) == 300
