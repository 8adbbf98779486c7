"""From cells (one training each) to rows: means over seeds, differences to plain, verdicts."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from hwa_jax.report.methods import METHODS, SETTINGS, method_named
from hwa_jax.report.statistics import Interval, mean_ci, paired_difference

COMPARISONS = {"equal_steps": "equal steps", "equal_compute": "equal compute"}

BETTER, WORSE, UNCLEAR = "better", "worse", "no difference shown"
REFERENCE, NOT_JUDGED = "reference", "not judged"

_REQUIRED = {
    "method", "optimizer", "schedule", "comparison", "seed", "num_train", *SETTINGS,
    "epochs_per_replica", "compute_epochs", "bytes_communicated", "synchronizations", "seconds",
    "curve", "train", "validation", "test",
}  # fmt: skip
_SAME_BUDGET = 0.02

_MEASURES = {
    "test_accuracy": lambda cell: cell["test"]["accuracy"],
    "test_nll": lambda cell: cell["test"]["nll"],
    "test_ece": lambda cell: cell["test"]["ece"],
    "validation_accuracy": lambda cell: cell["validation"]["accuracy"],
    "validation_accuracy_at_1_3": lambda cell: accuracy_at(cell, 1 / 3),
    "validation_accuracy_at_2_3": lambda cell: accuracy_at(cell, 2 / 3),
    "train_test_gap": lambda cell: (
        _number(cell["train"]["accuracy"]) - _number(cell["test"]["accuracy"])
    ),
    "compute_epochs": lambda cell: cell["compute_epochs"],
    "bytes_communicated": lambda cell: cell["bytes_communicated"],
    "synchronizations": lambda cell: cell["synchronizations"],
    "seconds": lambda cell: cell["seconds"],
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One method on one basis of comparison.

    Attributes:
        method: key of the method, as in the cells.
        comparison: "equal_steps" or "equal_compute".
        label: the method's name, with the settings that tell it from its neighbours.
        cells: seed -> cell.
        measures: name -> mean over seeds; accuracies, ECE and gap are fractions.
        difference: test accuracy minus that of the reference over seeds in common, a
            fraction; None for a reference and where there is no reference.
        verdict: BETTER, WORSE, UNCLEAR, REFERENCE or NOT_JUDGED.
    """

    method: str
    comparison: str
    label: str
    cells: Mapping[int, Mapping]
    measures: Mapping[str, Interval]
    difference: Interval | None = None
    verdict: str = NOT_JUDGED


@dataclasses.dataclass(frozen=True)
class Section:
    """All rows of one training-set size, optimizer and learning-rate schedule."""

    num_train: int
    optimizer: str
    schedule: str
    rows: tuple[Row, ...]


def aggregate(cells: Sequence[Mapping]) -> list[Section]:
    """Groups cells, averages over seeds and compares every method with plain training.

    A cell whose comparison is "both" counts on both bases. The reference of a row is the
    plain training of its section and basis with the same epochs per replica (equal steps) or
    the same passes over the data in all (equal compute), to within 2 %. Cells may be missing:
    a row without a reference or with one seed in common is not judged.

    Args:
        cells: one mapping per training; the fields are those of ``write_comparison``.

    Returns:
        Sections in the order of their first cells; rows by basis, then by method.

    Raises:
        ValueError: a cell lacks a field or has an unknown comparison, or two cells are the
            same method, settings and seed.
    """
    sections = {}
    for cell in cells:
        _check(cell)
        key = (cell["num_train"], cell["optimizer"], cell["schedule"])
        sections.setdefault(key, []).append(cell)
    return [Section(*key, _rows(members)) for key, members in sections.items()]


def verdict(difference: Interval) -> str:
    """BETTER or WORSE if the interval lies on one side of zero, NOT_JUDGED if it has no width.

    Example:
        >>> verdict(Interval(0.02, 0.01, 5)), verdict(Interval(0.02, 0.03, 5))
        ('better', 'no difference shown')
    """
    if math.isnan(difference.half_width):
        return NOT_JUDGED
    if difference.low > 0:
        return BETTER
    return WORSE if difference.high < 0 else UNCLEAR


def _check(cell):
    name = "/".join(str(cell.get(k)) for k in ("method", "optimizer", "schedule", "seed"))
    missing = sorted(_REQUIRED - cell.keys())
    if missing:
        raise ValueError(f"cell {name}: lacks {', '.join(missing)}")
    if cell["comparison"] not in (*COMPARISONS, "both"):
        allowed = ", ".join((*COMPARISONS, "both"))
        raise ValueError(f"cell {name}: comparison={cell['comparison']!r} is none of {allowed}")


def _rows(cells):
    groups = {}
    for cell in cells:
        for comparison in COMPARISONS if cell["comparison"] == "both" else [cell["comparison"]]:
            key = (comparison, cell["method"], _settings(cell))
            seeds = groups.setdefault(key, {})
            if cell["seed"] in seeds:
                raise ValueError(f"cells: two of {'/'.join(map(str, key))}, seed {cell['seed']}")
            seeds[cell["seed"]] = cell
    rows = [
        Row(method, comparison, _label(method, settings, groups), members, _measure(members))
        for (comparison, method, settings), members in sorted(groups.items(), key=_setting_values)
    ]
    return tuple(_compare(row, rows) for row in sorted(rows, key=_position))


def _settings(cell):
    """Values that tell rows of one method apart, as (symbol, value) pairs."""
    used = method_named(cell["method"]).settings
    return (
        *((SETTINGS[name], cell[name]) for name in used),
        ("epochs", round(cell["epochs_per_replica"], 6)),
    )


def _label(method, settings, groups):
    """The method's name and the settings in which it differs within one comparison."""
    by_comparison = {}
    for comparison, other, theirs in groups:
        if other == method:
            by_comparison.setdefault(comparison, []).append(theirs)
    varying = [
        f"{symbol}={value:g}" if isinstance(value, float) else f"{symbol}={value or 'plain'}"
        for i, (symbol, value) in enumerate(settings)
        if any(len({theirs[i] for theirs in rows}) > 1 for rows in by_comparison.values())
    ]
    name = method_named(method).name
    return f"{name} ({', '.join(varying)})" if varying else name


def ordered(values: Iterable) -> list[tuple]:
    """A key that sorts settings of mixed kinds: None first, then numbers, then texts as "auto".

    Example:
        >>> sorted([("auto", 4), (10, 4), (None, 4), (3, 40)], key=ordered)
        [(None, 4), (3, 40), (10, 4), ('auto', 4)]
    """
    return [(value is not None, isinstance(value, str), value) for value in values]


def _setting_values(group):
    (_, method, settings), _ = group
    # Settings of different methods are not in the same places.
    return method, ordered(value for _, value in settings)


def _position(row):
    order = list(METHODS)
    known = order.index(row.method) if row.method in METHODS else len(order)
    return list(COMPARISONS).index(row.comparison), known


def _measure(members):
    return {
        name: mean_ci([_number(measure(cell)) for cell in members.values()])
        for name, measure in _MEASURES.items()
    }


def _number(value):
    """The value as a float; null, which stands for "not finite" in JSON, as nan."""
    return math.nan if value is None else float(value)


def accuracy_at(cell, fraction):
    """Validation accuracy at a fraction of the epochs, linear between two evaluations."""
    epochs = [point["epoch"] for point in cell["curve"]]
    accuracies = [_number(point["accuracy"]) for point in cell["curve"]]
    wanted = fraction * cell["epochs_per_replica"]
    if not epochs or not epochs[0] <= wanted <= epochs[-1]:
        return math.nan
    return float(np.interp(wanted, epochs, accuracies))


def _compare(row, rows):
    if row.method == "plain":
        return dataclasses.replace(row, verdict=REFERENCE)
    reference = _reference(row, rows)
    if reference is None or not row.cells.keys() & reference.cells.keys():
        return row
    ours, theirs = (
        {seed: _number(cell["test"]["accuracy"]) for seed, cell in side.cells.items()}
        for side in (row, reference)
    )
    difference = paired_difference(ours, theirs)
    return dataclasses.replace(row, difference=difference, verdict=verdict(difference))


def _reference(row, rows):
    for other in rows:
        if other.method == "plain" and other.comparison == row.comparison:
            if same_budget(_budget(other), _budget(row)):
                return other
    return None


def same_budget(epochs: float, others: float) -> bool:
    """Whether two lengths of training count as one: to within 2 %.

    Example:
        >>> same_budget(40.0, 40.5), same_budget(10.0, 40.0)
        (True, False)
    """
    return math.isclose(epochs, others, rel_tol=_SAME_BUDGET)


def _budget(row):
    field = "epochs_per_replica" if row.comparison == "equal_steps" else "compute_epochs"
    return float(np.mean([cell[field] for cell in row.cells.values()]))
