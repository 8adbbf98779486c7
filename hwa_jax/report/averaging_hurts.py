"""Writes the report of the trainings in which averaging hurts: report.md, its plots, and results.json."""

import collections
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwa_jax.algorithms.averaging_hurts import ALONE
from hwa_jax.analysis.averaging_health import APART, CONNECTED, RATE_FELL, SIGNIFICANT, STALE
from hwa_jax.report import analysis_plots
from hwa_jax.report.claims import Effect, effects_table
from hwa_jax.report.document import images, write_report
from hwa_jax.report.plots import Series, curves, dot_intervals
from hwa_jax.report.statistics import mean_ci, paired_difference
from hwa_jax.report.tables import format_interval, format_number, markdown_table

CASES = {
    "healthy": "constant rate, the window holds the last 8 of 20 pushes.",
    "early": "started too early: 6.5 epochs at the rate 0.01, and every push of them is averaged, also those from before the network had learned "
    "much. The loss falls along the segment from the oldest to the newest member, and the average lies on the way.",
    "long": "window too long: pushes of the first epochs are left out, but at the rate 0.002 the network is still learning, and 12 pushes reach "
    "back too far.",
    "decay": "rate decayed too fast: to a tenth of 0.02 after a quarter of the training, before the network had settled; the window holds all but the "
    "first pushes. The late weights crawl on and have hardly any noise to average away; the early ones only add their distance.",
    "stale": "the average is swapped in, and the BatchNorm statistics of the latest weights stay: they describe activations that the average does "
    "not have. Rate 0.2, I = 16.",
    "apart": "replicas that meet too seldom: K = 4 at the rate 0.1, which are averaged once, after 14.5 epochs; their mean is worse than they are.",
}
# Names of warnings that say that the average over time is worse than the latest weights.
OVER_TIME = ("early", "long", "decay", "basins")
# Standard errors beyond which the gap on the test split counts as one.
_CLEAR = 2.0

_HOW_TO_READ = f"""\
Latest: the outer weights of the last push. Average: the mean of the last I. Chosen: the mean of as many members as did best on validation, which
costs no training. Stale: the average with the latest weights' BatchNorm statistics, the same as the average without BatchNorm. Accuracies are on the
test split, differences paired by seed, with 95 % confidence intervals (Student's t). "The watch said" counts the seeds in which the watch over averages
named a cause after the last push; the watch sees the validation split only.

The watch's thresholds: {SIGNIFICANT:g} standard errors of the paired gap in loss between average and latest; an error barrier of
{100 * CONNECTED:g} points; a rate fallen below {100 * RATE_FELL:g} % of that at the window's oldest member; {STALE:g} nats for statistics that were not
recomputed; {APART:g} nats between the mean of the replicas and the replicas. None was changed after the trainings for judging were made."""

_EXPOSURE = """\
The cases of a badly chosen start, window or rate, and the same once more with one replica, which is offline averaging alone. An average hurts where its
accuracy is below that of the latest weights of its own training, or its loss above, both on the test split; HWA is less exposed where that costs it less,
paired by seed. On digits one test image is 0.2 points, so an interval of no width means that all seeds differ by as many images."""

_ALARMS = f"""\
Every push of every training with two members or more. Worse is what the test split shows: the average's loss is above that of the latest weights by
more than {_CLEAR:g} standard errors; not worse: it is not above it; else it is unclear. A false alarm is one where the average is not worse, a missed one is
silence where it is. Pushes of one training are not independent of each other. For statistics that were not recomputed ("stale") worse means more than
{STALE:g} nats on the test split, and for replicas that are apart, which can be checked after the last step alone (elsewhere they have just been
averaged), more than {APART:g}."""


def write_study(cells: Sequence[Mapping], directory: Path, *, title: str, meta: Mapping) -> Path:
    """Writes report.md, its plots and results.json, as `document.write_report`.

    Args:
        cells: as `hwa_jax.algorithms.averaging_hurts.run` returns them; at least one.
        directory, title, meta: as there.
    """

    def body(directory):
        yield from ("## Summary", case_table(cells), _HOW_TO_READ, "## Alarms", alarms_table(cells), _ALARMS)
        if found := effects(cells):
            yield from ("## Is HWA less exposed than offline averaging alone?", _EXPOSURE, *images([_exposure_plot(cells, directory)]), effects_table(found))
        yield "## The cases"
        yield "What each was made to do; whether it hurt, and where, the tables and plots say."
        yield "\n".join(f"- **{case}**: {CASES[case]}" for case in dict.fromkeys(cell["case"] for cell in cells) if case in CASES)
        for subject in dict.fromkeys(cell["subject"] for cell in cells):
            mine = [cell for cell in cells if cell["subject"] == subject]
            yield from (f"## {subject}, for {mine[0]['role']}", *images(_plots(subject, mine, directory)), _ends_table(mine))

    return write_report(directory, body, title=title, cells=cells, meta=meta, alarms=alarms(cells))


def case_table(cells: Sequence[Mapping]) -> str:
    """A row per subject and case: accuracies, differences, and what the watch said after the last push."""
    rows = []
    for (subject, case), seeds in _grouped(cells).items():
        accuracy = {name: {seed: 100 * cell["accuracy"][name] for seed, cell in seeds.items()} for name in ("latest", "average", "chosen", "stale")}
        rows.append([
            subject, case, format_interval(mean_ci(accuracy["latest"].values())),
            *(format_interval(paired_difference(accuracy[name], accuracy["latest"]), signed=True) for name in ("average", "chosen", "stale")),
            f"{np.mean([cell['test_gap'] for cell in map(_last, seeds.values())]):+.4f}",
            ", ".join(str(cell["chosen"]) for cell in seeds.values()), f"{next(iter(seeds.values()))['window_size']}", _said(seeds.values()),
        ])
    header = [
        "subject", "case", "latest, %", "average - latest, points", "chosen - latest", "stale - latest", "average - latest, nats", "chosen I", "I", "the watch said",
    ]
    return markdown_table(header, rows, "llrrrrrrrl")


def effects(cells: Sequence[Mapping]) -> list[Effect]:
    """H5, for every subject and every case that was trained with one replica too: whether averaging hurts, in HWA and alone, and HWA less.

    Args:
        cells: as in `write_study`.

    Returns:
        What averaging costs in test accuracy, points, and in test loss, thousandths of a nat: positive where the average is worse, and where it is worse by more
        without HWA.
    """
    found = []
    for cost, (measure, unit) in _COSTS.items():
        for subject, case, ours, alone in _with_twins(cells, measure):
            found += [
                Effect("H5", f"{case}, offline averaging alone: {cost} of averaging", subject, mean_ci(alone.values()), unit),
                Effect("H5", f"{case}, HWA: {cost} of averaging", subject, mean_ci(ours.values()), unit),
                Effect("H5", f"{case}: {cost} of averaging, alone - HWA", subject, paired_difference(alone, ours), unit),
            ]
    return found


# What averaging costs -> of a cell, and its unit.
_COSTS = {
    "accuracy cost": (lambda cell: 100 * (cell["accuracy"]["latest"] - cell["accuracy"]["average"]), "points"),
    "loss cost": (lambda cell: 1000 * _last(cell)["test_gap"], "10⁻³ nats"),
}


def _with_twins(cells, cost):
    """(Subject, case, seed -> what averaging costs, in HWA and alone) of the cases that were trained with one replica too."""
    grouped = _grouped(cells)
    for (subject, case), seeds in grouped.items():
        if alone := grouped.get((subject, f"{case}{ALONE}")):
            yield subject, case, *({seed: cost(cell) for seed, cell in side.items()} for side in (seeds, alone))


def _exposure_plot(cells, directory):
    panels = {}
    for subject, case, *costs in _with_twins(cells, _COSTS["loss cost"][0]):
        for name, side in zip(("HWA", "offline averaging alone"), costs):
            panels.setdefault(subject, {}).setdefault(name, {})[case] = mean_ci(side.values())
    return dot_intervals(panels, directory / "exposure.png", "test loss, average - latest, 10⁻³ nats: above zero averaging hurts", "What a bad choice costs")


def alarms(cells: Sequence[Mapping]) -> list[dict[str, Any]]:
    """For each subject and kind of warning how often it was right; the kinds are "average", "stale" and "apart".

    Returns:
        One dictionary each: "subject", "role", "kind", and the counts "right", "false" and "unclear alarm", "right", "missed" and
        "unclear silence".
    """
    found = {}
    for cell in cells:
        for kind, alarmed, truth in _judgements(cell):
            key = (cell["subject"], cell["role"], kind)
            found.setdefault(key, collections.Counter())[_VERDICTS[alarmed, truth]] += 1
    names = list(dict.fromkeys(_VERDICTS.values()))
    return [
        {"subject": subject, "role": role, "kind": kind, **{name: counts[name] for name in names}}
        for (subject, role, kind), counts in found.items()
    ]


def alarms_table(cells: Sequence[Mapping]) -> str:
    """`alarms` as a table, those for judging summed up below."""
    found = alarms(cells)
    names = list(dict.fromkeys(_VERDICTS.values()))
    for kind in dict.fromkeys(row["kind"] for row in found):
        judged = [row for row in found if row["kind"] == kind and row["role"] == "judging"]
        if judged:
            found.append({"subject": "**all for judging**", "role": "", "kind": kind, **{name: sum(row[name] for row in judged) for name in names}})
    rows = [[row["subject"], row["role"], row["kind"], *(str(row[name]) for name in names)] for row in found]
    return markdown_table(["subject", "role", "warning", *names], rows, "lll" + "r" * len(names))


# (Whether the watch said so, what is true) -> what that was.
_VERDICTS = {
    (True, "worse"): "right alarm", (True, "not worse"): "false alarm", (True, "unclear"): "unclear alarm",
    (False, "worse"): "missed", (False, "not worse"): "right silence", (False, "unclear"): "unclear silence",
}


def _judgements(cell):
    """(Kind, whether the watch said so, what is true) of all pushes of a training."""
    for push in cell["pushes"]:
        if push["ends_gap"] is not None:
            clear = _CLEAR * push["test_gap_error"]
            truth = "worse" if push["test_gap"] > clear else "not worse" if push["test_gap"] <= 0 else "unclear"
            yield "average", any(name in push["warnings"] for name in OVER_TIME), truth
        if push["test_stale_gap"] is not None:
            yield "stale", "stale" in push["warnings"], "worse" if push["test_stale_gap"] > STALE else "not worse"
    if cell["replicas"] is not None:
        yield "apart", "apart" in _last(cell)["warnings"], "worse" if cell["replicas"] > APART else "not worse"


def _last(cell):
    return cell["pushes"][-1]


def _said(cells):
    said = collections.Counter(name for cell in cells for name in _last(cell)["warnings"])
    return ", ".join(f"{name} ({count} of {len(cells)})" for name, count in said.items()) or "nothing"


def _grouped(cells):
    """(Subject, case) -> seed -> cell."""
    found = {}
    for cell in cells:
        found.setdefault((cell["subject"], cell["case"]), {})[cell["seed"]] = cell
    return found


def _ends_table(cells):
    """What the instruments say of the window after the last push."""
    rows = []
    for (_, case), seeds in _grouped(cells).items():
        def mean(value: Callable[[Mapping], float | None], digits: int = 3) -> str:
            values = [value(cell) for cell in seeds.values()]
            return "–" if None in values else format_number(float(np.mean(values)), digits)

        rows.append([
            case, mean(lambda cell: cell["path"]["loss"][0]), mean(lambda cell: cell["path"]["loss"][len(cell["path"]["loss"]) // 2]),
            mean(lambda cell: cell["path"]["loss"][-1]), mean(lambda cell: _last(cell)["rate_ratio"]), mean(lambda cell: _last(cell)["cosine"]),
            mean(lambda cell: cell["replicas"], 4), mean(lambda cell: _last(cell)["test_stale_gap"], 4),
        ])
    header = [
        "case", "oldest member, nats", "half way", "newest", "rate now / at the oldest", "cosine of replicas' movements", "mean - replicas, nats",
        "stale, nats",
    ]
    return markdown_table(header, rows, "lrrrrrrr")


def _plots(subject, cells, directory):
    by_case = {case: seeds for (_, case), seeds in _grouped(cells).items() if not case.endswith(ALONE)}
    growing = [
        Series(case, {seed: _line(cell["pushes"], "epoch") for seed, cell in seeds.items()}, style)
        for style, (case, seeds) in enumerate(by_case.items())
    ]
    sizes = [
        Series(case, {seed: _line(cell["by_size"], "window_size") for seed, cell in seeds.items()}, style)
        for style, (case, seeds) in enumerate(by_case.items())
    ]
    ends = [
        {"from": f"{case}: oldest", "to": "newest", **next(iter(seeds.values()))["path"]} for case, seeds in by_case.items()
    ]
    gap = "test loss of the average minus that of the latest, nats"
    yield curves(growing, directory / f"gap_{subject}.png", "epoch", gap, f"{subject}: what the average gains (below zero) or costs", zero_line=True)
    yield curves(sizes, directory / f"sizes_{subject}.png", "window length I, pushes, after the last", gap, f"{subject}: other windows of the same trainings",
                 zero_line=True)
    yield analysis_plots.segments(ends, directory / f"ends_{subject}.png", f"{subject}: between the window's ends, on the test split, first seed")


def _line(points, x):
    return [point[x] for point in points], [point["test_gap"] for point in points]
