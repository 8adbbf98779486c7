"""The tables of a method comparison, and the sentence that says what each one shows."""

from collections.abc import Mapping, Sequence

from hwa_jax.report.aggregation import (
    BETTER,
    COMPARISONS,
    NOT_JUDGED,
    REFERENCE,
    UNCLEAR,
    WORSE,
    Row,
    Section,
    aggregate,
)
from hwa_jax.report.methods import METHODS, method_named
from hwa_jax.report.statistics import Interval
from hwa_jax.report.tables import (
    NOT_AVAILABLE,
    format_bytes,
    format_interval,
    format_number,
    markdown_table,
)

_OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW", "adam": "Adam"}

_HEADER = [
    "Basis", "Method", "Test accuracy, %", "Difference to plain, points", "n", "Verdict",
    "Test NLL", "Test ECE", "Val. accuracy at 1/3, %", "at 2/3, %", "Train − test, points",
    "Passes over data", "Communicated", "Synchronizations", "Training, s",
]  # fmt: skip

_TUNED_FOR = {"plain": "Plain", "offline": "Offline window", "hwa": "HWA"}


def percent(interval: Interval | None) -> Interval | None:
    """The interval of fractions as one of percent, or of percentage points.

    Example:
        >>> percent(Interval(0.5, 0.25, 5))
        Interval(mean=50.0, half_width=25.0, n=5)
    """
    if interval is None:
        return None
    return Interval(100 * interval.mean, 100 * interval.half_width, interval.n)


def heading(section: Section, sections: Sequence[Section]) -> str:
    """Optimizer and learning rate, with the number of training samples where that varies."""
    optimizer = _OPTIMIZERS.get(section.optimizer, section.optimizer)
    name = f"{optimizer}, {section.schedule} learning rate"
    if len({other.num_train for other in sections}) > 1:
        name += f", {section.num_train:,} training samples"
    return name


def section_table(section: Section) -> str:
    """The full markdown table of one section, a line per method and basis."""
    return markdown_table(_HEADER, [_line(row) for row in section.rows], "llrrrl" + "r" * 9)


def section_sentences(section: Section) -> list[str]:
    """What the table shows, one plain sentence per basis of comparison."""
    return [
        _sentence([row for row in section.rows if row.comparison == comparison], name)
        for comparison, name in COMPARISONS.items()
    ]


def summary_table(cells: Sequence[Mapping]) -> str:
    """The short table of a comparison, for a README: accuracy and difference on both bases.

    Args:
        cells: one mapping per training; the fields are those of ``write_comparison``.

    Returns:
        Markdown: the table and a line that explains it. Differences whose 95 % interval
        excludes zero are bold.

    Raises:
        ValueError: as ``aggregate``.
    """
    sections = aggregate(cells)
    header = ["Optimizer, learning rate", "Method"]
    for name in COMPARISONS.values():
        header += [f"Test accuracy at {name}, %", "Difference to plain"]
    lines = []
    for section in sections:
        by_label = {}
        for row in section.rows:
            by_label.setdefault(row.label, {})[row.comparison] = row
        for label, rows in by_label.items():
            line = [heading(section, sections).replace(" learning rate", ""), label]
            for comparison in COMPARISONS:
                line += _summary_entries(rows.get(comparison))
            lines.append(line)
    note = (
        f"Mean ± half width of the 95 % confidence interval over {_seeds(sections)}. Differences "
        "are paired by seed, in percentage points; bold where the interval excludes zero."
    )
    return f"{markdown_table(header, lines, 'llrrrr')}\n\n{note}"


def tuning_table(grid: Sequence[Mapping]) -> str:
    """A markdown table of a tuning grid: a row per optimizer, schedule, rate and decay; the best of each column in bold.

    Args:
        grid: as in ``write_comparison``.
    """
    accuracies = {}
    for point in grid:
        for name in _TUNED_FOR:
            if name in point:
                key = tuple(point[field] for field in ("optimizer", "schedule", "learning_rate", "weight_decay"))
                accuracies.setdefault(key, {}).setdefault(name, []).append(100 * point[name])
    means = {key: {name: sum(v) / len(v) for name, v in found.items()} for key, found in accuracies.items()}
    best = {}
    for key, found in means.items():
        for name, mean in found.items():
            best[key[:2], name] = max(mean, best.get((key[:2], name), 0.0))
    rows = []
    for key, found in means.items():
        shown = {name: f"{mean:.2f}" for name, mean in found.items()}
        cells = [f"**{shown[n]}**" if n in found and found[n] == best[key[:2], n] else shown.get(n, "–") for n in _TUNED_FOR]
        rows.append([*map(str, key), *cells])
    return markdown_table(["Optimizer", "Schedule", "Learning rate", "Weight decay", *_TUNED_FOR.values()], rows, "llrrrrr")


def _seeds(sections):
    counts = sorted({len(row.cells) for section in sections for row in section.rows})
    if not counts:
        return "no seeds"
    if counts == [1]:
        return "one seed (no interval)"
    return f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[0]} seeds"


def _summary_entries(row):
    if row is None:
        return [NOT_AVAILABLE, NOT_AVAILABLE]
    accuracy = format_interval(percent(row.measures["test_accuracy"]))
    difference = format_interval(percent(row.difference), signed=True)
    if row.verdict in (BETTER, WORSE):
        difference = f"**{difference}**"
    return [accuracy, row.verdict if row.verdict == REFERENCE else difference]


def _line(row: Row) -> list[str]:
    def mean(name, digits, scale=1.0, signed=False):
        return format_number(scale * row.measures[name].mean, digits, signed=signed)

    return [
        COMPARISONS[row.comparison],
        row.label,
        format_interval(percent(row.measures["test_accuracy"])),
        format_interval(percent(row.difference), signed=True),
        str(row.difference.n if row.difference else len(row.cells)),
        row.verdict,
        mean("test_nll", 4),
        mean("test_ece", 4),
        mean("validation_accuracy_at_1_3", 2, 100),
        mean("validation_accuracy_at_2_3", 2, 100),
        mean("train_test_gap", 2, 100, signed=True),
        mean("compute_epochs", 1),
        format_bytes(row.measures["bytes_communicated"].mean),
        mean("synchronizations", 0),
        mean("seconds", 1),
    ]


def _sentence(rows, basis):
    start = f"At {basis}"
    judged = [row for row in rows if row.verdict != REFERENCE]
    if not judged:
        return f"{start}, nothing was compared with plain training."
    clauses = []
    for outcome, words in (
        (BETTER, "better than plain training"),
        (WORSE, "worse than plain training"),
        (UNCLEAR, "no difference to plain training shown"),
    ):
        names = [_with_difference(row) for row in judged if row.verdict == outcome]
        clauses.append(f"{words}: {_and(names)}")
    sentence = f"{start}, by test accuracy in points — {'; '.join(clauses)}."
    unjudged = [f"{row.label} ({_why(row)})" for row in judged if row.verdict == NOT_JUDGED]
    if unjudged:
        sentence += f" Not judged: {_and(unjudged)}."
    absent = [method_named(key).name for key in METHODS if key not in {row.method for row in rows}]
    if absent:
        sentence += f" Not run: {_and(absent)}."
    return sentence


def _with_difference(row):
    return f"{row.label} ({format_number(100 * row.difference.mean, signed=True)})"


def _why(row):
    if row.difference is None:
        return "no plain training of the same budget and seeds"
    return "one seed" if row.difference.n == 1 else "a run without a finite accuracy"


def _and(names):
    if not names:
        return "none"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
