"""The claims of the SWAMP paper from the cells of a comparison: S1 to S4 and S6, the 2×2 of its parts, and the gate.

A claim's effect is positive where the claim holds. Differences are of test accuracy in percentage points, paired by seed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from hwa_jax.report.claims import Effect
from hwa_jax.report.sparse_methods import METHODS, Levels, density_text, example_levels, levels_by_method, shown_levels
from hwa_jax.report.statistics import paired_difference

# What still counts as "about as good", in points.
MARGIN = 0.25

# Levels of one seed -> points.
_Measure = Callable[[Sequence[Mapping]], float]


def effects(cells: Sequence[Mapping]) -> list[Effect]:
    """All effects that the cells allow."""
    found = _Found(levels_by_method(cells))
    return [
        *found.profile("S1", "SWAMP - IMP", "swamp", "imp"),
        *found.trend("S1", "SWAMP - IMP, sparse thirds of the levels minus dense third", "swamp", "imp"),
        *found.profile("S1", "SWAMP - IMP with N times the epochs", "swamp", "imp_long"),
        *found.overall("S1", "SWAMP - IMP at a learning rate of its own", "swamp", "imp_own_rate"),
        *found.overall("S1", "SWAMP - best of N IMP", "swamp", "imp_best"),
        *found.overall("S1", "SWAMP - IMP, both from an early ticket", "swamp_early", "imp_early"),
        *found.profile("S2", "SWAMP - ensemble of two IMP", "swamp", "imp_ensemble", margin=MARGIN),
        *found.profile("S3", "SWAMP with fewer particles - more particles without SWA", "swamp_few", "particles_many", margin=MARGIN),
        *found.overall("2×2", "SWA in one particle: IMP + SWA - IMP", "imp_swa", "imp"),
        *found.overall("2×2", "SWA in N particles: SWAMP - N particles", "swamp", "particles"),
        *found.overall("2×2", "averaging N particles without SWA: N particles - IMP", "particles", "imp"),
        *found.overall("2×2", "averaging N particles with SWA: SWAMP - (IMP + SWA)", "swamp", "imp_swa"),
        *found.profile("S4", "SWAMP's masks - IMP's masks, trained alike", "swamp_mask", "imp", first=1),
        *found.of_averages("particles"), *found.of_averages("swamp"), *found.of_averages("swamp_early"),
        *found.overall("gate", "gated - always", "swamp_gated", "swamp"),
        *found.profile("gate", "gated - always, early ticket", "swamp_early_gated", "swamp_early"),
    ]


class _Found:
    def __init__(self, levels: Levels):
        self._levels = levels
        example = example_levels(levels)
        self._shown = [(number, f"{density_text(example[number])} left") for number in shown_levels(example)]

    def profile(self, claim, text, ours, theirs, *, margin=0.0, first=0) -> Iterator[Effect]:
        """The difference of two methods at the shown levels, and over all."""
        for number, setting in self._shown:
            if number >= first:
                yield from self._difference(claim, text, setting, ours, theirs, lambda levels, number=number: _accuracy(levels[number]), margin)
        yield from self.overall(claim, text, ours, theirs, margin=margin, first=first)

    def overall(self, claim, text, ours, theirs, *, margin=0.0, first=0) -> Iterator[Effect]:
        """The difference of two methods, the mean over all levels."""
        setting = "mean over all levels" + (" but the dense one" if first else "")
        yield from self._difference(claim, text, setting, ours, theirs, lambda levels: _mean(map(_accuracy, levels[first:])), margin)

    def trend(self, claim, text, ours, theirs) -> Iterator[Effect]:
        """How much a difference grows from the dense third of the levels to the rest."""
        yield from self._difference(claim, text, "growth with sparsity", ours, theirs, lambda levels: _growth([_accuracy(level) for level in levels]))

    def of_averages(self, method) -> Iterator[Effect]:
        """S6: at low sparsity the average is below its particles, and the gap closes."""
        text = f"average and mean particle of {METHODS[method][0]}"

        def gap(level):
            return 100 * (level["average"]["test"]["accuracy"] - level["particles"]["test"]["accuracy"])

        def add(setting, measure, text):
            values = {seed: measure(levels) for seed, levels in self._levels.get(method, {}).items()}
            if values:
                yield Effect("S6", text, setting, paired_difference(values, dict.fromkeys(values, 0.0)), "points")

        for number, setting in self._shown[:1]:
            yield from add(setting, lambda levels: -gap(levels[number]), f"{text}: particle - average")
        for number, setting in self._shown[1:]:
            yield from add(setting, lambda levels, number=number: gap(levels[number]), f"{text}: average - particle")
        yield from add("growth with sparsity", lambda levels: _growth([gap(level) for level in levels]), f"{text}: average - particle")

    def _difference(self, claim, text, setting, ours, theirs, measure: _Measure, margin=0.0) -> Iterator[Effect]:
        ours, theirs = self._levels.get(ours, {}), self._levels.get(theirs, {})
        if ours.keys() & theirs.keys():
            values = [{seed: measure(levels) for seed, levels in side.items()} for side in (ours, theirs)]
            yield Effect(claim, text, setting, paired_difference(*values), "points", margin)


def _accuracy(level):
    return 100 * level["test"]["accuracy"]


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


def _growth(values):
    """The mean after the first third minus the mean of the first third."""
    third = max(1, len(values) // 3)
    return _mean(values[third:]) - _mean(values[:third])
