"""The tables of a comparison of pruning: methods against levels of sparsity."""

from collections.abc import Callable, Mapping, Sequence

from hwa_jax.report.sparse_methods import METHODS, Levels, density_text, example_levels, levels_by_method, shown_levels
from hwa_jax.report.statistics import Interval, mean_ci, paired_difference
from hwa_jax.report.tables import NOT_AVAILABLE, format_interval, format_number, markdown_table

_RATES = {"imp": "learning_rate", "swamp": "swa_learning_rate"}


def summary_table(cells: Sequence[Mapping]) -> str:
    """The short table, for a README: test accuracy at some densities, and what the last network cost.

    Args:
        cells: as `hwa_jax.report.sparsity_comparison.write_comparison` takes them.

    Returns:
        Markdown: the table and a line that explains it. Differences to IMP whose 95 % interval excludes zero are bold.

    Raises:
        ValueError: as `levels_by_method`.
    """
    found = levels_by_method(cells)
    example = example_levels(found)
    shown = shown_levels(example)
    header = ["Method", *(f"{density_text(example[number])} left" for number in shown), "Passes over data"]
    rows = []
    for method, by_seed in found.items():
        entries = [_accuracy_and_difference(by_seed, found.get("imp", {}), number, is_imp=method == "imp") for number in shown]
        rows.append([METHODS[method][0], *entries, format_number(_last(by_seed, "epochs").mean, 0)])
    seeds = {len(by_seed) for by_seed in found.values()}
    note = (
        f"Test accuracy in percent, the mean over {' or '.join(map(str, sorted(seeds)))} seeds; in parentheses the difference to IMP, paired by "
        "seed, ± half width of its 95 % confidence interval, bold where that excludes zero. Passes over the training data count all particles "
        "and everything that led to the sparsest network."
    )
    return f"{markdown_table(header, rows, 'l' + 'r' * (len(shown) + 1))}\n\n{note}"


def level_table(cells: Sequence[Mapping], metric: str, *, scale: float = 1.0, digits: int = 2) -> str:
    """A metric of the test split, all methods against all levels; a row per level.

    Args:
        cells: as in `summary_table`.
        metric: "accuracy", "nll" or "ece".
        scale: what it is multiplied by.
        digits: after the point.
    """
    return _by_level(levels_by_method(cells), lambda level: scale * level["test"][metric], digits)


def cost_table(cells: Sequence[Mapping]) -> str:
    """Passes over the data and training time that each method's sparsest network took, and the number of networks to run."""
    rows = [
        [
            METHODS[method][0], format_interval(_last(by_seed, "epochs"), 0), format_interval(_last(by_seed, "seconds"), 0),
            "2" if method == "imp_ensemble" else "1",
        ]
        for method, by_seed in levels_by_method(cells).items()
    ]
    return markdown_table(["Method", "Passes over data", "Training, s", "Networks to run"], rows, "lrrr")


def passes_table(cells: Sequence[Mapping]) -> str:
    """Passes over the data that led to each method's network, at every level."""
    return _by_level(levels_by_method(cells), lambda level: level["epochs"], 0)


def gate_table(cells: Sequence[Mapping]) -> str:
    """Where the gate of each gated run found averaging to hurt: seed, density, loss of the average and mean loss of its particles."""
    rows = []
    for method, by_seed in levels_by_method(cells).items():
        for seed, levels in by_seed.items() if method.endswith("_gated") else ():
            for level in levels:
                gate = level["gate"]
                if gate is not None and gate["averaging_hurts"]:
                    losses = [gate["average"], sum(gate["particles"]) / len(gate["particles"])]
                    rows.append([METHODS[method][0], str(seed), density_text(level), *(format_number(loss, 4) for loss in losses), level["solution"]])
    header = ["Method", "Seed", "Left", "Held-out NLL of the average", "of its particles", "Went on with"]
    return markdown_table(header, rows, "lrrrrl") if rows else "The gate never closed."


def tuning_table(tuning: Mapping) -> str:
    """The grids, and who took each rate; mean validation accuracy over the sparse levels, in percent, 0 where the training diverged."""
    takers = {"learning_rate": "all methods", "swa_learning_rate": "all with SWA", "own_learning_rate": METHODS["imp_own_rate"][0]}
    rows = []
    for row in tuning["grid"]:
        name = _RATES[row["method"]]
        names = (name, "own_learning_rate") if row["method"] == "imp" else (name,)
        taken = ", ".join(takers[each] for each in names if tuning["chosen"].get(each) == row[name])
        shown = [METHODS[row["method"]][0], str(row["learning_rate"]), str(row["swa_learning_rate"] or NOT_AVAILABLE), str(row["seed"])]
        rows.append([*shown, f"{100 * row['validation']:.2f}", taken])
    return markdown_table(["Tuned for", "Learning rate", "SWA's rate", "Seed", "Validation accuracy, %", "Taken by"], rows, "lrrrrl")


def _by_level(found: Levels, measure: Callable[[Mapping], float], digits: int) -> str:
    header = ["Left", *(METHODS[method][0] for method in found)]
    rows = []
    for number, level in enumerate(example_levels(found)):
        intervals = [mean_ci([measure(levels[number]) for levels in by_seed.values()]) for by_seed in found.values()]
        rows.append([density_text(level), *(format_interval(interval, digits) for interval in intervals)])
    return markdown_table(header, rows, "r" * len(header))


def _last(by_seed, name) -> Interval:
    return mean_ci([levels[-1][name] for levels in by_seed.values()])


def _accuracy_and_difference(ours, theirs, number, *, is_imp):
    def accuracies(by_seed):
        return {seed: 100 * levels[number]["test"]["accuracy"] for seed, levels in by_seed.items()}

    shown = format_number(mean_ci(accuracies(ours).values()).mean)
    if is_imp or not ours.keys() & theirs.keys():
        return f"{shown} ({'reference' if is_imp else NOT_AVAILABLE})"
    difference = paired_difference(accuracies(ours), accuracies(theirs))
    text = format_interval(difference, signed=True)
    return f"{shown} (**{text}**)" if difference.low > 0 or difference.high < 0 else f"{shown} ({text})"
