"""Bandwidths and times as people write them."""

import math
import re

from hwa_jax.errors import UserError

_NUMBER = r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([A-Za-z/]+)\s*"
# Bytes per second.
_BANDWIDTHS = {
    "kbit": 125.0, "Mbit": 125e3, "Gbit": 125e6, "Tbit": 125e9, "kB": 1e3, "MB": 1e6, "GB": 1e9,
}  # fmt: skip
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def parse_bandwidth(text: str, field: str) -> float:
    """Bytes per second of "100Mbit", "1.5 Gbit/s" or "12.5MB"; decimal units, a bit is an eighth of a byte.

    Args:
        text: what a user wrote.
        field: where, for the message.

    Raises:
        UserError: anything else, or zero.

    Example:
        >>> parse_bandwidth("100Mbit", "--bandwidth"), parse_bandwidth("12.5 MB/s", "--bandwidth")
        (12500000.0, 12500000.0)
    """
    return _parse(text.strip().removesuffix("/s"), field, _BANDWIDTHS, "100Mbit, 1Gbit/s or 12.5MB", above_zero=True)


def parse_seconds(text: str, field: str, *, above_zero: bool = False) -> float:
    """Seconds of "20ms", "0.5 s" or "3 min".

    Args:
        text: what a user wrote.
        field: where, for the message.
        above_zero: whether zero is refused.

    Raises:
        UserError: anything else.

    Example:
        >>> parse_seconds("20ms", "--latency"), parse_seconds("3 min", "--latency")
        (0.02, 180.0)
    """
    return _parse(text, field, _SECONDS, "20ms, 0.5s or 3min", above_zero=above_zero)


def _parse(text, field, units, examples, *, above_zero):
    match = re.fullmatch(_NUMBER, text)
    if not match or match[2] not in units:
        raise UserError(f"{field}={text!r}: write a number with a unit ({', '.join(units)}), as in {examples}")
    value = float(match[1]) * units[match[2]]
    if not math.isfinite(value) or (above_zero and value == 0):
        raise UserError(f"{field}={text!r}: must be {'above 0 and ' if above_zero else ''}finite")
    return value
