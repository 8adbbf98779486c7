"""`--distributed` under Slurm and Open MPI, where they are installed: each finds its processes, and these train as two do that were given their numbers."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from process_runs import FIELDS, SECONDS, TRAIN_HWA, run
from programs import ROOT
from training_runs import checkpoint, compilation_cache_dir, exported  # noqa: F401


def slurm_is_up():
    return shutil.which("sinfo") and "idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout


LAUNCHERS = {
    "slurm": pytest.param(["srun", "-n", "2", "--job-name=hwa_jax_test"], marks=pytest.mark.skipif(not slurm_is_up(), reason="no idle node of Slurm")),
    "open mpi": pytest.param(
        ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"], marks=pytest.mark.skipif(not shutil.which("mpirun"), reason="Open MPI is not installed")
    ),
}
pytestmark = pytest.mark.slow


def start(launcher, directory, compiled, fields=()):
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": str(ROOT),
    }
    overrides = [f"--config.{field}={value}" for field, value in {**FIELDS, **dict(fields)}.items()]
    command = [*launcher, sys.executable, ROOT / TRAIN_HWA.script, f"--config={ROOT / TRAIN_HWA.config}", f"--workdir={directory}", *overrides, "--distributed"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(launched):
    _, stderr = launched.communicate(timeout=SECONDS)
    return launched.returncode, stderr


@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
def test_two_processes_find_each_other(launcher, compilation_cache_dir, tmp_path):  # noqa: F811
    code, stderr = end(start(launcher, tmp_path / "found", compilation_cache_dir))
    assert code == 0, stderr[-2000:]
    run(tmp_path / "given", 2, 1, compiled=compilation_cache_dir)
    mine, given = exported(tmp_path / "found"), exported(tmp_path / "given")
    assert mine.keys() == given.keys()
    for name, leaf in given.items():
        np.testing.assert_array_equal(mine[name], leaf, err_msg=name)


@pytest.mark.parametrize("launcher", [LAUNCHERS["slurm"]], ids=["slurm"])
def test_a_job_that_slurm_cancels_leaves_a_checkpoint_and_continues(launcher, compilation_cache_dir, tmp_path):  # noqa: F811
    endless = {"training.duration": "1000000 steps", "evaluation.every": "1000000 steps", "checkpoint.every": "1000000 steps", "logging.every": "50 steps"}
    launched = start(launcher, tmp_path / "run", compilation_cache_dir, endless)
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "run" / "metrics.jsonl").is_file():
        assert time.monotonic() < deadline and launched.poll() is None, end(launched)
        time.sleep(0.2)
    subprocess.run(["scancel", "--name=hwa_jax_test"], check=True)
    code, stderr = end(launched)
    assert code != 0 and "stopped by a signal after step" in stderr
    step = int(checkpoint(tmp_path / "run").step)
    assert step > 0
    code, stderr = end(start(launcher, tmp_path / "run", compilation_cache_dir, {**endless, "training.duration": f"{step + 50} steps"}))
    assert code == 0 and f"resuming from the checkpoint of step {step}" in stderr, stderr[-2000:]
