"""Heat maps of a figure over two settings, with what is as good as the best marked."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwa_jax.report.plots import figure_file

_COLOUR_MAP = "cividis"
_CELL = (0.75, 0.45)  # inches


class HeatMap(NamedTuple):
    """One panel.

    Attributes:
        rows, columns: labels; "H" and "1 epoch" for example, the first is the axis' name.
        values: [rows, columns]; NaN where there is none.
        marked: bool [rows, columns].
    """

    row_name: str
    rows: list[str]
    column_name: str
    columns: list[str]
    values: np.ndarray
    marked: np.ndarray


def heat_maps(panels: Mapping[str, HeatMap], path: Path, *, title: str, label: str) -> Path:
    """Draws panels side by side with one colour scale, the value in every cell and a dot where it is marked.

    The colour map is cividis, which reads the same with colour vision deficiencies and in grey.

    Args:
        panels: title -> panel; at least one value is finite.
        path: PNG file to write; complete or absent.
        title: one line above all panels.
        label: what the colours are, with the unit.

    Returns:
        path.
    """
    finite = np.concatenate([panel.values[np.isfinite(panel.values)] for panel in panels.values()])
    # One bad setting must not make all others one colour.
    low, high = np.quantile(finite, 0.1), finite.max()
    widths = [_CELL[0] * len(panel.columns) + 1.4 for panel in panels.values()]
    height = _CELL[1] * max(len(panel.rows) for panel in panels.values()) + 1.6
    with figure_file(path, width=sum(widths) + 0.8, height=height) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
        for axes, (name, panel) in zip(grid, panels.items()):
            image = axes.imshow(panel.values, cmap=_COLOUR_MAP, vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
            axes.set(xlabel=panel.column_name, ylabel=panel.row_name)
            axes.set_xticks(range(len(panel.columns)), panel.columns)
            axes.set_yticks(range(len(panel.rows)), panel.rows)
            axes.set_title(name, loc="left", fontsize=10)
            for (row, column), value in np.ndenumerate(panel.values):
                if np.isfinite(value):
                    text = f"{value:.2f}" + (" •" if panel.marked[row, column] else "")
                    dark = value < (low + high) / 2
                    axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        figure.colorbar(image, ax=list(grid), extend="min", label=label)
        figure.suptitle(title, x=0.01, ha="left")
    return path
