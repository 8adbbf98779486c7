"""What a plot test reads: the pixels of a file, and the calls that drew it."""

import matplotlib.axes
import numpy as np
import pytest
from PIL import Image

_DRAWING = (
    "plot", "fill_between", "errorbar", "legend", "annotate", "set_xlim", "set_ylim", "bar", "contourf", "pcolormesh",
)  # fmt: skip


def decoded(path):
    """The pixels of a PNG file, uint8 [height, width, 3]."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def recorded(monkeypatch):
    """Every call of the Axes methods that draw, as (name, arguments, keywords)."""
    calls = []

    def record(name):
        original = getattr(matplotlib.axes.Axes, name)

        def wrapper(self, *arguments, **keywords):
            calls.append((name, arguments, keywords))
            return original(self, *arguments, **keywords)

        monkeypatch.setattr(matplotlib.axes.Axes, name, wrapper)

    for name in _DRAWING:
        record(name)
    return calls


def named(calls, name):
    """(arguments, keywords) of the calls of one method."""
    return [(arguments, keywords) for called, arguments, keywords in calls if called == name]
