"""Plots as PNG files: curves with bands over seeds, and dots with intervals.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), with grey for their
yellow, which a white page swallows. Every line also has its own dashes and marker, so that
a grey print stays readable.
"""

import contextlib
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hwa_jax.report.statistics import Interval, mean_ci
from hwa_jax.storage.atomic import write_bytes

COLOURS = (
    "#000000", "#56B4E9", "#0072B2", "#009E73", "#888888", "#E69F00", "#CC79A7", "#D55E00",
)  # fmt: skip
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1.5)), "-", "--", "-")
MARKERS = ("o", "s", "^", "v", "D", "P", "X", "*")
_MOST_DIRECT_LABELS = 4
_SHOWN_FROM = 0.25
_DPI = 150


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a plot: the same measurement repeated over seeds.

    Attributes:
        label: its name in the legend.
        runs: seed -> (x, y), two sequences of one length, x ascending.
        style: number of its colour, dashes and marker; give a method the same one everywhere.
    """

    label: str
    runs: Mapping[int, tuple[Sequence[float], Sequence[float]]]
    style: int


def curves(
    series: Sequence[Series], path: Path, xlabel: str, ylabel: str, title: str, *, xticks: Mapping[float, str] | None = None,
    ylim: tuple[float, float] | None = None, log_y: bool = False, zero_line: bool = False,
) -> Path:
    """Draws the mean over seeds of every series, with a 95 % confidence band where n > 1.

    A mean is drawn where all seeds of a series have a finite value. Unless limits are given, the y axis is
    fitted to what follows the first quarter of the x axis, so that the start does not flatten the rest. Up to
    four series are named beside their ends; more go to a legend outside the axes, in the
    order in which they end. A series without points is left out.

    Args:
        series: the lines.
        path: PNG file to write; complete or absent, its directory must exist.
        xlabel: name and unit of the x axis.
        ylabel: name and unit of the y axis.
        title: one line above the axes.
        xticks: x -> its label, instead of numbers.
        ylim: limits of the y axis.
        log_y: whether the y axis is logarithmic, and shows everything.
        zero_line: whether a line marks y = 0.

    Returns:
        path.

    Raises:
        ValueError: no series has a point.
    """
    lines = [(s, *_mean_and_band(s.runs)) for s in series]
    lines = sorted((line for line in lines if len(line[1])), key=lambda line: -line[2][-1])
    if not lines:
        raise ValueError(f"series: none of {len(series)} has a point to draw")
    is_direct = len(lines) <= _MOST_DIRECT_LABELS and not log_y
    # A legend beside the axes takes room of its own.
    legend_width = 0 if is_direct else 1 + 0.09 * max(len(one.label) for one, *_ in lines)
    with figure_file(path, width=7.5 + legend_width, height=4.5) as figure:
        axes = figure.subplots()
        shade = 0.15 if is_direct else 0.07
        for one, x, mean, half_width in lines:
            _draw_line(axes, one, x, mean)
            axes.fill_between(
                x, mean - half_width, mean + half_width, color=_colour(one), alpha=shade, lw=0
            )
        if log_y:
            axes.set_yscale("log")
        else:
            axes.set_ylim(*(ylim or _shown_range(lines)))
        if zero_line:
            axes.axhline(0, color="black", linewidth=1)
        if xticks is not None:
            axes.set_xticks(list(xticks), list(xticks.values()), rotation=45, ha="right")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        figure.suptitle(title, x=0.01, ha="left")
        note = _note([len(one.runs) for one, *_ in lines], "shaded")
        axes.set_title(note, loc="left", fontsize=9, color="#444444")
        tidy(axes, grid="both")
        if is_direct:
            _label_ends(axes, lines)
        else:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=4)
    return path


def dot_intervals(
    panels: Mapping[str, Mapping[str, Mapping[str, Interval]]],
    path: Path,
    xlabel: str,
    title: str,
) -> Path:
    """Draws dots with intervals against a zero line: a row per name, a panel per setting.

    A single value (n = 1) is a hollow dot without an interval. A second line above the panels says how many
    seeds there are, and what the bars show.

    Args:
        panels: panel title -> group (one colour and marker each, named in a legend) -> row
            name -> interval.
        path: PNG file to write; complete or absent, its directory must exist.
        xlabel: name and unit of the x axis.
        title: one line above all panels.

    Returns:
        path.

    Raises:
        ValueError: there is no interval to draw.
    """
    names = {heading: list(dict.fromkeys(n for group in panel.values() for n in group)) for heading, panel in panels.items()}
    groups = list(dict.fromkeys(group for panel in panels.values() for group in panel))
    if not any(names.values()):
        raise ValueError("panels: no interval to draw")
    columns = min(2, len(panels))
    counts = [len(found) for found in names.values()]
    heights = [0.8 + 0.36 * max(counts[start : start + columns]) for start in range(0, len(counts), columns)]
    with figure_file(path, width=5.5 * columns, height=1.2 + sum(heights)) as figure:
        grid = figure.subplots(len(heights), columns, sharex=True, squeeze=False, height_ratios=heights).ravel()
        for axes, (heading, panel) in zip(grid, panels.items()):
            axes.axvline(0, color="black", linewidth=1)
            for number, group in enumerate(groups):
                _draw_group(axes, panel.get(group, {}), names[heading], number, len(groups))
            axes.set_title(heading, loc="left", fontsize=10)
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)
            tidy(axes, grid="x")
            axes.set_yticks(range(len(names[heading])), names[heading])
            axes.set_ylim(len(names[heading]) - 0.5, -0.5)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        counts = [interval.n for panel in panels.values() for group in panel.values() for interval in group.values()]
        hollow = "; hollow: one seed" if 1 in counts and max(counts) > 1 else ""
        figure.suptitle(f"{title}\n{_note(counts, 'bars')}{hollow}", x=0.01, ha="left")
        figure.legend(*_legend_entries(groups), loc="outside lower center", ncols=len(groups))
    return path


@contextlib.contextmanager
def figure_file(path: Path, width: float, height: float):
    """A context that yields an empty figure of so many inches, and writes it as PNG at its end; complete or absent."""
    # A Figure with its own canvas needs no pyplot, hence no global state and no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DPI, bbox_inches="tight")
    write_bytes(path, png.getvalue())


def _mean_and_band(runs):
    """x where all runs have a finite y, its mean there, and the half width of its interval."""
    by_x = [dict(zip(x, y, strict=True)) for x, y in runs.values()]
    shared = sorted(set.intersection(*map(set, by_x))) if by_x else []
    points = [mean_ci([run[x] for run in by_x]) for x in shared]
    table = np.array([(x, p.mean, p.half_width) for x, p in zip(shared, points)]).reshape(-1, 3)
    return table[np.isfinite(table[:, 1])].T


def _colour(one):
    return COLOURS[one.style % len(COLOURS)]


def _draw_line(axes, one, x, mean):
    dashes = DASHES[(one.style + one.style // len(COLOURS)) % len(DASHES)]
    axes.plot(
        x,
        mean,
        color=_colour(one),
        linestyle=dashes,
        linewidth=1.6,
        marker=MARKERS[one.style % len(MARKERS)],
        markersize=5,
        markevery=(one.style % 3, max(1, len(x) // 8)) if len(x) > 3 else None,
        label=one.label,
    )


def _note(counts, shown_as):
    counts = sorted(set(counts))
    if counts == [1]:
        return "one seed, no interval"
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"mean over {seeds} seeds; {shown_as}: 95 % confidence interval of the mean"


def _shown_range(lines):
    """Limits of y: the means after the start, and their bands up to half the span of the means.

    Two seeds have bands thirteen standard errors wide: fitting those would flatten every line.
    """
    start = _SHOWN_FROM * max(x[-1] for _, x, _, _ in lines)
    mean = np.concatenate([mean[x >= start] for _, x, mean, _ in lines])
    band = np.nan_to_num(np.concatenate([half[x >= start] for _, x, _, half in lines]))
    span = np.ptp(mean)
    if span == 0:
        return None, None
    low = max((mean - band).min(), mean.min() - span / 2)
    high = min((mean + band).max(), mean.max() + span / 2)
    return low - 0.05 * span, high + 0.05 * span


def _label_ends(axes, lines):
    """Names each line beside its last point, moved apart where two would touch."""
    low, high = axes.get_ylim()
    gap = 0.055 * (high - low)
    place = high + gap
    for one, x, mean, _ in lines:
        # A line that leaves the plot is named at its edge.
        end = np.clip(mean[-1], low, high)
        place = min(end, place - gap)
        axes.annotate(
            one.label,
            xy=(x[-1], end),
            xytext=(1.03, place),
            textcoords=axes.get_yaxis_transform(),
            color=_colour(one),
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.8},
        )


def _draw_group(axes, intervals, names, number, num_groups):
    colour, marker = _group_style(number)
    for name, interval in intervals.items():
        y = names.index(name) + 0.3 * (number - (num_groups - 1) / 2)
        axes.errorbar(
            interval.mean,
            y,
            xerr=None if interval.n == 1 else interval.half_width,
            fmt=marker,
            color=colour,
            markerfacecolor="white" if interval.n == 1 else colour,
            markersize=5,
            capsize=3,
        )


def _group_style(number):
    return COLOURS[(2, 7, 3, 6)[number % 4]], MARKERS[number % len(MARKERS)]


def _legend_entries(groups):
    from matplotlib.lines import Line2D

    styles = [_group_style(number) for number in range(len(groups))]
    handles = [Line2D([], [], linestyle="", marker=m, color=colour) for colour, m in styles]
    return handles, groups


def tidy(axes, grid: str) -> None:
    """Axes with a pale grid behind what is drawn ("x", "y" or "both") and open at the top and the right."""
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
