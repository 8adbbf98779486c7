"""`--distributed` under Slurm and Open MPI, where they are installed: each finds its processes, and these train as two do that were given their numbers."""

import contextlib
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from hwa_jax.training.workdir import read_json
from process_runs import FIELDS, TRAIN_HWA, run
from programs import ROOT, SECONDS, process_environment
from training_runs import checkpoint, compilation_cache_dir, exported  # noqa: F401

pytestmark = pytest.mark.slow
JOB = f"hwa_jax_{os.getpid()}"
LAUNCHERS = {"slurm": ["srun", "-n", "2", f"--job-name={JOB}"], "open mpi": ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]}


@pytest.fixture
def launcher(request):
    """Its command; skips where it cannot start anything."""
    command = LAUNCHERS[request.param]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    if command[0] == "srun":
        nodes = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=20).stdout
        if "idle" not in nodes:
            pytest.skip("no idle node of Slurm")
    return command


@contextlib.contextmanager
def launched(launcher, directory, compiled, fields=()):
    overrides = [f"--config.{field}={value}" for field, value in {**FIELDS, **dict(fields)}.items()]
    command = [*launcher, sys.executable, ROOT / TRAIN_HWA.script, f"--config={ROOT / TRAIN_HWA.config}", f"--workdir={directory}", *overrides, "--distributed"]
    process = subprocess.Popen(command, env=process_environment(1, compiled), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            # To the launcher, which ends what it has started.
            process.terminate()
            process.communicate()


def end(process):
    """Exit code and stderr."""
    _, stderr = process.communicate(timeout=SECONDS)
    return process.returncode, stderr


@pytest.mark.parametrize("launcher", LAUNCHERS, indirect=True)
def test_two_processes_find_each_other(launcher, compilation_cache_dir, tmp_path):  # noqa: F811
    with launched(launcher, tmp_path / "found", compilation_cache_dir) as process:
        code, stderr = end(process)
    assert code == 0, stderr[-2000:]
    assert read_json(tmp_path / "found" / "environment.json")["num_processes"] == 2
    run(tmp_path / "given", 2, 1, compiled=compilation_cache_dir)
    mine, given = exported(tmp_path / "found"), exported(tmp_path / "given")
    assert mine.keys() == given.keys()
    for name, leaf in given.items():
        np.testing.assert_array_equal(mine[name], leaf, err_msg=name)


@pytest.mark.parametrize("launcher", ["slurm"], indirect=True)
def test_a_job_that_slurm_cancels_leaves_a_checkpoint_and_continues(launcher, compilation_cache_dir, tmp_path):  # noqa: F811
    directory = tmp_path / "run"
    endless = {"training.duration": "1000000 steps", "evaluation.every": "1000000 steps", "checkpoint.every": "1000000 steps", "logging.every": "50 steps"}
    with launched(launcher, directory, compilation_cache_dir, endless) as process:
        deadline = time.monotonic() + SECONDS
        while not (directory / "metrics.jsonl").is_file():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        subprocess.run(["scancel", "--me", f"--name={JOB}"], check=True, timeout=20)
        code, stderr = end(process)
    assert code != 0 and "stopped by a signal after step" in stderr
    step = int(checkpoint(directory).step)
    assert step > 0
    with launched(launcher, directory, compilation_cache_dir, {**endless, "training.duration": f"{step + 50} steps"}) as process:
        code, stderr = end(process)
    assert code == 0 and f"resuming from the checkpoint of step {step}" in stderr, stderr[-2000:]
