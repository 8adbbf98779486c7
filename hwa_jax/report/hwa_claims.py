"""The claims of the HWA paper, each as paired differences over seeds with a verdict by rule.

Numbered as in the results: H1 to H4 and H8 to H10. A claim's effect is positive where the claim holds.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from hwa_jax.report.aggregation import accuracy_at
from hwa_jax.report.averaging_options import of_main_average
from hwa_jax.report.claims import Effect
from hwa_jax.report.statistics import Interval, paired_difference
from hwa_jax.report.tables import format_bytes


def effects(cells: Sequence[Mapping]) -> list[Effect]:
    """All effects that the cells allow; cells as in `comparison.write_comparison`.

    The main setting is that of the first HWA cell; rows with another K, H or training size belong to the
    studies H4 and H10.
    """
    # A training that diverged has no figures.
    cells = [cell for cell in cells if cell["test"]["accuracy"] is not None]
    hwa = [cell for cell in cells if cell["method"] == "hwa"]
    if not hwa:
        return []
    found = []
    for maker in (_against_parts, _speed, _no_schedule, _low_frequency, _stability, _sizes):
        found.extend(maker(_Cells(cells, hwa[0])))
    return sorted(found, key=lambda effect: int(effect.claim[1:]))


class _Cells:
    """Cells by what they are."""

    def __init__(self, cells, main):
        self._cells = of_main_average(cells)
        self.num_replicas, self.sync_period, self.num_train = main["num_replicas"], main["sync_period"], main["num_train"]
        kinds = {(cell["optimizer"], cell["schedule"]): None for cell in cells}
        self.kinds = [kind for kind in kinds if self.get("hwa", *kind)]

    def get(self, method, optimizer, schedule, *, compute=False, **fields) -> dict[int, Mapping]:
        """Seed -> cell; for one-replica methods `compute` asks for those with HWA's compute."""
        several = method in ("hwa", "online")
        wanted = {"num_train": self.num_train}
        if several:
            wanted |= {"num_replicas": self.num_replicas, "sync_period": self.sync_period}
        else:
            wanted["comparison"] = "equal_compute" if compute else "equal_steps"
        wanted |= {"method": method, "optimizer": optimizer, "schedule": schedule} | fields
        return {c["seed"]: c for c in self._cells if all(c[name] == value for name, value in wanted.items())}

    def values(self, field, optimizer, schedule, **fields) -> list:
        """Values of a field in the HWA cells of an optimizer and schedule, ascending."""
        wanted = {"method": "hwa", "optimizer": optimizer, "schedule": schedule} | fields
        return sorted({c[field] for c in self._cells if all(c[name] == value for name, value in wanted.items())})


def _difference(ours, theirs, measure: Callable[[Mapping], float]) -> Interval | None:
    if not ours.keys() & theirs.keys():
        return None
    return paired_difference({s: measure(c) for s, c in ours.items()}, {s: measure(c) for s, c in theirs.items()})


def _test(cell):
    return 100 * cell["test"]["accuracy"]


def _points(claim, text, setting, ours, theirs, measure=_test, unit="points") -> Iterator[Effect]:
    effect = _difference(ours, theirs, measure)
    if effect is not None:
        yield Effect(claim, text, setting, effect, unit)


def _setting(optimizer, schedule):
    return f"{'SGD' if optimizer == 'sgd' else 'AdamW' if optimizer == 'adamw' else optimizer}, {schedule}"


def _against_parts(cells):
    """H1: HWA beats plain training, online and offline averaging; H9: with AdamW too."""
    for kind in cells.kinds:
        claim = "H9" if kind[0] == "adamw" else "H1"
        hwa, setting = cells.get("hwa", *kind), _setting(*kind)
        yield from _points(claim, "HWA - plain, equal steps", setting, hwa, cells.get("plain", *kind))
        yield from _points(claim, "HWA - plain, equal compute", setting, hwa, cells.get("plain", *kind, compute=True))
        yield from _points(claim, "HWA - online average", setting, hwa, cells.get("online", *kind))
        yield from _points(claim, "HWA - offline window, equal steps", setting, hwa, cells.get("offline_window", *kind))
        yield from _points(
            claim, "HWA - offline window, equal compute", setting, hwa, cells.get("offline_window", *kind, compute=True)
        )


def _speed(cells):
    """H2: accuracy on validation at a third and two thirds of the steps; the steps to plain's last accuracy."""
    for kind in cells.kinds:
        hwa, plain = cells.get("hwa", *kind), cells.get("plain", *kind)
        for fraction, name in ((1 / 3, "1/3"), (2 / 3, "2/3")):
            yield from _points(
                "H2", f"validation accuracy at {name} of the steps, HWA - plain", _setting(*kind), hwa, plain,
                lambda cell, fraction=fraction: 100 * accuracy_at(cell, fraction),
            )
        common = [s for s in hwa.keys() & plain.keys() if hwa[s]["curve"] and plain[s]["curve"]]
        if common:
            targets = {s: plain[s]["curve"][-1]["accuracy"] for s in common}
            effect = paired_difference(
                {s: 100 * _time_to(plain[s], targets[s]) for s in common}, {s: 100 * _time_to(hwa[s], targets[s]) for s in common}
            )
            yield Effect("H2", "steps to plain's last validation accuracy, plain - HWA", _setting(*kind), effect, "% of the steps")


def _time_to(cell, accuracy):
    """The part of the steps after which a curve first reaches an accuracy; 1 if it never does."""
    last = cell["curve"][-1]["epoch"]
    return next((point["epoch"] / last for point in cell["curve"] if point["accuracy"] >= accuracy), 1.0)


def _no_schedule(cells):
    """H3: HWA at a constant rate against plain training with a cosine."""
    for optimizer in dict.fromkeys(kind[0] for kind in cells.kinds):
        hwa = cells.get("hwa", optimizer, "constant")
        for compute, basis in ((False, "equal steps"), (True, "equal compute")):
            yield from _points(
                "H3", f"HWA constant - plain cosine, {basis}", _setting(optimizer, "constant"), hwa,
                cells.get("plain", optimizer, "cosine", compute=compute),
            )


def _low_frequency(cells):
    """H4: the gain over plain training at every period, what it costs in bytes, and against the shortest period."""
    for kind in cells.kinds:
        periods = cells.values("sync_period", *kind, num_train=cells.num_train)
        shortest = cells.get("hwa", *kind, sync_period=periods[0])
        for period in periods if len(periods) > 1 else ():
            ours = cells.get("hwa", *kind, sync_period=period)
            name = f"HWA at H={period} ({_sent(ours)})"
            yield from _points("H4", f"{name} - plain, equal steps", _setting(*kind), ours, cells.get("plain", *kind))
            if period != periods[0]:
                yield from _points("H4", f"{name} - HWA at H={periods[0]} ({_sent(shortest)})", _setting(*kind), ours, shortest)


def _sent(cells):
    return format_bytes(next(iter(cells.values()))["bytes_communicated"]) if cells else "not run"


def _stability(cells):
    """H8: a smaller gap between training and test, and a steadier curve in the last half."""
    for kind in cells.kinds:
        hwa, plain = cells.get("hwa", *kind), cells.get("plain", *kind)
        yield from _points(
            "H8", "gap between train and test accuracy, plain - HWA", _setting(*kind), plain, hwa,
            lambda cell: 100 * (cell["train"]["accuracy"] - cell["test"]["accuracy"]),
        )
        yield from _points(
            "H8", "standard deviation of the validation curve's last half, plain - HWA", _setting(*kind), plain, hwa, _unsteadiness
        )


def _unsteadiness(cell):
    curve = [point["accuracy"] for point in cell["curve"]]
    late = curve[len(curve) // 2:]
    return 100 * float(np.std(late, ddof=1)) if len(late) > 1 else math.nan


def _sizes(cells):
    """H10: the gain over plain training at every training-set size."""
    for kind in cells.kinds:
        sizes = cells.values("num_train", *kind)
        for size in sizes if len(sizes) > 1 else ():
            # A period of one epoch has fewer steps on fewer images.
            periods = cells.values("sync_period", *kind, num_train=size)
            period = cells.sync_period if cells.sync_period in periods else periods[0]
            hwa = cells.get("hwa", *kind, num_train=size, sync_period=period)
            for compute, basis in ((False, "equal steps"), (True, "equal compute")):
                yield from _points(
                    "H10", f"HWA - plain, {basis}", f"{_setting(*kind)}, {size} images", hwa,
                    cells.get("plain", *kind, compute=compute, num_train=size),
                )
