"""Writes the report of `hwa_jax.algorithms.landscape_comparison`: report.md, its plots, and results.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hwa_jax.report import analysis_plots
from hwa_jax.report.claims import effects_table
from hwa_jax.report.document import images, write_report
from hwa_jax.report.landscape_claims import COMPARED, MEASURES, by_architecture, density, effects, error_barrier, lower_by, share_below
from hwa_jax.report.plots import dot_intervals
from hwa_jax.report.statistics import mean_ci
from hwa_jax.report.tables import format_interval, markdown_table

_CLAIMS = """\
H7: averaged weights sit in flatter regions. S5: particles of one pruning are linearly connected, their convex hull has low loss, and their
average is flatter than they are. Each row is a mean over seeds, positive where the claim holds: "shown" if its 95 % interval
lies above zero, "contradicted" if below, "not shown" if it contains zero. A curvature is compared within each seed: how many percent
lower it is at the average. An error barrier below 2 points counts as none (Frankle et al. 2020)."""

_HWA = """\
Plain: one network, its last weights; offline: the mean of its last I pushes. Inner: one of the two replicas of HWA before they meet; outer: the
mean of the two; HWA: the mean of the last I outer weights. Mean over seeds ± half width of the 95 % interval. Accuracy is on
test images; loss and curvature are those of the training loss, without augmentation. Trace and eigenvalue change when a layer is rescaled although the
network computes the same; adaptive sharpness, the rise of the loss when every weight changes at random by 5 %, does not. Within a seed
all weights saw the same random vectors and the same images. A lower loss brings a lower curvature with it, so the loss stands beside it."""

_SWAMP = """\
Particle: the first one, its SWA average; average: that of all. Barriers are the means over all pairs of particles, on test images. "Hull": the share of
points drawn uniformly from the convex hull of the particles whose loss is below the mean of the particles'."""


def write_comparison(cells: Sequence[Mapping], directory: Path, *, title: str, meta: Mapping) -> Path:
    """Writes report.md, its plots and results.json, as `document.write_report`.

    Args:
        cells: as `hwa_jax.algorithms.landscape_comparison.run` returns them; at least one.
        directory, title, meta: as there.
    """
    found = effects(cells)

    def body(directory):
        if hwa := by_architecture(cells, "hwa"):
            yield from ("## HWA", *images([_hwa_plot(hwa, directory)]), _hwa_table(hwa), _HWA, *images([_segments_plot(hwa, directory)]))
        if swamp := by_architecture(cells, "swamp"):
            yield from ("## SWAMP", *images([_swamp_plot(swamp, directory)]), _swamp_table(swamp), _SWAMP, *images(_hull_plots(swamp, directory)))
        yield from ("## The claims", _CLAIMS, effects_table(found))

    summary = [effect._asdict() | {"verdict": effect.verdict} for effect in found]
    return write_report(directory, body, title=title, cells=cells, meta=meta, summary=summary)


def _hwa_plot(hwa, directory):
    panels = {
        architecture: {
            name: {f"{ours} below {theirs}": mean_ci(lower_by(_first(seeds), measure, ours, theirs)) for ours, theirs in COMPARED}
            for name, measure in MEASURES.items()
        }
        for architecture, seeds in hwa.items()
    }
    return dot_intervals(panels, directory / "hwa_curvature.png", "how much lower, %", "Curvature at averaged weights")


def _swamp_plot(swamp, directory):
    panels = {
        architecture: {
            name: {density(levels[0]): mean_ci(lower_by(levels, measure, "average", "particle 0")) for levels in zip(*seeds.values())}
            for name, measure in MEASURES.items()
        }
        for architecture, seeds in swamp.items()
    }
    return dot_intervals(panels, directory / "swamp_curvature.png", "how much lower, %", "Curvature at the average below a particle's")


def _segments_plot(hwa, directory):
    pairs = [
        pair | {"from": f"{architecture}: {pair['from']}"}
        for architecture, seeds in hwa.items() for group in ("compared", "successive") for pair in _first(seeds)[0]["connectivity"][group]
    ]
    return analysis_plots.segments(pairs, directory / "hwa_segments.png", "Between two replicas, and between the window's ends, on test images, first seed")


def _hull_plots(swamp, directory):
    for architecture, seeds in swamp.items():
        for level in next(iter(seeds.values())):
            path = directory / f"hull_{architecture}_{level['cycle']}.png"
            yield analysis_plots.hull(level["hull"], path, f"Hull of the particles, {architecture}, {density(level)}, on test images, first seed")


def _hwa_table(hwa):
    rows = []
    for architecture, seeds in hwa.items():
        levels = _first(seeds)
        for name in levels[0]["curvature"]:
            curvature = [level["curvature"][name] for level in levels]
            accuracy = [100 * level["metrics"][name]["accuracy"] for level in levels]
            rows.append([
                architecture, name, format_interval(mean_ci(accuracy)), format_interval(mean_ci(row["loss"] for row in curvature), 3),
                *(format_interval(mean_ci(map(measure, curvature)), digits) for measure, digits in zip(MEASURES.values(), (1, 2, 4))), str(len(levels)),
            ])
    return markdown_table(["network", "weights", "test accuracy, %", "training loss, nats", *MEASURES, "n"], rows, "llrrrrrr")


def _swamp_table(swamp):
    rows = []
    for architecture, seeds in swamp.items():
        for levels in zip(*seeds.values()):
            accuracies = [[100 * level["metrics"][name]["accuracy"] for level in levels] for name in ("particle 0", "average")]
            centre = [level["hull"]["centre"]["loss"] - np.mean([corner["loss"] for corner in level["hull"]["corners"].values()]) for level in levels]
            rows.append([
                architecture, density(levels[0]), *(format_interval(mean_ci(accuracy)) for accuracy in accuracies),
                format_interval(mean_ci(error_barrier(level, "compared") for level in levels)),
                format_interval(mean_ci(map(share_below, levels)), 0), format_interval(mean_ci(centre), 3, signed=True), str(len(levels)),
            ])
    header = ["network", "level", "particle, %", "average, %", "error barrier, points", "hull, %", "average - particles, nats", "n"]
    return markdown_table(header, rows, "llrrrrrr")


def _first(seeds):
    """The one level of each seed."""
    return [levels[0] for levels in seeds.values()]
