"""The methods that a comparison of pruning knows, and the figures of each, level by level."""

from collections.abc import Mapping, Sequence
from typing import Any

METHODS = {
    "imp": ("IMP", "iterative magnitude pruning with rewinding: one particle, its last weights."),
    "imp_own_rate": ("IMP, rate of its own", "the same at the best learning rate of a wider grid, so from a ticket of its own."),
    "imp_long": ("IMP, N× epochs", "IMP with N times the epochs in every cycle, which costs what SWAMP does."),
    "imp_ensemble": ("ensemble of 2 IMP", "the mean prediction of two independent IMP networks: two networks to run."),
    "imp_best": ("best of N IMP", "of N independent IMP networks, at each level the one with the best validation accuracy."),
    "imp_swa": ("IMP + SWA", "one particle, whose SWA average is evaluated and pruned by."),
    "particles": ("N particles, SGD", "N particles without SWA, their last weights averaged."),
    "particles_many": ("more particles, SGD", "the same with more particles."),
    "swamp": ("SWAMP", "N particles, the SWA average of each, and the average of those."),
    "swamp_few": ("SWAMP, fewer particles", "the same with fewer particles."),
    "best_particle": ("best particle of SWAMP", "of SWAMP's particles the one with the best validation accuracy, instead of their average."),
    "swamp_plus": ("SWAMP+", "one particle in the first cycles, N in the later ones."),
    "swamp_gated": ("SWAMP, gated", "SWAMP that goes on with the best particle wherever the average is worse than the mean particle on held-out training images."),
    "swamp_mask": ("SWAMP's masks, IMP's training", "every mask of SWAMP, with one particle trained under it as IMP trains."),
    "one_shot": ("one-shot", "masks by the magnitudes of IMP's dense network, pruned at once."),
    "random": ("random", "random masks, trained as IMP's."),
    "imp_early": ("IMP, early ticket", "IMP with an earlier ticket."),
    "swamp_early": ("SWAMP, early ticket", "SWAMP with an earlier ticket."),
    "swamp_early_gated": ("SWAMP, early ticket, gated", "the two of them together."),
}

# Densities, as fractions, near which short tables have a column, beside the sparsest.
_SHOWN = (1.0, 0.4, 0.1, 0.04, 0.02)

# method -> seed -> the levels of its cell.
Levels = dict[str, dict[int, Sequence[Mapping[str, Any]]]]


def levels_by_method(cells: Sequence[Mapping]) -> Levels:
    """The levels of all cells in the order of METHODS, those of "best_particle" taken from SWAMP's; none of trainings that diverged.

    Args:
        cells: as `hwa_jax.report.sparsity_comparison.write_comparison` takes them.

    Raises:
        ValueError: two cells of one method and seed, an unknown method, or cells whose levels differ in the
            number of weights.
    """
    found: Levels = {}
    finished = [cell for cell in cells if cell["levels"]]
    for cell in finished:
        method, seed = cell["method"], cell["seed"]
        if method not in METHODS or method == "best_particle":
            raise ValueError(f"cell {method}/{seed}: method={method!r} is none of {', '.join(METHODS)}")
        if seed in found.setdefault(method, {}):
            raise ValueError(f"cells: two of {method}, seed {seed}")
        found[method][seed] = cell["levels"]
        if weights_left(cell["levels"]) != weights_left(finished[0]["levels"]):
            raise ValueError(f"cell {method}/{seed}: has {weights_left(cell['levels'])} weights left, others {weights_left(finished[0]['levels'])}")
    best = {
        seed: [level | level["best_particle"] for level in levels]
        for seed, levels in found.get("swamp", {}).items() if all(level["best_particle"] for level in levels)
    }
    found |= {"best_particle": best} if best else {}
    return {method: found[method] for method in METHODS if method in found}


def example_levels(found: Levels) -> Sequence[Mapping[str, Any]]:
    """The levels of one cell: all have the same sparsities."""
    return next(iter(next(iter(found.values())).values()))


def weights_left(levels: Sequence[Mapping]) -> list[int]:
    """The number of weights of each level."""
    return [level["num_weights"] for level in levels]


def shown_levels(levels: Sequence[Mapping]) -> list[int]:
    """The levels whose densities are nearest to those of the short tables, and the last one.

    Example:
        >>> shown_levels([{"sparsity": sparsity} for sparsity in (0.0, 0.5, 0.61, 0.9)])
        [0, 2, 3]
    """
    nearest = {min(range(len(levels)), key=lambda i: abs(1 - levels[i]["sparsity"] - density)) for density in _SHOWN}
    return sorted({*nearest, len(levels) - 1})


def density_text(level: Mapping) -> str:
    """How much is left, in percent with three digits.

    Example:
        >>> density_text({"sparsity": 0.98926}), density_text({"sparsity": 0.0})
        ('1.07 %', '100 %')
    """
    return f"{100 * (1 - level['sparsity']):.3g} %"
