"""Plots of the instruments: segments, chains of solutions, convex hulls, curvature."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hwa_jax.report.plots import COLOURS, DASHES, MARKERS, figure_file, tidy

# Quantity -> its axis, and the factor from what is stored to what is shown.
_QUANTITIES = {"loss": ("loss, nats", 1.0), "error": ("error, %", 100.0)}
# Of the width of an axis.
_NARROWEST_BAR = 0.008


def segments(pairs: Sequence[Mapping], path: Path, title: str) -> Path:
    """Draws loss and error along the segments between pairs of weights, a line per pair.

    Args:
        pairs: as `hwa_jax.analysis.studies.connectivity_study` returns them.
        path: PNG file to write; complete or absent.
        title: one line above both panels.

    Returns:
        path.
    """
    with figure_file(path, width=11.0, height=4.4) as figure:
        for axes, (quantity, (label, factor)) in zip(figure.subplots(1, 2), _QUANTITIES.items()):
            for number, pair in enumerate(pairs):
                axes.plot(
                    pair["position"], factor * np.array(pair[quantity]), linewidth=1.6, markersize=5,
                    color=COLOURS[number % len(COLOURS)], linestyle=DASHES[(number + number // len(COLOURS)) % len(DASHES)],
                    marker=MARKERS[number % len(MARKERS)], markevery=(number % 3, max(1, len(pair["position"]) // 6)),
                    label=f"{pair['from']} to {pair['to']}",
                )
            axes.set(xlabel="position on the segment: 0 is the first, 1 the second", ylabel=label)
            tidy(axes, grid="both")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=4)
        figure.suptitle(title, x=0.01, ha="left")
    return path


def chain(pairs: Sequence[Mapping], path: Path, title: str) -> Path:
    """Draws loss and error along the way from one solution to the next, solutions marked.

    Args:
        pairs: successive ones, as `hwa_jax.analysis.studies.connectivity_study` returns them.
        path: PNG file to write; complete or absent.
        title: one line above both panels.

    Returns:
        path.
    """
    names = [pairs[0]["from"], *(pair["to"] for pair in pairs)]
    every = -(-len(names) // 12)
    with figure_file(path, width=11.0, height=6.0) as figure:
        for axes, (quantity, (label, factor)) in zip(figure.subplots(2, 1, sharex=True), _QUANTITIES.items()):
            for number, pair in enumerate(pairs):
                axes.plot(number + np.array(pair["position"]), factor * np.array(pair[quantity]), color=COLOURS[2], linewidth=1.6)
            ends = [pairs[0][quantity][0], *(pair[quantity][-1] for pair in pairs)]
            axes.plot(range(len(names)), factor * np.array(ends), linestyle="", marker="o", color="black", markersize=5)
            axes.set(ylabel=label)
            axes.set_xticks(range(0, len(names), every), names[::every])
            tidy(axes, grid="both")
        axes.set_xlabel("solutions in the order of training (dots), and the segments between them")
        figure.suptitle(title, x=0.01, ha="left")
    return path


def hull(study: Mapping, path: Path, title: str) -> Path:
    """Draws how loss and error are distributed inside a convex hull, against its corners and its centre.

    Args:
        study: as `hwa_jax.analysis.studies.hull_study` returns it.
        path: PNG file to write; complete or absent.
        title: one line above both panels.

    Returns:
        path.
    """
    with figure_file(path, width=11.0, height=3.8) as figure:
        for axes, (quantity, (label, factor)) in zip(figure.subplots(1, 2), _QUANTITIES.items()):
            # An error is a whole number of examples: rounding must not make two bars of one.
            ends = [corner[quantity] for corner in study["corners"].values()]
            inside, corners = (np.round(factor * np.array(values), 9) for values in (study["inside"][quantity], ends))
            shown = np.concatenate([inside, corners])
            span = np.ptp(shown) or 0.1 * max(abs(shown[0]), 1e-9)
            places, counts, bar_width = _bars(inside, span)
            axes.bar(places, counts, bar_width, color=COLOURS[1], edgecolor="white", label=f"{len(inside)} points inside")
            axes.set_xlim(shown.min() - 0.08 * span, shown.max() + 0.08 * span)
            height = axes.get_ylim()[1]
            below = np.full(len(corners), -0.06 * height)
            axes.plot(corners, below, linestyle="", marker="^", color=COLOURS[7], label="corners")
            axes.axvline(corners.mean(), color=COLOURS[7], linestyle=DASHES[1], label="mean of the corners")
            axes.axvline(factor * study["centre"][quantity], color="black", linestyle="-", label="centre (the average)")
            axes.set(xlabel=label, ylabel="points")
            axes.set_ylim(-0.12 * height, 1.05 * height)
            axes.yaxis.get_major_locator().set_params(integer=True)
            tidy(axes, grid="x")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.suptitle(title, x=0.01, ha="left")
    return path


def _bars(values, span):
    """Centres, heights and width of a histogram's bars on an axis of this span; a bar per value where these are far enough apart to be seen."""
    distinct, counts = np.unique(values, return_counts=True)
    width = min(0.8 * np.diff(distinct).min(initial=np.inf), 0.03 * span)
    if width >= _NARROWEST_BAR * span:
        return distinct, counts, width
    counts, edges = np.histogram(values, bins=min(20, math.ceil(2 * math.sqrt(len(values)))))
    return (edges[1:] + edges[:-1]) / 2, counts, edges[1] - edges[0]


def curvature(study: Mapping[str, Mapping], path: Path, title: str) -> Path:
    """Draws trace, largest eigenvalue and adaptive sharpness of several weights, with two standard errors.

    Args:
        study: as `hwa_jax.analysis.studies.curvature_study` returns it.
        path: PNG file to write; complete or absent.
        title: one line above all panels.

    Returns:
        path.
    """
    rows = list(study.values())
    panels = {
        "trace of the Hessian": [(row["trace"], row["trace_error"]) for row in rows],
        "largest eigenvalue": [(row["eigenvalues"][0], row["residuals"][0] / 2) for row in rows],
        "adaptive sharpness, nats": [(row["sharpness"], row["sharpness_error"]) for row in rows],
    }
    with figure_file(path, width=11.0, height=1.6 + 0.36 * len(rows)) as figure:
        grid = figure.subplots(1, 3, sharey=True)
        for axes, (name, values) in zip(grid, panels.items()):
            value, error = np.array(values).T
            axes.errorbar(value, range(len(rows)), xerr=2 * error, fmt="o", color=COLOURS[2], capsize=3, markersize=5)
            axes.set_xlabel(name)
            low, high = min(0.0, (value - 2 * error).min()), max(0.0, (value + 2 * error).max())
            axes.set_xlim(low if low == 0 else low - 0.08 * (high - low), high + 0.08 * (high - low))
            tidy(axes, grid="x")
        grid[0].set_yticks(range(len(rows)), list(study))
        grid[0].set_ylim(len(rows) - 0.5, -0.5)
        figure.suptitle(title, x=0.01, ha="left")
    return path
