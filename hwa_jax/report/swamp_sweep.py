"""Writes the report of a sweep of SWAMP: report.md, a plot, a heat map, and results.json."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwa_jax.algorithms.swamp_sweep import BASE
from hwa_jax.report.best_region import best_region
from hwa_jax.report.document import images, write_report
from hwa_jax.report.heat_maps import HeatMap, heat_map
from hwa_jax.report.plots import dot_intervals
from hwa_jax.report.statistics import Interval, mean_ci, paired_difference
from hwa_jax.report.tables import format_interval, format_number, markdown_table

_HOW_TO_READ = """\
Accuracies on the validation split, percent: the mean over the cycles with at least {sparsity:.0%} of the weights pruned. Each field is varied alone, the others
are those of the base. Differences are paired by seed, with 95 % confidence intervals (Student's t); where the interval contains zero, the value is as
good as the base's as far as these seeds can tell. "As good as the best" says the same of the difference to the highest mean among all rows, which is the
luckiest as well; so do the dots in the heat map, level by level. Another fraction has other levels, so its mean is over other densities, and it is not in
the heat map. Passes are those of all particles together: N particles cost N times one."""

_BASE = (BASE, "")


class Row(NamedTuple):
    """A field, the value it has, the accuracy, its difference to the base, what it costs in epochs, and whether it is as good as the best row."""

    axis: str
    value: str
    accuracy: Interval
    difference: Interval | None
    epochs: float
    as_good: bool


def rows(cells: Sequence[Mapping], sparse_from: float) -> Iterator[Row]:
    """The base and every varied value; trainings that diverged are left out, and values of which all did."""
    groups = _by_setting(cells)
    accuracies = {setting: _sparse(seeds, sparse_from) for setting, seeds in groups.items()}
    base, around = accuracies.get(_BASE, {}), best_region(accuracies)
    for setting, seeds in groups.items():
        accuracy, (axis, value) = accuracies[setting], setting
        difference = paired_difference(accuracy, base) if setting != _BASE and accuracy.keys() & base.keys() else None
        epochs = float(np.mean([cell["epochs"] for cell in seeds.values()]))
        yield Row(axis, value, mean_ci(accuracy.values()), difference, epochs, around.contains(setting))


def level_map(cells: Sequence[Mapping]) -> HeatMap:
    """Validation accuracy in percent of every setting with the base's levels, at every level; marked is what is as good as the level's best."""
    groups = _by_setting(cells)
    levels = {setting: tuple(level["sparsity"] for level in next(iter(seeds.values()))["levels"]) for setting, seeds in groups.items()}
    # Another fraction alone has other levels: without the base, those of most settings are its own.
    columns = levels.get(_BASE) or collections.Counter(levels.values()).most_common(1)[0][0]
    groups = {setting: seeds for setting, seeds in groups.items() if levels[setting] == columns}
    values, marked = np.empty((len(groups), len(columns))), np.zeros((len(groups), len(columns)), bool)
    for number in range(len(columns)):
        found = {setting: {seed: 100 * cell["levels"][number]["validation"] for seed, cell in seeds.items()} for setting, seeds in groups.items()}
        values[:, number] = [np.mean(list(seeds.values())) for seeds in found.values()]
        marked[:, number] = list(map(best_region(found).contains, found))
    return HeatMap("", [" ".join(setting).strip() for setting in groups], "weights left", [f"{1 - sparsity:.2g}" for sparsity in columns], values, marked)


def sweep_table(cells: Sequence[Mapping], sparse_from: float) -> str:
    """A row per varied value."""
    lines = [
        [
            row.axis, row.value, format_interval(row.accuracy), format_interval(row.difference, signed=True), "yes" if row.as_good else "no",
            format_number(row.epochs, 0),
        ]
        for row in rows(cells, sparse_from)
    ]
    return markdown_table(["field", "value", "accuracy, %", "difference to the base, points", "as good as the best", "passes over the data"], lines, "llrrlr")


def write_sweep(cells: Sequence[Mapping], directory: Path, *, title: str, sparse_from: float, meta: Mapping) -> Path:
    """Writes report.md, a plot, a heat map and results.json, as `document.write_report`.

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
        if _by_setting(cells):
            yield from images([heat_map(
                level_map(cells), directory / "levels.png", title=title, subtitle="• as good as the best of its column, as far as these seeds can tell",
                label="validation accuracy, %",
            )])
        yield _HOW_TO_READ.format(sparsity=sparse_from)
        if diverged := [f"{cell['axis']} {cell['value']}, seed {cell['seed']}" for cell in cells if cell["diverged"]]:
            yield f"Diverged, and left out: {'; '.join(diverged)}."

    return write_report(directory, body, title=title, cells=cells, meta=meta)


def _by_setting(cells):
    """(Field, value) -> seed -> cell; what diverged is not there, nor a setting of which all did."""
    groups = {}
    for cell in cells:
        setting = _BASE if cell["axis"] == BASE else (cell["axis"], str(cell["value"]))
        seeds = groups.setdefault(setting, {})
        if not cell["diverged"]:
            seeds[cell["seed"]] = cell
    return {setting: seeds for setting, seeds in groups.items() if seeds}


def _sparse(seeds, sparse_from):
    return {
        seed: 100 * float(np.mean([level["validation"] for level in cell["levels"] if level["sparsity"] >= sparse_from])) for seed, cell in seeds.items()
    }
