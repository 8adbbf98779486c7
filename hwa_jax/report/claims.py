"""Claims of a paper as paired differences over seeds, each with a verdict by rule."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hwa_jax.report.statistics import Interval
from hwa_jax.report.tables import format_interval, format_number, markdown_table


class Effect(NamedTuple):
    """One paired difference that speaks for or against a claim.

    Attributes:
        claim: "H1" to "H10", "S1" to "S7", or a short name of another question.
        text: what is compared.
        setting: optimizer, schedule, density and the like.
        effect: mean and interval over seeds; positive where the claim holds.
        unit: of the effect.
        margin: for a claim of "about as good": how much worse still counts as that, in the unit of the effect.
    """

    claim: str
    text: str
    setting: str
    effect: Interval
    unit: str
    margin: float = 0.0

    @property
    def verdict(self) -> str:
        """ "shown", "contradicted", "not shown", or "not judged" with fewer than two pairs.

        Example:
            >>> Effect("S2", "a - b", "", Interval(-0.1, 0.05, 5), "points", margin=0.25).verdict
            'shown'
        """
        if np.isnan(self.effect.half_width):
            return "not judged"
        if self.effect.low > -self.margin:
            return "shown"
        return "contradicted" if self.effect.high < -self.margin else "not shown"


def effects_table(effects: Sequence[Effect]) -> str:
    """A markdown table, a row per effect."""
    rows = [
        [e.claim, e.text, e.setting, format_interval(e.effect, signed=True), _unit(e), str(e.effect.n), e.verdict]
        for e in effects
    ]
    return markdown_table(["Claim", "Effect", "Setting", "Mean ± 95 % CI", "Unit", "n", "Verdict"], rows, "lllrlrl")


def _unit(effect):
    return f"{effect.unit}, margin {format_number(effect.margin)}" if effect.margin else effect.unit
