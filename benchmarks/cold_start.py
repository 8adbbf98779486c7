"""Row "cold_start": from the command to the first step, with the compiled programs of an earlier run and without."""

import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import timing

TITLE = "Cold start: command to first step, with over without the compilation cache"
NOTE = "experiments/train_hwa.py on digits, CNN-S, K = 2; the first step is done when its row is in metrics.jsonl."
ROOT = pathlib.Path(__file__).resolve().parents[1]


def cells(options: Any) -> list[dict[str, Any]]:
    """One."""
    return [{"row": "cold_start", "config": "hwa_digits"}]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields the ratio; at most five rounds, a fresh cache in each."""
    without, with_cache = [], []
    for _ in range(min(repeats, 5)):
        with tempfile.TemporaryDirectory() as directory:
            workdir = pathlib.Path(directory) / "run"
            without.append(_seconds_to_first_step(cell["config"], workdir))
            shutil.rmtree(workdir)
            with_cache.append(_seconds_to_first_step(cell["config"], workdir))
        ratio = timing.summary(with_cache, without)
        yield {"ratios": {"with / without": ratio}, "figures": {
            "with cache, s": ratio["ours_seconds"], "without, s": ratio["other_seconds"],
        }}


def _seconds_to_first_step(config, workdir):
    command = [
        sys.executable, str(ROOT / "experiments" / "train_hwa.py"), f"--config={ROOT / 'configs' / config}.py",
        f"--workdir={workdir}", "--config.logging.every=1 steps", "--config.logging.tensorboard=false",
    ]
    log = workdir / "metrics.jsonl"
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (log.exists() and log.stat().st_size):
            if process.poll() is not None:
                raise timing.NotRun(f"train_hwa ended with exit code {process.returncode}")
            time.sleep(0.005)
        return time.perf_counter() - start
    finally:
        # Stopped by the signal it makes a checkpoint and ends; what it has compiled is kept.
        process.send_signal(signal.SIGTERM)
        process.wait()
