"""Parts of any report: images, provenance, and its figures as JSON."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwa_jax.report.statistics import Interval
from hwa_jax.storage.atomic import write_text
from hwa_jax.training.environment import environment


def images(paths: Sequence[Path]) -> list[str]:
    """Markdown that shows PNG files beside the report."""
    return [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in paths]


def write_report(
    directory: Path, body: Callable[[Path], Iterable[str]], *, title: str, cells: Sequence[Mapping], meta: Mapping, **results: Any
) -> Path:
    """Writes report.md and results.json; every file complete or absent, report.md last.

    Args:
        directory: made if absent; files of the same names are replaced.
        body: the directory -> paragraphs between the opening one and how it was obtained; it may write plots there.
        title: first line of the report.
        cells: what the report is about, as `provenance`.
        meta: "description" becomes the opening paragraph and "command" a code block; the rest is listed.
        results: what else results.json holds, beside the cells, meta and the environment.

    Returns:
        The path of report.md.

    Raises:
        UserError: a file cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    machine = environment()
    write_text(directory / "results.json", json_text({"meta": meta, "environment": machine, "cells": cells, **results}))
    parts = [f"# {title}", meta["description"], *body(directory), "## How it was obtained", *provenance(cells, machine, meta)]
    path = directory / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def provenance(cells: Sequence[Mapping], machine: Mapping, meta: Mapping) -> list[str]:
    """How results were obtained: a list of facts, and the command.

    Args:
        cells: with "seed", "num_train" and, where it is on record, "environment".
        machine: as `hwa_jax.training.environment.environment` returns it.
        meta: what else a reader needs; "command" becomes a code block, "description" is left out.
    """
    seeds = sorted({cell["seed"] for cell in cells})
    sizes = sorted({cell["num_train"] for cell in cells if cell["num_train"]})
    facts = {
        "seeds": f"{len(seeds)} ({', '.join(map(str, seeds))})",
        "training samples": " or ".join(f"{size:,}" for size in sizes),
        "hardware": f"{machine['cpu_model']}, {machine['cpu_cores']} cores; JAX on "
        f"{machine['num_devices']} × {machine['device_kind']}",
        "versions": ", ".join(
            f"{name} {machine[name]}"
            for name in ("python", "jax", "jaxlib", "flax", "optax", "orbax", "numpy")
        ),
        "commit of this report": machine["git_commit"] or "not run from a checkout",
        "commits of the trainings": ", ".join(sorted({_commit(cell) for cell in cells})),
    }
    facts |= {key: meta[key] for key in meta if key not in ("description", "command")}
    listed = "\n".join(f"- {key}: {_inline(value)}" for key, value in facts.items())
    return [listed, *([f"```\n{meta['command']}\n```"] if "command" in meta else [])]


def _commit(cell):
    return (cell.get("environment") or {}).get("git_commit") or "not recorded"


def _inline(value):
    return value if isinstance(value, str) else f"`{json.dumps(json_ready(value))}`"


def json_text(results: Mapping) -> str:
    """JSON with a line per cell and per section: small, and readable in a diff."""
    parts = []
    for key, value in json_ready(results).items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(item, allow_nan=False) for item in value)
            parts.append(f'"{key}": [\n{lines}\n]')
        else:
            parts.append(f'"{key}": {json.dumps(value, indent=1, allow_nan=False)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def json_ready(value: Any) -> Any:
    """The value with mappings, lists and plain numbers only; what is not finite is null."""
    if isinstance(value, Interval):
        return json_ready(vars(value))
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
