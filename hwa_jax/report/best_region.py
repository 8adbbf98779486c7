"""The best of many settings, and those that are as good as far as a few seeds can tell."""

from collections.abc import Hashable, Mapping
from typing import NamedTuple

import numpy as np

from hwa_jax.report.statistics import Interval, paired_difference


class Region(NamedTuple):
    """The best setting, and all that are as good.

    Attributes:
        best: the setting with the highest mean.
        differences: setting -> its paired difference to the best over seeds; the best's own is zero. What has no seed in common with the best is not there.
    """

    best: Hashable
    differences: dict[Hashable, Interval]

    def contains(self, setting: Hashable) -> bool:
        """Whether the interval of the difference contains zero; with one seed nothing but the best is, and what lacks a seed never."""
        return setting == self.best or (setting in self.differences and self.differences[setting].high >= 0)

    @property
    def settings(self) -> list[Hashable]:
        """All that are as good, the best among them."""
        return [setting for setting in self.differences if self.contains(setting)]


def best_region(found: Mapping[Hashable, Mapping[int, float]]) -> Region | None:
    """The best setting and the differences to it, among those that have all seeds; None if there is none.

    Args:
        found: setting -> seed -> a figure, the higher the better.

    Example:
        >>> around = best_region({"best": {0: 90.0, 1: 92.0}, "good": {0: 91.0, 1: 90.0}, "bad": {0: 80.0, 1: 82.0}, "lucky": {0: 95.0}})
        >>> around.best, around.settings
        ('best', ['best', 'good'])
    """
    if not found:
        return None
    most = max(len(seeds) for seeds in found.values())
    whole = {setting: seeds for setting, seeds in found.items() if len(seeds) == most}
    best = max(whole, key=lambda setting: np.mean(list(whole[setting].values())))
    return Region(best, {setting: paired_difference(seeds, whole[best]) for setting, seeds in whole.items() if seeds.keys() & whole[best].keys()})
