"""The plots of a comparison of pruning, all against the weights that are left."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hwa_jax.report.plots import Series, curves
from hwa_jax.report.sparse_methods import METHODS, Levels, density_text, example_levels, levels_by_method

_XLABEL = "weights left (each step prunes the same fraction)"
_ACCURACY = "test accuracy, %"

# File name -> title, methods.
_ACCURACIES = {
    "accuracy": (
        "What the average gains, and what it costs",
        ("imp", "imp_long", "imp_best", "imp_ensemble", "swamp", "best_particle", "swamp_plus", "one_shot", "random"),
    ),
    "accuracy_parts": ("Number of particles, with and without SWA", ("imp", "imp_swa", "particles", "particles_many", "swamp", "swamp_few")),
    "accuracy_masks": ("The masks alone: every one trained as IMP trains", ("imp", "swamp_mask", "one_shot", "random")),
    "accuracy_early": ("An early ticket: where averaging hurts", ("imp_early", "swamp_early", "swamp_early_gated", "swamp")),
}
# Of a floor only the part near the others is drawn.
_FLOORS = ("one_shot", "random")


def accuracy_plots(cells: Sequence[Mapping], directory: Path) -> list[Path]:
    """Test accuracy against the weights left, with bands over seeds: one PNG per question whose methods are there."""
    found = levels_by_method(cells)
    paths = []
    for name, (title, methods) in _ACCURACIES.items():
        present = [method for method in methods if method in found]
        if len(present) > 1:
            series = [_series(found, method, lambda level: 100 * level["test"]["accuracy"], styled_as=place) for place, method in enumerate(present)]
            heights = [y for one, method in zip(series, present) if method not in _FLOORS for _, ys in one.runs.values() for y in ys]
            limits = (min(heights) - 1, max(heights) + 0.5)
            paths.append(curves(series, directory / f"{name}.png", _XLABEL, _ACCURACY, title, xticks=_xticks(found), ylim=limits))
    return paths


def average_plots(cells: Sequence[Mapping], directory: Path) -> list[Path]:
    """The average minus the mean of its particles (S6), and the loss barrier between them: a PNG each."""
    found = levels_by_method(cells)
    averaged = [m for m in ("particles", "particles_many", "swamp", "swamp_early") if m in found]
    plots = {
        "average_minus_particles": (
            "Where averaging helps: the average minus the mean of its particles", "test accuracy, percentage points",
            lambda level: 100 * (level["average"]["test"]["accuracy"] - level["particles"]["test"]["accuracy"]),
        ),
        "barrier": (
            "Loss barrier between particles, mean over pairs", "training loss above the mean of the ends, nats",
            lambda level: level["barrier"]["mean"],
        ),
    }
    paths = []
    for name, (title, ylabel, measure) in plots.items() if averaged else ():
        series = [_series(found, method, measure, styled_as=place) for place, method in enumerate(averaged)]
        heights = [y for one in series for _, ys in one.runs.values() for y in ys]
        margin = 0.05 * (max(heights) - min(heights)) or 1.0
        limits = (min(*heights, 0) - margin, max(*heights, 0) + margin)
        paths.append(curves(series, directory / f"{name}.png", _XLABEL, ylabel, title, xticks=_xticks(found), ylim=limits, zero_line=True))
    return paths


def layer_plots(cells: Sequence[Mapping], directory: Path) -> list[Path]:
    """Density of each layer against that of the network, IMP's and SWAMP's masks: one PNG."""
    found = levels_by_method(cells)
    series = []
    for method in ("imp", "swamp"):
        for layer in next(iter(found[method].values()))[0]["density_per_layer"] if method in found else ():
            label = f"{METHODS[method][0]}: {layer.removesuffix('/kernel')}"
            series.append(_series(
                found, method, lambda level, layer=layer: max(100 * level["density_per_layer"][layer], 1e-3), label=label, styled_as=len(series),
            ))
    if not series:
        return []
    return [curves(
        series, directory / "density_per_layer.png", _XLABEL, "of the layer's weights left, %", "Density of each layer", xticks=_xticks(found),
        log_y=True,
    )]


def _series(found: Levels, method: str, measure: Callable[[Mapping], float], *, styled_as: int, label: str = "") -> Series:
    runs = {seed: (range(len(levels)), [measure(level) for level in levels]) for seed, levels in found[method].items()}
    return Series(label or METHODS[method][0], runs, styled_as)


def _xticks(found):
    return {number: density_text(level) for number, level in enumerate(example_levels(found))}
