"""Ways to average online, each against the plain average at the same K, H, I and batches: accuracy and bytes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hwa_jax.report.aggregation import NOT_JUDGED, REFERENCE, verdict
from hwa_jax.report.document import images
from hwa_jax.report.methods import METHODS
from hwa_jax.report.plots import dot_intervals
from hwa_jax.report.statistics import Interval, mean_ci, paired_difference
from hwa_jax.report.tables import NOT_AVAILABLE, format_bytes, format_interval, markdown_table

_SPECIAL = ("averaging", "replica_batch_sizes")
_SAME = ("optimizer", "schedule", "num_train", "num_replicas", "sync_period", "replica_batch_sizes")
_HEADER = [
    "H", "Batches", "Averaging", "HWA, test accuracy, %", "− plain average, points", "n", "Verdict", "Online average − its plain one, points",
    "Bytes per synchronization", "Bytes of the whole run",
]  # fmt: skip


_HOW_TO_READ = """\
Each way to average online against the plain average with the same seeds, K, H, I and batches, which is the row above: differences of test accuracy are paired
by seed, and the verdict is that of HWA's. Bytes are what each replica sends in a ring all-reduce, counted, not measured. CPUs have no
all-reduce in bf16: there the bytes of bf16 are what an accelerator would send.
"""


class Option(NamedTuple):
    """One way to average, at one K, H, I and batches.

    Attributes:
        sync_period: H in steps.
        batches: images in each replica's batch, "50:10", or None where all are the same.
        averaging: what is special about it, None for the plain average.
        accuracy: of HWA on the test split, in percent.
        differences: "hwa" and "online" -> that accuracy minus the same of the plain average, paired by seed, in points; empty for the
            plain average, and where it was not run.
        synchronizations: in a run.
        sent: bytes that each replica sends in a run.
    """

    sync_period: int
    batches: str | None
    averaging: str | None
    accuracy: Interval
    differences: Mapping[str, Interval]
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
    """The ways to average of a comparison, by H and batches, the plain average first; none where it is the only one."""
    # The online average is evaluated without a window.
    hwa, online = _by_setting(cells, "hwa", (*_SAME, "window_size")), _by_setting(cells, "online", _SAME)
    if len({averaging for _, averaging in hwa}) < 2:
        return []
    ordered = sorted(hwa, key=lambda key: ([(value is not None, value) for value in key[0]], key[1] is not None))
    return [_option(hwa, online, *key) for key in ordered]


def section(cells: Sequence[Mapping], directory: Path) -> list[str]:
    """Paragraphs of a report: the table of all ways to average, and a plot that is written into the directory; none without options."""
    found = options(cells)
    return [_HOW_TO_READ.strip(), options_table(found), *images(_plot(found, directory))] if found else []


def options_table(found: Sequence[Option]) -> str:
    """A markdown table, a row per option."""
    return markdown_table(_HEADER, [_line(option) for option in found], "rll" + "rrl" + 4 * "r")


def _by_setting(cells, method, names):
    """(values of the settings, averaging) -> seed -> cell."""
    found = {}
    for cell in cells:
        if cell["method"] == method:
            found.setdefault((tuple(cell[name] for name in names), cell["averaging"]), {})[cell["seed"]] = cell
    return found


def _option(hwa, online, same, averaging):
    mine = hwa[same, averaging]
    one = next(iter(mine.values()))
    # A training that diverged has sent nothing that counts.
    sent = next((cell for cell in mine.values() if cell["bytes_communicated"] is not None), {"synchronizations": 0, "bytes_communicated": 0})
    differences = {
        "hwa": _difference(mine, hwa.get((same, None), {})),
        "online": _difference(online.get((same[:-1], averaging), {}), online.get((same[:-1], None), {})),
    }
    return Option(
        one["sync_period"], one["replica_batch_sizes"], averaging, mean_ci(map(_accuracy, mine.values())),
        {} if averaging is None else {name: difference for name, difference in differences.items() if difference is not None},
        sent["synchronizations"], sent["bytes_communicated"],
    )


def _difference(ours, plain):
    if not ours.keys() & plain.keys():
        return None
    return paired_difference(*({seed: _accuracy(cell) for seed, cell in side.items()} for side in (ours, plain)))


def _accuracy(cell):
    return 100 * cell["test"]["accuracy"] if cell["test"]["accuracy"] is not None else math.nan


def _line(option):
    hwa, online = (option.differences.get(name) for name in ("hwa", "online"))
    return [
        str(option.sync_period), option.batches or "all full", option.averaging or "plain", format_interval(option.accuracy),
        format_interval(hwa, signed=True), str(hwa.n if hwa else option.accuracy.n),
        REFERENCE if option.averaging is None else verdict(hwa) if hwa else NOT_JUDGED, format_interval(online, signed=True),
        format_bytes(option.sent / option.synchronizations) if option.synchronizations else NOT_AVAILABLE, format_bytes(option.sent),
    ]


def _plot(found, directory):
    panels = {}
    for option in found:
        for name, difference in option.differences.items():
            if math.isfinite(difference.mean):
                heading = f"H = {option.sync_period}" + (f", batches {option.batches}" if option.batches else "")
                group = METHODS[name].name
                panels.setdefault(heading, {}).setdefault(group, {})[option.averaging] = difference
    title = "Test accuracy compared with the plain average: right of the line is better\nmean over seeds, paired; bars: 95 % confidence interval; hollow: one seed"
    return [dot_intervals(panels, directory / "averaging.png", "difference to the plain average, percentage points", title)] if panels else []
