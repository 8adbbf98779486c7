"""Measures hwa_jax against itself and others, cell by cell, and writes a table of ratios.

    python benchmarks/run.py [--rows=particles,mask_selection] [--models=cnn_s,resnet20] [--particles=1,4] [--limit=900]

Every cell is a process of its own, ended at its time limit. What is measured lies in OUTPUT/cells, a JSON
file per cell; the same command goes on with the cells that are missing or failed, and OUTPUT/report.md is written
from all. Remove a file to measure its cell again. Run it on a machine that does nothing else.
"""

import argparse
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import report
import timing
from hwa_jax.storage import atomic

ROWS = (
    "particles", "layers", "epochs", "synchronization", "window_push", "mask_selection", "cold_start", "roofline", "compile_time",
    "cpu_settings",
)
MODELS = ("mlp", "cnn_s", "resnet20", "wrn-16-4", "vgg16")


def main() -> None:
    options = _options()
    # A cell's process is ended with this one.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    cells = [cell for row in options.rows for cell in importlib.import_module(row).cells(options)]
    directory = options.output / "cells"
    directory.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in cells if not is_finished(directory / file_name(cell))]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} finished before", flush=True)
    for cell in missing:
        path = directory / file_name(cell)
        print(f"{path.stem}", end=" ", flush=True)
        result = measure(cell, path, options)
        print(f"{result['seconds']:.0f} s " + " ".join(f"{name}: {reason}" for name, reason in result["not_run"].items()), flush=True)
        write_report(options.output)
    write_report(options.output)
    print(options.output / "report.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=_names(ROWS), default=ROWS, help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--models", type=_names(MODELS), default=MODELS, help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--particles", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each comparison")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds per cell")
    parser.add_argument("--output", type=pathlib.Path, help="results/benchmarks_cpu, or of another platform, by default")
    options = parser.parse_args()
    options.output = options.output or pathlib.Path(f"results/benchmarks_{_platform()}")
    return options


def _platform():
    # In a process of its own: this one must not hold a part of the device.
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def _names(known):
    def parse(text):
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}: give some of {', '.join(known)}")
        return names

    return parse


def file_name(cell: dict[str, Any]) -> str:
    """Of a cell's results.

    Example:
        >>> file_name({"row": "particles", "model": "mlp", "num_particles": 4})
        'particles-mlp-4.json'
    """
    return "-".join(map(str, cell.values())) + ".json"


def is_finished(path: pathlib.Path) -> bool:
    """Whether a cell was measured to its end or to its time limit; what failed is measured again."""
    return path.exists() and json.loads(path.read_text()).get("finished", False)


def measure(cell: dict[str, Any], path: pathlib.Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs a cell's process; what it had measured when its time was over stays, the rest is "not run"."""
    busy = timing.busy_cores()
    if busy is not None and busy > report.IDLE_CORES:
        print(f"(warning: {busy} cores are busy with other work)", end=" ", flush=True)
    path.unlink(missing_ok=True)
    program = pathlib.Path(__file__).with_name("cell.py")
    command = [sys.executable, str(program), json.dumps(cell), str(path), str(options.repeats)]
    log = options.output / "scratch" / f"{path.stem}.log"
    log.parent.mkdir(exist_ok=True)
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # compilation is measured
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        reason = _wait(process, options.limit)
    result = json.loads(path.read_text()) if path.exists() else {"cell": cell, "not_run": {}, "seconds": 0.0}
    if reason:
        result["not_run"]["the rest"] = reason
    result |= {"busy_cores_before": busy, "finished": reason is None or reason.startswith("over")}
    atomic.write_json(path, result)
    return result


def _wait(process, limit):
    """Why a cell is incomplete, None if it is complete; nothing it started is left."""
    try:
        code = process.wait(limit)
        return None if code == 0 else f"failed with exit code {code}, see its log in scratch/"
    except subprocess.TimeoutExpired:
        return f"over its limit of {limit:.0f} s"
    finally:
        # Compilers and trainings that a cell started are in its session.
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


def write_report(output: pathlib.Path) -> None:
    """Writes report.md from all cells in the output directory, those of earlier commands too."""
    results = [json.loads(path.read_text()) for path in sorted((output / "cells").glob("*.json"))]
    modules = {row: importlib.import_module(row) for row in ROWS}
    (output / "report.md").write_text(report.text(results, modules))


if __name__ == "__main__":
    main()
