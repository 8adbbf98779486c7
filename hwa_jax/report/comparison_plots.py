"""The plots of a method comparison: validation curves, and differences to plain training."""

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

from hwa_jax.report.aggregation import COMPARISONS, Row, Section
from hwa_jax.report.comparison_tables import heading, percent
from hwa_jax.report.methods import METHODS
from hwa_jax.report.plots import Series, curves, dot_intervals

_X_LABELS = {
    "equal_steps": "epoch (passes over the data of one replica)",
    "equal_compute": "passes over the data, all replicas together (SAM counts twice)",
}


def curve_plots(sections: Sequence[Section], section: Section, directory: Path) -> list[Path]:
    """Validation accuracy against training length, one PNG per basis of comparison.

    Args:
        sections: all sections of the report; a label looks the same in all their plots.
        section: the one to draw.
        directory: where the PNG files go.

    Returns:
        The files written; a basis without any curve has none.
    """
    styles = _styles(sections)
    paths = []
    for comparison, name in COMPARISONS.items():
        rows = [(row, _runs(row)) for row in section.rows if row.comparison == comparison]
        series = [
            Series(row.label, runs, styles[row.label])
            for row, runs in rows
            if runs and set.intersection(*(set(x) for x, _ in runs.values()))
        ]
        if series:
            title = heading(section, sections)
            path = directory / f"curves_{_slug(title)}_{comparison}.png"
            title = f"{title}, {name}"
            ylabel = "validation accuracy, %"
            paths.append(curves(series, path, _X_LABELS[comparison], ylabel, title))
    return paths


def difference_plot(sections: Sequence[Section], directory: Path) -> list[Path]:
    """Paired differences to plain training with 95 % intervals: one PNG, a panel per section.

    Returns:
        The file written; none when there is no difference to draw.
    """
    panels = {}
    for section in sections:
        panel = {}
        for row in section.rows:
            if row.difference is not None and math.isfinite(row.difference.mean):
                group = panel.setdefault(COMPARISONS[row.comparison], {})
                group[row.label] = percent(row.difference)
        if panel:
            panels[heading(section, sections)] = panel
    if not panels:
        return []
    path = directory / "differences.png"
    xlabel = "difference to plain, percentage points"
    title = "Test accuracy compared with plain training, paired by seed: right of the line is better"
    return [dot_intervals(panels, path, xlabel, title)]


def _styles(sections):
    """Label -> style: a known method has the same in every report, variants take what is free."""
    methods = {row.label: row.method for section in sections for row in section.rows}
    places = {key: place for place, key in enumerate(METHODS)}
    styles = {}
    for label, method in methods.items():
        if method in places:
            styles[label] = places.pop(method)
    taken = set(styles.values())
    free = (style for style in itertools.count() if style not in taken)
    others = [label for label in methods if label not in styles]
    return styles | {label: next(free) for label in others}


def _runs(row: Row):
    """Points of every seed's curve that have a finite accuracy; seeds without any are left out."""
    runs = {}
    for seed, cell in row.cells.items():
        scale = 1.0
        if row.comparison == "equal_compute":
            scale = cell["compute_epochs"] / cell["epochs_per_replica"]
        points = [
            (scale * point["epoch"], 100 * point["accuracy"])
            for point in cell["curve"]
            if point["accuracy"] is not None and math.isfinite(point["accuracy"])
        ]
        if points:
            runs[seed] = tuple(zip(*points))
    return runs


def _slug(text):
    return re.sub(r"[^a-z0-9]+", "_", text.lower().replace(" learning rate", "")).strip("_")
