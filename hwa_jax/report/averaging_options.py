"""Ways to average online, each against the plain average at the same K, H, I and batches, and against one network at equal compute."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hwa_jax.report.aggregation import NOT_JUDGED, REFERENCE, ordered, same_budget, verdict
from hwa_jax.report.document import images
from hwa_jax.report.methods import METHODS
from hwa_jax.report.plots import dot_intervals
from hwa_jax.report.statistics import Interval, mean_ci, paired_difference
from hwa_jax.report.tables import NOT_AVAILABLE, format_bytes, format_interval, markdown_table

_SPECIAL = ("averaging", "replica_batch_sizes")
_SAME = ("optimizer", "schedule", "num_train", "num_replicas", "sync_period", "replica_batch_sizes")
# What names a row beside H, batches and averaging, where it varies -> how.
_NAMED = {"optimizer": "{}", "schedule": "{}", "num_train": "{:,} images", "num_replicas": "K={}", "window_size": "I={}"}
_TRAINED_ALIKE = ("optimizer", "schedule", "num_train")
# One network, trained as long as all replicas together -> what it has in common with them.
_SINGLE = {"plain": _TRAINED_ALIKE, "offline_window": (*_TRAINED_ALIKE, "window_size")}
_WIDEST = 20
_HEADER = [
    "H", "Batches", "Averaging", "HWA, test accuracy, %", "− plain average, points", "n", "Verdict", "Online average − its plain one, points",
    "Bytes per synchronization", "Bytes of the whole run",
]  # fmt: skip


_HOW_TO_READ = """\
Each way to average online against the plain average with the same seeds, K, H, I and batches, which is the row above: differences of test accuracy are paired
by seed, and the verdict is that of HWA's. Bytes are what each replica sends in a ring all-reduce, counted, not measured. CPUs have no
all-reduce in bf16: there the bytes of bf16 are what an accelerator would send.
"""

_EQUAL_COMPUTE = """\
At equal compute: the same rows against one network that makes as many passes over the data as all replicas together, paired by seed: its last weights ("plain"), and
the mean of its last I pushes ("offline"). Replicas whose batches differ make fewer passes than that, and are left out.
"""


class Option(NamedTuple):
    """One way to average, at one setting.

    Attributes:
        setting: optimizer, schedule, number of training images, K and I, of those that vary; "" if none does.
        sync_period: H in steps.
        batches: images in each replica's batch, "50:10", or None where all are the same.
        averaging: what is special about it, None for the plain average.
        accuracy: of HWA on the test split, in percent.
        differences: "hwa" and "online" -> that accuracy minus the same of the plain average, paired by seed, in points; empty for the
            plain average, and where it was not run.
        singles: "plain" and "offline_window" -> accuracy of HWA minus that of one network at equal compute, paired by seed, in points; empty
            where it was not run, and where batches differ.
        synchronizations: in a run.
        sent: bytes that each replica sends in a run.
    """

    setting: str
    sync_period: int
    batches: str | None
    averaging: str | None
    accuracy: Interval
    differences: Mapping[str, Interval]
    singles: Mapping[str, Interval]
    synchronizations: int
    sent: int


def of_main_average(cells: Sequence[Mapping]) -> list[Mapping]:
    """The cells that average online as the first HWA cell does, and those that do not average online.

    Args:
        cells: as those of `comparison.write_comparison`.
    """
    main = next((cell for cell in cells if cell["method"] == "hwa"), None)
    return [c for c in cells if c["method"] not in ("hwa", "online") or main is None or all(c.get(name) == main.get(name) for name in _SPECIAL)]


def options(cells: Sequence[Mapping]) -> list[Option]:
    """The ways to average of a comparison, by setting, H and batches, the plain average first; none where it is the only one."""
    # The online average is evaluated without a window.
    hwa, online = _by_setting(cells, "hwa", (*_SAME, "window_size")), _by_setting(cells, "online", _SAME)
    if len({averaging for _, averaging in hwa}) < 2:
        return []
    settings = [dict(zip((*_SAME, "window_size"), same)) for same, _ in hwa]
    varying = [name for name in _NAMED if len({setting[name] for setting in settings}) > 1]
    rows = sorted(hwa, key=lambda key: (ordered(key[0]), key[1] is not None))
    return [_option(cells, hwa, online, varying, *key) for key in rows]


def section(cells: Sequence[Mapping], directory: Path) -> list[str]:
    """Paragraphs of a report: the table of all ways to average, and a plot that is written into the directory; none without options."""
    found = options(cells)
    if not found:
        return []
    singles = [_EQUAL_COMPUTE.strip(), equal_compute_table(found)] if any(option.singles for option in found) else []
    return [_HOW_TO_READ.strip(), options_table(found), *_plot(found, directory), *singles]


def options_table(found: Sequence[Option]) -> str:
    """A markdown table, a row per option."""
    return _table(found, _HEADER, [_line(option) for option in found], "rllrrrlrrr")


def equal_compute_table(found: Sequence[Option]) -> str:
    """A markdown table, a row per option that has one network at equal compute beside it."""
    compared = [option for option in found if option.singles]
    rows = []
    for option in compared:
        singles = [option.singles.get(name) for name in _SINGLE]
        judged = [text for one in singles for text in (format_interval(one, signed=True), verdict(one) if one else NOT_JUDGED)]
        rows.append([*_named(option), format_interval(option.accuracy), *judged, str(max(one.n for one in option.singles.values()))])
    header = ["H", "Batches", "Averaging", "HWA, test accuracy, %", "− plain, points", "Verdict", "− offline, points", "Verdict", "n"]
    return _table(compared, header, rows, "rllrrlrlr")


def _table(found, header, rows, align):
    """With a column for the settings where there are several."""
    if any(option.setting for option in found):
        header, align, rows = ["Setting", *header], "l" + align, [[option.setting, *row] for option, row in zip(found, rows)]
    return markdown_table(header, rows, align)


def _by_setting(cells, method, names):
    """(values of the settings, averaging) -> seed -> cell."""
    found = {}
    for cell in cells:
        if cell["method"] == method:
            found.setdefault((tuple(cell[name] for name in names), cell["averaging"]), {})[cell["seed"]] = cell
    return found


def _option(cells, hwa, online, varying, same, averaging):
    mine = hwa[same, averaging]
    one = next(iter(mine.values()))
    # A training that diverged has sent nothing that counts.
    sent = next((cell for cell in mine.values() if cell["bytes_communicated"] is not None), {"synchronizations": 0, "bytes_communicated": 0})
    differences = {
        "hwa": _difference(mine, hwa.get((same, None), {})),
        "online": _difference(online.get((same[:-1], averaging), {}), online.get((same[:-1], None), {})),
    }
    singles = {} if one["replica_batch_sizes"] else {name: _difference(mine, _as_long(cells, name, one)) for name in _SINGLE}
    return Option(
        ", ".join(_NAMED[name].format(one[name]) for name in varying), one["sync_period"], one["replica_batch_sizes"], averaging,
        mean_ci(map(_accuracy, mine.values())), {} if averaging is None else _known(differences), _known(singles),
        sent["synchronizations"], sent["bytes_communicated"],
    )


def _known(differences):
    return {name: difference for name, difference in differences.items() if difference is not None}


def _as_long(cells, method, one):
    """Seed -> the cell of a single network that made as many passes over the data."""
    return {
        cell["seed"]: cell for cell in cells
        if cell["method"] == method and cell["comparison"] == "equal_compute" and same_budget(cell["compute_epochs"], one["compute_epochs"])
        and all(cell[name] == one[name] for name in _SINGLE[method])
    }


def _difference(ours, plain):
    if not ours.keys() & plain.keys():
        return None
    return paired_difference(*({seed: _accuracy(cell) for seed, cell in side.items()} for side in (ours, plain)))


def _accuracy(cell):
    return 100 * cell["test"]["accuracy"] if cell["test"]["accuracy"] is not None else math.nan


def _line(option):
    hwa, online = (option.differences.get(name) for name in ("hwa", "online"))
    return [
        *_named(option), format_interval(option.accuracy),
        format_interval(hwa, signed=True), str(hwa.n if hwa else option.accuracy.n),
        REFERENCE if option.averaging is None else verdict(hwa) if hwa else NOT_JUDGED, format_interval(online, signed=True),
        format_bytes(option.sent / option.synchronizations) if option.synchronizations else NOT_AVAILABLE, format_bytes(option.sent),
    ]


def _named(option):
    return [str(option.sync_period), option.batches or "all full", option.averaging or "plain"]


def _plot(found, directory):
    """The plot, and a sentence on what it leaves out: intervals so wide that they would flatten all others."""
    drawn = [(option, name, d) for option in found for name, d in option.differences.items() if math.isfinite(d.mean)]
    if not drawn:
        return []
    widths = [d.half_width for _, _, d in drawn if d.n > 1]
    widest = _WIDEST * statistics.median(widths) if widths else math.inf
    panels, left_out = {}, {}
    for option, name, difference in drawn:
        heading, label = ", ".join(filter(None, (option.setting, f"H = {option.sync_period}"))), option.averaging + (f", batches {option.batches}" if option.batches else "")
        if difference.n > 1 and difference.half_width > widest:
            left_out[f"{label} at {heading}"] = None
        else:
            panels.setdefault(heading, {}).setdefault(METHODS[name].name, {})[label] = difference
    title = "Test accuracy compared with the plain average, paired by seed: right of the line is better"
    plot = dot_intervals(panels, directory / "averaging.png", "difference to the plain average, percentage points", title)
    sentence = f"Not drawn, since their intervals are more than {_WIDEST} times as wide as the median: {'; '.join(left_out)}."
    return [*images([plot]), *([sentence] if left_out else [])]
