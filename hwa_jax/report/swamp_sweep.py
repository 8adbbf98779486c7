"""Writes the report of a sweep of SWAMP: report.md, a plot, and results.json."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwa_jax.algorithms.swamp_sweep import BASE
from hwa_jax.report.document import images, write_report
from hwa_jax.report.plots import dot_intervals
from hwa_jax.report.statistics import Interval, mean_ci, paired_difference
from hwa_jax.report.tables import format_interval, format_number, markdown_table

_HOW_TO_READ = """\
Accuracies on the validation split, percent: the mean over the cycles with at least {sparsity:.0%} of the weights pruned. Each field is varied alone, the others
are those of the base. Differences are paired by seed, with 95 % confidence intervals (Student's t); where the interval contains zero, the value is as
good as the base's as far as these seeds can tell. Another fraction has other levels, so its mean is over other densities. Passes are those of all particles
together: N particles cost N times one."""


class Row(NamedTuple):
    """A field, the value it has, the accuracy, its difference to the base, and what it costs in epochs."""

    axis: str
    value: str
    accuracy: Interval
    difference: Interval | None
    epochs: float


def rows(cells: Sequence[Mapping], sparse_from: float) -> Iterator[Row]:
    """The base and every varied value; trainings that diverged are left out, and values of which all did."""
    groups = {}
    for cell in cells:
        if not cell["diverged"]:
            groups.setdefault((cell["axis"], str(cell["value"])), {})[cell["seed"]] = cell
    base = _sparse(groups.get((BASE, "None"), {}), sparse_from)
    for (axis, value), seeds in groups.items():
        accuracy = _sparse(seeds, sparse_from)
        difference = paired_difference(accuracy, base) if axis != BASE and accuracy.keys() & base.keys() else None
        yield Row(axis, "" if axis == BASE else value, mean_ci(accuracy.values()), difference, float(np.mean([c["epochs"] for c in seeds.values()])))


def sweep_table(cells: Sequence[Mapping], sparse_from: float) -> str:
    """A row per varied value."""
    lines = [
        [row.axis, row.value, format_interval(row.accuracy), format_interval(row.difference, signed=True), format_number(row.epochs, 0)]
        for row in rows(cells, sparse_from)
    ]
    return markdown_table(["field", "value", "accuracy, %", "difference to the base, points", "passes over the data"], lines, "llrrr")


def write_sweep(cells: Sequence[Mapping], directory: Path, *, title: str, sparse_from: float, meta: Mapping) -> Path:
    """Writes report.md, a plot and results.json, as `document.write_report`.

    Args:
        cells: as `hwa_jax.algorithms.swamp_sweep.run` returns them.
        sparse_from: levels from this sparsity on count.
        directory, title, meta: as there.
    """

    def body(directory):
        base = {cell["axis"]: cell["base_value"] for cell in cells if cell["axis"] != BASE}
        yield f"The base: {', '.join(f'{axis} {value}' for axis, value in base.items())}."
        yield sweep_table(cells, sparse_from)
        panels = {}
        for row in rows(cells, sparse_from):
            if row.difference is not None:
                panels.setdefault(row.axis, {"validation": {}})["validation"][row.value] = row.difference
        if panels:
            yield from images([dot_intervals(panels, directory / "differences.png", "accuracy minus the base's, percentage points", title)])
        yield _HOW_TO_READ.format(sparsity=sparse_from)
        if diverged := [f"{cell['axis']} {cell['value']}, seed {cell['seed']}" for cell in cells if cell["diverged"]]:
            yield f"Diverged, and left out: {'; '.join(diverged)}."

    return write_report(directory, body, title=title, cells=cells, meta=meta)


def _sparse(seeds, sparse_from):
    return {
        seed: 100 * float(np.mean([level["validation"] for level in cell["levels"] if level["sparsity"] >= sparse_from])) for seed, cell in seeds.items()
    }
