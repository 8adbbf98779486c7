"""Measures one cell of `benchmarks/run.py` in this process: python cell.py CELL_AS_JSON OUTPUT REPEATS.

The output is written anew after every comparison, so that a process that is ended leaves what it has measured.
"""

import importlib
import json
import os
import pathlib
import sys
import time
from importlib import metadata

from hwa_jax.storage import atomic
from hwa_jax.training.environment import environment


def main(cell: str, output: str, repeats: str) -> None:
    cell, start = json.loads(cell), time.perf_counter()
    result = {"cell": cell, "ratios": {}, "figures": {}, "not_run": {}, "environment": machine()}
    for part in importlib.import_module(cell["row"]).measure(cell, int(repeats)):
        for name, values in part.items():
            result[name] |= values
        result["seconds"] = time.perf_counter() - start
        atomic.write_json(pathlib.Path(output), result)


def machine() -> dict:
    """What a figure depends on besides the code."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = None
    return {
        **environment(), "torch": torch, "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "load_average": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
