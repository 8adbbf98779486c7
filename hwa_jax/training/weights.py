"""Weights that can be evaluated and shipped, with BatchNorm statistics of their own."""

import logging
from typing import Any, NamedTuple

from hwa_jax.training.setup import Setup

_logger = logging.getLogger(__name__)


class Weights(NamedTuple):
    """One set of weights that can be evaluated and shipped.

    Attributes:
        params: the network's parameters.
        batch_stats: its BatchNorm statistics.
    """

    params: Any
    batch_stats: Any


def recalibrated(setup: Setup, params: Any, batch_stats: Any, *, stacked: bool = False) -> Weights:
    """Weights with BatchNorm statistics of their own, and a warning where more images would still move them; see `Recalibration`."""
    batch_stats, report = setup.recalibrate(params, batch_stats, stacked=stacked)
    if report is not None and report.more_would_help:
        _logger.warning(
            "BatchNorm statistics moved by %.2g over the second half of %d images: raise recalibration_examples",
            report.unsettled, report.num_samples,
        )
    return Weights(params, batch_stats)
