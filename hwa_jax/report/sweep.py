"""Writes the report of a sweep of HWA: report.md, heat maps, and results.json."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwa_jax.report.best_region import Region, best_region
from hwa_jax.report.claims import Effect, effects_table
from hwa_jax.report.document import images, write_report
from hwa_jax.report.heat_maps import HeatMap, heat_map
from hwa_jax.report.statistics import Interval, mean_ci, paired_difference
from hwa_jax.report.tables import format_interval, markdown_table

_HOW_TO_READ = """\
Accuracies of HWA's weights on the validation split, percent, means over seeds. The best setting of a schedule is the one with the highest mean. A
setting is as good as the best (a dot in the heat maps) if the 95 % interval of its paired difference to the best contains zero. Among so many
settings the best is the luckiest as well: its own figure is an optimistic one, and the region is what to take from here. Few seeds make wide intervals, and
the region large. Every heat map varies two settings and leaves the others at those of the best, so it is a cut through it. K replicas cost K
times the compute of one. H is in steps. I, stride and start come from the stored windows of the same trainings; the last I pushes, every stride-th of them.
A start is where the average begins, in percent of the training, and goes on to its end."""

_TEST = """\
On the test split, which took no part in any choice above: the last outer weights, the average with the configuration's I, and the average with the window that
was best on validation, training by training ("auto"). "Averaged" is I, or all pushes of a training that has fewer."""

_CUTS = (("num_replicas", "sync_period"), ("window_size", "sync_period"), ("window_size", "num_replicas"), ("window_size", "stride"))
_SYMBOLS = {"num_replicas": "K", "sync_period": "H", "window_size": "I", "stride": "stride", "start": "start"}


class Setting(NamedTuple):
    """One point of the sweep; H in steps, I in members."""

    schedule: str
    num_replicas: int
    sync_period: int
    window_size: int
    stride: int


def accuracies(cells: Iterable[Mapping]) -> dict[Setting, dict[int, float]]:
    """Setting -> seed -> validation accuracy in percent; what diverged is not there."""
    found = {}
    for cell in cells:
        for window in cell["windows"]:
            setting = Setting(cell["schedule"], cell["num_replicas"], cell["sync_period"], window["window_size"], window["stride"])
            found.setdefault(setting, {})[cell["seed"]] = 100 * window["accuracy"]
    return found


def region(found: Mapping[Setting, Mapping[int, float]], schedule: str) -> Region | None:
    """The best setting of a schedule and the differences to it in points, as `best_region`."""
    return best_region({setting: seeds for setting, seeds in found.items() if setting.schedule == schedule})


def write_sweep(cells: Sequence[Mapping], directory: Path, *, title: str, window_size: int, meta: Mapping) -> Path:
    """Writes report.md, heat maps and results.json, as `document.write_report`.

    Args:
        cells: as `hwa_jax.algorithms.hwa_sweep.run` returns them.
        window_size: I of the configuration.
        directory, title, meta: as there.
    """

    def body(directory):
        found = accuracies(cells)
        yield from ("## The best settings, and what is as good", best_table(cells), _HOW_TO_READ)
        yield from ("## The configuration's own setting against the best", effects_table(list(_effects(found, window_size))))
        for schedule in dict.fromkeys(cell["schedule"] for cell in cells):
            if (around := region(found, schedule)) is not None:
                yield from (f"## {schedule}", *images(list(_maps(found, around, cells, directory))))
        yield from ("## On the test split", _test_table(cells, window_size), _TEST, *_diverged(cells))

    return write_report(directory, body, title=title, cells=cells, meta=meta)


def best_table(cells: Sequence[Mapping]) -> str:
    """A row per schedule: the best setting, its accuracy, and how far the region that is as good reaches on every axis."""
    found, rows = accuracies(cells), []
    for schedule in dict.fromkeys(cell["schedule"] for cell in cells):
        around = region(found, schedule)
        if around is None:
            rows.append([schedule, *["–"] * 7])
            continue
        best, good = around.best, around.settings
        ranges = [_range(getattr(setting, axis) for setting in good) for axis in Setting._fields[1:]]
        rows.append([
            schedule, f"K={best.num_replicas}, H={best.sync_period}, I={best.window_size}, stride {best.stride}",
            format_interval(mean_ci(found[best].values())), f"{len(good)} of {len(around.differences)}", *ranges,
        ])
    return markdown_table(["schedule", "best", "accuracy, %", "as good", *(f"{_SYMBOLS[axis]} among these" for axis in Setting._fields[1:])], rows, "llrrrrrr")


def _range(values):
    values = sorted(set(values))
    return ", ".join(map(str, values)) if len(values) < 5 else f"{values[0]} to {values[-1]}"


def effects(cells: Sequence[Mapping]) -> list[Effect]:
    """H6 on the page of all claims: how wide the region of the best is.

    Args:
        cells: as in `write_sweep`.

    Returns:
        Per schedule the share of settings as good as the best, which has no interval and is not judged.
    """
    found, shares = accuracies(cells), []
    for schedule in dict.fromkeys(setting.schedule for setting in found):
        around = region(found, schedule)
        good, all_settings = len(around.settings), len(around.differences)
        share = Interval(100 * good / all_settings, math.nan, len(found[around.best]))
        shares.append(Effect("H6", f"settings as good as the best, {good} of {all_settings}", schedule, share, "%"))
    return shares


def _effects(found, window_size):
    """H6: what a practitioner loses who takes the configuration's I, and no stride, at every K and H."""
    for schedule in dict.fromkeys(setting.schedule for setting in found):
        around = region(found, schedule)
        for setting in sorted(found):
            if setting.schedule == schedule and (setting.window_size, setting.stride) == (window_size, 1) and setting in around.differences:
                text = f"K={setting.num_replicas}, H={setting.sync_period}, I={window_size} - the best"
                yield Effect("H6", text, schedule, around.differences[setting], "points, validation")


def _maps(found, around, cells, directory):
    for row, column in _CUTS:
        yield _draw(_cut(found, around, row, column), around.best, (row, column), directory / f"{around.best.schedule}_{row}_{column}.png")
    starts = _start_map(found, around, cells)
    yield _draw(starts, around.best, ("window_size", "stride"), directory / f"{around.best.schedule}_start_stride.png")


def _draw(cells, best, varied, path):
    others = ", ".join(f"{_SYMBOLS[axis]}={getattr(best, axis)}" for axis in Setting._fields[1:] if axis not in varied)
    title = f"{best.schedule}: {cells.row_name} and {cells.column_name}, at {others}"
    return heat_map(cells, path, title=title, subtitle="• as good as the best of all, as far as these seeds can tell", label="validation accuracy, %")


def _cut(found, around, row, column):
    """Two settings vary, the others are those of the best."""
    best = around.best

    def on_the_cut(setting):
        return all(getattr(setting, axis) == getattr(best, axis) for axis in Setting._fields if axis not in (row, column))

    shown = [setting for setting in around.differences if on_the_cut(setting)]
    rows, columns = (sorted({getattr(setting, axis) for setting in shown}) for axis in (row, column))
    return _heat_map(found, around, row, rows, column, columns, lambda r, c: best._replace(**{row: r, column: c}))


def _start_map(found, around, cells):
    best = around.best
    cell = next(c for c in cells if c["windows"] and _training(c) == best[:3])
    strides = [int(stride) for stride in next(iter(cell["starts"].values()))]

    def setting(start, stride):
        return best._replace(window_size=cell["starts"][start][str(stride)], stride=stride)

    return _heat_map(found, around, "start", list(cell["starts"]), "stride", strides, setting)


def _heat_map(found, around, row, rows, column, columns, setting_at):
    values = np.full((len(rows), len(columns)), np.nan)
    marked = np.zeros(values.shape, bool)
    for (i, r), (j, c) in itertools.product(enumerate(rows), enumerate(columns)):
        setting = setting_at(r, c)
        if setting in around.differences:
            values[i, j], marked[i, j] = np.mean(list(found[setting].values())), around.contains(setting)
    return HeatMap(_SYMBOLS[row], list(map(str, rows)), _SYMBOLS[column], list(map(str, columns)), values, marked)


def _test_table(cells, window_size):
    pushes = {_training(cell): max(window["window_size"] for window in cell["windows"]) for cell in cells if not cell["diverged"]}
    rows = []
    for training, values in _test_accuracies(cells).items():
        averaged = str(window_size) if window_size <= pushes[training] else f"all {pushes[training]}"
        rows.append([
            *map(str, training), format_interval(mean_ci(values["outer"].values())), averaged,
            *(format_interval(paired_difference(values[name], values["outer"]), signed=True) for name in ("base", "chosen")),
        ])
    return markdown_table(["schedule", "K", "H", "outer, %", "averaged", "average - outer, points", "auto - outer, points"], rows, "lrrrrrr")


def _training(cell):
    return cell["schedule"], cell["num_replicas"], cell["sync_period"]


def _test_accuracies(cells):
    """(Schedule, K, H) -> "outer", "base" and "chosen" -> seed -> accuracy on the test split in percent; what diverged is not there."""
    found = {}
    for cell in cells:
        if not cell["diverged"]:
            values = found.setdefault(_training(cell), {})
            for name, accuracy in cell["test"].items():
                values.setdefault(name, {})[cell["seed"]] = 100 * accuracy
    return found


def _diverged(cells):
    names = [f"K={c['num_replicas']}, H={c['sync_period']}, {c['schedule']}, seed {c['seed']}" for c in cells if c["diverged"]]
    return [f"Diverged, and left out above: {'; '.join(names)}."] if names else []
