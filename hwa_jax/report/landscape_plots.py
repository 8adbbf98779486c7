"""The loss on a plane through weight space, with the weights that were found there."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hwa_jax.report.plots import MARKERS, figure_file

_NUM_LEVELS = 13
# Everything above this quantile of a grid is one colour: the corners of a plane are far above its valley.
_HIGHEST = 0.85
# Of the width of a plane: below it a point is in the plane, or two points are one.
_IN_THE_PLANE, _TOGETHER = 1e-3, 0.02
_COLOUR_MAP = "cividis_r"
_WIDTH = 6.4  # of a panel, inches
_FONT = 9


def landscape(plane: Mapping, path: Path, *, title: str, xlabel: str, ylabel: str, split: str) -> Path:
    """Draws the loss of a plane as contours and its error as cells, with labelled points and a trajectory.

    Contours lie closer together near the minimum, where the differences between solutions are: their distances grow as
    in a quadratic bowl. Both axes have one scale. The colour map is cividis, which reads the same with colour vision
    deficiencies and in grey.

    Args:
        plane: as `hwa_jax.analysis.studies.landscape_study` returns it.
        path: PNG file to write; complete or absent.
        title: one line above both panels.
        xlabel, ylabel: what an axis measures.
        split: on which loss and error were computed.

    Returns:
        path.
    """
    x, y = np.array(plane["x"]), np.array(plane["y"])
    height = _WIDTH * np.ptp(y) / np.ptp(x)
    trajectory = plane["trajectory"]
    ends = {name: trajectory[name] for name in [*trajectory][:1] + [*trajectory][-1:]}
    marked = _marked({**plane["positions"], **ends}, np.ptp(x))
    with figure_file(path, width=2 * _WIDTH + 1.5, height=height + 1.4) as figure:
        figure.set_layout_engine("compressed")  # colour bars as high as axes whose scale is fixed
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        contours, tick_format = _contours(left, x, y, np.array(plane["loss"]))
        figure.colorbar(contours, ax=left, format=tick_format)
        figure.colorbar(_cells(right, x, y, 100 * np.array(plane["error"])), ax=right, extend="max")
        for axes, name in ((left, f"{split} loss, nats"), (right, f"{split} error, %")):
            _draw_trajectory(axes, trajectory)
            _draw_points(axes, marked, trajectory, x, y)
            axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")
            axes.set_title(name, loc="left", fontsize=10)
        figure.suptitle(title, x=0.01, ha="left")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), fontsize=_FONT)
    return path


def _contours(axes, x, y, loss):
    from matplotlib.colors import BoundaryNorm

    low, high = _limits(loss)
    levels = low + (high - low) * np.linspace(0, 1, _NUM_LEVELS) ** 3
    # As many decimals as it takes to tell the lowest two that are written apart.
    tick_format = f"%.{max(0, int(np.ceil(-np.log10(levels[2] - levels[0]))))}f"
    # Equal steps of colour from level to level, not in proportion to the loss: else the valley is one yellow.
    norm = BoundaryNorm(levels, 256, extend="max")
    filled = axes.contourf(x, y, loss, levels, cmap=_COLOUR_MAP, norm=norm, extend="max")
    lines = axes.contour(x, y, loss, levels[1:-1], colors="black", linewidths=0.4, alpha=0.6)
    axes.clabel(lines, levels[3:-1:3], fontsize=7, fmt=tick_format)
    return filled, tick_format


def _cells(axes, x, y, error):
    """Cells, not contours: on few examples an error has few values, and contours between them would be invented."""
    low, high = _limits(error)
    return axes.pcolormesh(x, y, error, cmap=_COLOUR_MAP, vmin=low, vmax=high, shading="nearest")


def _limits(values):
    finite = values[np.isfinite(values)]
    low, high = finite.min(), np.quantile(finite, _HIGHEST)
    return low, max(high, low + 1e-3 * max(abs(low), 1.0))  # a plateau has a range too


def _marked(positions, width):
    """Label -> (x, y, text for the legend); weights that lie at one place share a marker."""
    groups = []
    for name, (x, y, distance) in positions.items():
        near = [group for group in groups if np.hypot(group[1] - x, group[2] - y) < _TOGETHER * width]
        where = name if distance <= _IN_THE_PLANE * width else f"{name} ({distance:.2g} off the plane)"
        if near:
            near[0][0].append(name)
            near[0][3].append(where)
        else:
            groups.append(([name], x, y, [where]))
    return {", ".join(names): (x, y, ", ".join(where)) for names, x, y, where in groups}


def _draw_trajectory(axes, trajectory):
    if len(trajectory) < 2:
        return
    names = list(trajectory)
    x, y, _ = np.array(list(trajectory.values())).T
    axes.plot(x, y, color="white", linewidth=3.2, zorder=3)
    axes.plot(x, y, color="black", linewidth=1.2, marker=".", markersize=6, zorder=4, label=f"{names[0]} to {names[-1]}, projected")


def _draw_points(axes, marked, trajectory, x, y):
    """A marker and a label per weight vector."""
    for number, (px, py, text) in enumerate(marked.values()):
        axes.plot(
            px, py, linestyle="", marker=MARKERS[1 + number % (len(MARKERS) - 1)], markersize=9, zorder=5,
            markerfacecolor="white", markeredgecolor="black", markeredgewidth=1.4, label=text,
        )
    labels = {label: (px, py) for label, (px, py, _) in marked.items()}
    scale = 72 * _WIDTH / np.ptp(x)  # points of paper per unit
    occupied = [(scale * px, scale * py, 6.0, 6.0) for px, py in (*labels.values(), *(p[:2] for p in trajectory.values()))]
    frame = [scale * limit for limit in (x[0], x[-1], y[0], y[-1])]
    for label, (px, py) in labels.items():
        dx, dy = _free_place(label, scale * px, scale * py, occupied, frame)
        _write(axes, label, px, py, dx, dy)


def _free_place(label, x, y, occupied, frame):
    """The offset, in points, of the place around (x, y) where a label covers least; the place is then taken."""
    half_width, half_height = 0.28 * _FONT * len(label), 0.6 * _FONT
    best = None
    for radius in (1.4, 2.4, 3.6):
        for angle in np.arange(8) * np.pi / 4:
            cx = x + np.cos(angle) * (half_width + 9 * radius)
            cy = y + np.sin(angle) * (half_height + 9 * radius)
            covered = sum(
                max(0.0, half_width + w - abs(cx - ox)) * max(0.0, half_height + h - abs(cy - oy)) for ox, oy, w, h in occupied
            )
            outside = max(
                0.0, frame[0] - cx + half_width, cx + half_width - frame[1], frame[2] - cy + half_height, cy + half_height - frame[3]
            )
            cost = covered + 1e3 * outside + 5 * radius
            if best is None or cost < best[0]:
                best = (cost, cx, cy)
    _, cx, cy = best
    occupied.append((cx, cy, half_width, half_height))
    return cx - x, cy - y


def _write(axes, text, x, y, dx, dy):
    from matplotlib import patheffects

    axes.annotate(
        text, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=_FONT, zorder=6, ha="center", va="center",
        path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5},
    )
