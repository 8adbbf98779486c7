"""Claims H7 and S5 as paired effects, from the cells of `hwa_jax.algorithms.landscape_comparison`.

Curvatures are compared by ratios: how many percent lower it is at the average than at what is averaged.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from hwa_jax.report.claims import Effect
from hwa_jax.report.statistics import mean_ci

# Name -> of the curvature of one set of weights.
MEASURES: dict[str, Callable[[Mapping], float]] = {
    "Hessian trace": lambda row: row["trace"],
    "largest eigenvalue": lambda row: row["eigenvalues"][0],
    "adaptive sharpness": lambda row: row["sharpness"],
}
# Average -> what it is beside.
COMPARED = (("HWA", "plain"), ("HWA", "outer"), ("HWA", "inner"), ("outer", "inner"), ("offline", "plain"))
# An error barrier below it is none, in points: Frankle et al. 2020.
_CONNECTED = 2.0


def effects(cells: Sequence[Mapping]) -> list[Effect]:
    """All effects that the cells allow, positive where the claim holds."""
    return [*_hwa(cells), *_swamp(cells)]


def by_architecture(cells: Sequence[Mapping], study: str) -> dict[str, dict[int, Sequence[Mapping]]]:
    """Architecture -> seed -> levels of one study, "hwa" or "swamp"."""
    found = {}
    for cell in cells:
        if cell["study"] == study:
            found.setdefault(cell["architecture"], {})[cell["seed"]] = cell["levels"]
    return found


def lower_by(levels: Sequence[Mapping], measure: Callable[[Mapping], float], ours: str, theirs: str) -> list[float]:
    """By how many percent a measure of curvature is lower at `ours`; one level of each seed.

    Example:
        >>> level = {"curvature": {"HWA": {"trace": 30.0}, "plain": {"trace": 40.0}}}
        >>> lower_by([level], lambda row: row["trace"], "HWA", "plain")
        [25.0]
    """
    return [100 * (1 - measure(level["curvature"][ours]) / measure(level["curvature"][theirs])) for level in levels]


def density(level: Mapping) -> str:
    """How many of the prunable weights a level has left.

    Example:
        >>> density({"sparsity": 0.8704})
        '13 % left'
    """
    return f"{100 * (1 - level['sparsity']):.3g} % left"


def error_barrier(level: Mapping, group: str) -> float:
    """The mean error barrier of the segments of a group, "compared" or "successive", in points."""
    return 100 * float(np.mean([pair["error_barrier"] for pair in level["connectivity"][group]]))


def share_below(level: Mapping) -> float:
    """Percent of the points inside the hull whose loss is below the mean of the corners'."""
    corners = np.mean([corner["loss"] for corner in level["hull"]["corners"].values()])
    return 100 * float(np.mean(np.array(level["hull"]["inside"]["loss"]) < corners))


def _hwa(cells) -> Iterator[Effect]:
    for architecture, seeds in by_architecture(cells, "hwa").items():
        levels = [found[0] for found in seeds.values()]
        for name, measure in MEASURES.items():
            for ours, theirs in COMPARED:
                lower = mean_ci(lower_by(levels, measure, ours, theirs))
                yield Effect("H7", f"{name} of {ours} below that of {theirs}", architecture, lower, "%")
        for group, name in (("compared", "replicas before they meet"), ("successive", "the window's ends")):
            yield _no_barrier("H7", name, architecture, [error_barrier(level, group) for level in levels])


def _swamp(cells) -> Iterator[Effect]:
    for architecture, seeds in by_architecture(cells, "swamp").items():
        for levels in zip(*seeds.values()):
            setting = f"{architecture}, {density(levels[0])}"
            yield _no_barrier("S5", "particles", setting, [error_barrier(level, "compared") for level in levels])
            shares = mean_ci([share_below(level) - 50 for level in levels])
            yield Effect("S5", "share of the hull with less loss than the corners, above half", setting, shares, "points")
            for name, measure in MEASURES.items():
                lower = mean_ci(lower_by(levels, measure, "average", "particle 0"))
                yield Effect("S5", f"{name} of the average below that of a particle", setting, lower, "%")


def _no_barrier(claim, name, setting, barriers):
    below = mean_ci([_CONNECTED - barrier for barrier in barriers])
    return Effect(claim, f"error barrier between {name}, below {_CONNECTED:g} points", setting, below, "points")
