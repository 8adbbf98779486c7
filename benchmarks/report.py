"""The report of the benchmarks: the machine, the goals, a table per row."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from hwa_jax.report.tables import NOT_AVAILABLE, format_number, markdown_table

NOT_RUN = "not run"
IDLE_CORES = 0.2


class Goal(NamedTuple):
    """What is to be reached.

    Attributes:
        text: what is measured.
        row, cells: where: the row, and values that its cells have, sets of them where several count.
        name: of the ratio or figure.
        limit: the value to be reached.
        at_least: whether more is better.
        platform: where it holds.
    """

    text: str
    row: str
    cells: Mapping[str, Any]
    name: str
    limit: float
    at_least: bool = False
    platform: str = "cpu"


_CONV_NETS = {"cnn_s", "resnet20", "wrn-16-4", "vgg16"}
GOALS = (
    Goal("ours / (N × single), conv nets, CPU, N = 4", "particles", {"model": _CONV_NETS, "num_particles": {4}}, "N × single", 0.95),
    Goal(
        "ours / PyTorch best, CNN-S and ResNet-20, CPU, N = 4", "particles", {"model": {"cnn_s", "resnet20"}, "num_particles": {4}},
        "best PyTorch", 1.0,
    ),
    Goal(
        "ours / PyTorch best, ResNet-20, GPU, N = 8", "particles", {"model": {"resnet20"}, "num_particles": {8}}, "best PyTorch", 0.5,
        platform="gpu",
    ),
    Goal("HWA epoch / plain epoch × K, H = 1 epoch", "synchronization", {}, "HWA / plain, H = 1 epoch", 1.01),
    Goal("HWA / plain × K, H = 10", "synchronization", {}, "HWA / plain, H = 10", 1.05),
    Goal("window push / copy to host", "window_push", {}, "push / copy", 2.0),
    Goal("prune_by_magnitude / np.partition, 10⁸ weights", "mask_selection", {"num_weights": {10**8}}, "np.partition", 1.0),
    Goal("prune_by_magnitude / PyTorch, 10⁸ weights", "mask_selection", {"num_weights": {10**8}}, "torch", 1 / 3),
    Goal("share of peak FLOP/s, ResNet-20, CPU", "roofline", {"model": {"resnet20"}}, "share of peak", 0.5, at_least=True),
    Goal("a plane of 31 x 31 points of CNN-S on 2,000 images, seconds with compiling", "plane", {}, "first plane, s", 120.0),
    Goal("compile time N = 8 / N = 1, WRN-16-1", "compile_time", {}, "N = 8 / N = 1", 2.5),
)


def text(results: Sequence[Mapping[str, Any]], rows: Mapping[str, ModuleType]) -> str:
    """The report in markdown.

    Args:
        results: of cells, as `cell.py` and `run.py` write them.
        rows: name -> module, in the order of the report.
    """
    by_row = {row: [result for result in results if result["cell"]["row"] == row] for row in rows}
    parts = ["# Benchmarks", *_machine(results), "## Goals", _goals(by_row)]
    for row, module in rows.items():
        parts += [f"## {module.TITLE}", module.NOTE, *_table(by_row[row])]
    return "\n\n".join(parts) + "\n"


def _machine(results) -> Iterator[str]:
    yield (
        "Written by `make bench`. Ratios of time: below 1 ours is faster; median over the rounds, the least and the greatest in "
        "brackets. Both sides of a ratio ran in turns, and in one process but for cold starts."
    )
    machines = [result["environment"] for result in results if "environment" in result]
    facts = {
        "hardware": lambda m: f"{m['cpu_model']}, {m['cpu_cores']} cores; JAX on {m['num_devices']} × {m['device_kind']}",
        "versions": lambda m: ", ".join(f"{name} {m[name]}" for name in ("python", "jax", "jaxlib", "flax", "optax", "numpy", "torch")),
        "commit": lambda m: m["git_commit"] or "not run from a checkout",
        "XLA_FLAGS": lambda m: m["xla_flags"] or "none",
        "dates": lambda m: m["date"],
    }
    lines = [f"- {name}: {'; '.join(sorted({fact(m) for m in machines}))}" for name, fact in facts.items() if machines]
    busy = [result.get("busy_cores_before") or 0.0 for result in results]
    if results:
        number = sum(cores > IDLE_CORES for cores in busy)
        lines.append(f"- other work on the machine, in busy cores before each cell: at most {max(busy):.2f}")
        if number:
            lines.append(f"- **warning: the machine was not idle before {number} of {len(busy)} cells; their figures are rough**")
    yield "\n".join(lines)


def _goals(by_row):
    return markdown_table(
        ["measured", "goal", "result", "reached"],
        [[goal.text, f"{'≥' if goal.at_least else '≤'} {goal.limit:.3g}", *_outcome(goal, by_row[goal.row])] for goal in GOALS], "lrll",
    )


def _outcome(goal, results):
    """The values of a goal's cells, and whether all of them reach it; "so far" while some are missing."""
    chosen = [
        result for result in results
        if all(result["cell"][key] in values for key, values in goal.cells.items())
        and result.get("environment", {}).get("platform") == goal.platform
    ]
    if not chosen:
        return NOT_RUN, NOT_AVAILABLE
    found = [_value(result, goal.name) for result in chosen]
    words = [f"{_label(result)}: {NOT_RUN if value is None else _significant(value)}" for result, value in zip(chosen, found)]
    reached = all(value is not None and (value >= goal.limit if goal.at_least else value <= goal.limit) for value in found)
    complete = len(chosen) >= math.prod(map(len, goal.cells.values()))
    return "; ".join(words), ("yes" if complete else "so far") if reached else "no"


def _value(result, name):
    ratio = result.get("ratios", {}).get(name)
    return ratio["ratio"] if ratio else result.get("figures", {}).get(name)


def _label(result):
    return " ".join(_word(value) for value in list(result["cell"].values())[1:])


def _word(value):
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(results) -> Iterator[str]:
    if not results:
        yield NOT_RUN
        return
    results = sorted(results, key=lambda result: [f"{value:>12}" for value in result["cell"].values()])
    keys = list(results[0]["cell"])[1:]
    ratios = _names(results, "ratios")
    ratios += [name for name in _names(results, "not_run") if name not in (*ratios, "the rest")]
    figures = _names(results, "figures")
    rows = [
        [*(_word(result["cell"][key]) for key in keys), *(_ratio(result, r) for r in ratios), *(_figure(result, f) for f in figures)]
        for result in results
    ]
    header = [*(key.replace("_", " ") for key in keys), *ratios, *figures]
    yield markdown_table(header, rows, "l" * len(keys) + "r" * len([*ratios, *figures]))
    reasons = [
        f"- {_label(result)}, {name}: {NOT_RUN}: {reason}" for result in results for name, reason in result["not_run"].items()
    ]
    if reasons:
        yield "\n".join(reasons)


def _names(results, kind):
    return list(dict.fromkeys(name for result in results for name in result.get(kind, {})))


def _ratio(result, name):
    ratio = result.get("ratios", {}).get(name)
    if ratio is None:
        # What a cell does not measure at all is not missing.
        return NOT_RUN if name in result["not_run"] or "the rest" in result["not_run"] else NOT_AVAILABLE
    return f"{_significant(ratio['ratio'])} ({_significant(ratio['low'])} to {_significant(ratio['high'])})"


def _figure(result, name):
    value = result.get("figures", {}).get(name)
    return NOT_AVAILABLE if value is None else _significant(value)


def _significant(value):
    """Three digits.

    Example:
        >>> _significant(0.01234), _significant(1234.5), _significant(0)
        ('0.0123', '1,234', '0')
    """
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return format_number(float(value), max(0, digits))
