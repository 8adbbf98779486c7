"""Heat maps of a figure over two settings, with what is as good as the best marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwa_jax.report.plots import figure_file

_COLOUR_MAP = "cividis"
_CELL = (0.8, 0.45)  # inches


class HeatMap(NamedTuple):
    """A figure over two settings.

    Attributes:
        row_name, rows: what a row is, "H" for example, and the label of each.
        column_name, columns: likewise.
        values: float [rows, columns]; NaN where there is none, but not everywhere.
        marked: bool [rows, columns].
    """

    row_name: str
    rows: Sequence[str]
    column_name: str
    columns: Sequence[str]
    values: np.ndarray
    marked: np.ndarray


def heat_map(cells: HeatMap, path: Path, *, title: str, subtitle: str, label: str) -> Path:
    """Draws the value in every cell, and a dot where it is marked.

    The colour map is cividis, which reads the same with colour vision deficiencies and in grey.

    Args:
        cells: what to draw.
        path: PNG file to write; complete or absent.
        title, subtitle: a line each above the cells.
        label: what the colours are, with the unit.

    Returns:
        path.
    """
    finite = cells.values[np.isfinite(cells.values)]
    # One bad setting must not make all others one colour.
    low, high = np.quantile(finite, 0.1), finite.max()
    width, height = (size * count for size, count in zip(_CELL, (len(cells.columns), len(cells.rows))))
    with figure_file(path, width=max(width + 2.2, 5.0), height=height + 1.6) as figure:
        axes = figure.subplots()
        image = axes.imshow(cells.values, cmap=_COLOUR_MAP, vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        axes.set(xlabel=cells.column_name, ylabel=cells.row_name)
        axes.set_xticks(range(len(cells.columns)), cells.columns)
        axes.set_yticks(range(len(cells.rows)), cells.rows)
        axes.set_title(subtitle, loc="left", fontsize=9, color="#444444")
        for place, value in np.ndenumerate(cells.values):
            if np.isfinite(value):
                text = f"{value:.2f}" + (" •" if cells.marked[place] else "")
                colour = "white" if value < (low + high) / 2 else "black"
                axes.text(place[1], place[0], text, ha="center", va="center", fontsize=8, color=colour)
        figure.colorbar(image, ax=axes, extend="min", label=label)
        figure.suptitle(title, x=0.01, ha="left")
    return path
