"""Plots: files that decode, are not blank, and show the numbers they were given."""

import math

import matplotlib.figure
import numpy as np
import pytest

from hwa_jax.errors import UserError
from hwa_jax.report.plots import Series, curves, dot_intervals
from hwa_jax.report.statistics import Interval
from pictures import decoded, named, recorded  # noqa: F401

EPOCHS = list(range(1, 21))


def series(label="plain", style=0, level=80.0, seeds=3):
    runs = {s: (EPOCHS, [level - 30 / epoch + 0.1 * s for epoch in EPOCHS]) for s in range(seeds)}
    return Series(label, runs, style)


def draw(members, path):
    return curves(members, path, "epoch", "accuracy, %", "SGD")


@pytest.mark.parametrize("count", [1, 4, 5, 11])
def test_curves_write_a_picture_with_a_colour_per_series(tmp_path, count):
    members = [series(f"method {i}", i, 80 + i) for i in range(count)]
    path = draw(members, tmp_path / "curves.png")
    pixels = decoded(path)
    assert pixels.shape[0] > 500 and pixels.shape[1] > 900
    assert 0.01 < (pixels < 250).any(axis=2).mean() < 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_first_eight_styles_differ_in_colour_and_in_grey(tmp_path, recorded):
    draw([series(str(i), i, 80 + i) for i in range(12)], tmp_path / "curves.png")
    lines = [keywords for _, keywords in named(recorded, "plot")]
    lines.sort(key=lambda line: int(line["label"]))
    assert len({line["color"] for line in lines[:8]}) == 8
    assert len({(str(line["linestyle"]), line["marker"]) for line in lines}) == 12


def test_line_is_the_mean_and_band_is_the_interval(tmp_path, recorded):
    # At each epoch three seeds lie 0.1 apart: s = 0.1, t(2, 0.975) = 4.302653, n = 3.
    draw([series(level=80.0, seeds=3)], tmp_path / "curves.png")
    [((x, mean), _)] = named(recorded, "plot")
    [((_, low, high), _)] = named(recorded, "fill_between")
    expected = np.array([80.1 - 30 / epoch for epoch in EPOCHS])
    np.testing.assert_array_equal(x, EPOCHS)
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    np.testing.assert_allclose(high - low, 2 * 4.302653 * 0.1 / math.sqrt(3), rtol=1e-6)


def test_mean_is_drawn_only_where_all_seeds_have_a_finite_value(tmp_path, recorded):
    runs = {0: ([1, 2, 3, 4], [10, 20, 30, 40]), 1: ([2, 3, 4, 5], [40, math.nan, 60, 70])}
    draw([Series("plain", runs, 0)], tmp_path / "curves.png")
    [((x, mean), _)] = named(recorded, "plot")
    assert (list(x), list(mean)) == ([2, 4], [30, 50])


def test_few_series_are_named_at_their_ends_and_many_in_a_legend(tmp_path, recorded):
    draw([series(f"m{i}", i, 80 + 0.01 * i) for i in range(4)], tmp_path / "few.png")
    assert not named(recorded, "legend")
    names = named(recorded, "annotate")
    assert [arguments[0] for arguments, _ in names] == ["m3", "m2", "m1", "m0"]
    heights = [keywords["xytext"][1] for _, keywords in names]
    assert min(-np.diff(heights)) > 0.25  # apart, although the ends differ by 0.01
    draw([series(f"m{i}", i, 80 + i) for i in range(5)], tmp_path / "many.png")
    [(_, legend)] = named(recorded, "legend")
    assert legend["bbox_to_anchor"][0] > 1  # beside the axes, not over the lines


def test_wide_bands_and_the_start_do_not_flatten_the_lines(tmp_path, recorded):
    runs = {s: (EPOCHS, [80 + e + 50 * s - 300 / e**3 for e in EPOCHS]) for s in range(2)}
    draw([Series("plain", runs, 0)], tmp_path / "curves.png")
    # Means from epoch 5 on: 107.6 to 125, a span of 17.4; bands would need 600 more.
    # Matplotlib's own calls pass one argument.
    [(low, high)] = [limits for limits, _ in named(recorded, "set_ylim") if len(limits) == 2]
    assert 107.6 - 10 < low < 107.6
    assert 125 < high < 125 + 10


@pytest.mark.parametrize("runs", [{}, {0: ([], [])}, {0: ([1], [math.nan])}])
def test_nothing_to_draw_is_refused_and_a_partly_empty_plot_is_not(tmp_path, runs, recorded):
    empty = Series("absent", runs, 1)
    with pytest.raises(ValueError, match="none of 1 has a point"):
        draw([empty], tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())
    draw([empty, series("trained")], tmp_path / "curves.png")
    assert [keywords["label"] for _, keywords in named(recorded, "plot")] == ["trained"]


def test_one_point_and_one_seed_and_a_flat_line_can_be_drawn(tmp_path, recorded):
    for epochs, accuracies in (([20.0], [81.0]), ([1, 2], [81.0, 81.0])):
        pixels = decoded(draw([Series("plain", {0: (epochs, accuracies)}, 0)], tmp_path / "curves.png"))
        [((x, y), _)] = named(recorded, "plot")
        assert (x.tolist(), y.tolist()) == (epochs, accuracies) and (pixels < 250).any()
        recorded.clear()


def test_x_and_y_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError):
        draw([Series("plain", {0: ([1, 2], [81.0])}, 0)], tmp_path / "curves.png")


def test_failed_plot_leaves_the_older_file_alone(tmp_path):
    path = tmp_path / "curves.png"
    draw([series()], path)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        curves([series()], path, "epoch", "accuracy", "$\\frac{1}$")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_directory_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        draw([series()], tmp_path / "absent" / "curves.png")


PANELS = {
    "SGD": {
        "equal steps": {"EMA": Interval(0.5, math.nan, 1), "HWA": Interval(1.0, 0.2, 5)},
        "equal compute": {"HWA": Interval(-0.3, 0.2, 5)},
    },
    "AdamW": {"equal steps": {"Lookahead": Interval(0.1, 0.3, 5)}},
    "Adam": {"equal compute": {"HWA": Interval(0.4, 0.3, 5)}},
}


def test_dots_and_intervals_are_where_they_belong(tmp_path, recorded):
    path = dot_intervals(PANELS, tmp_path / "dots.png", "points", "Differences")
    pixels = decoded(path)
    assert 0.005 < (pixels < 250).any(axis=2).mean() < 0.5
    drawn = {
        (arguments[0], keywords["xerr"]): (arguments[1], keywords)
        for arguments, keywords in named(recorded, "errorbar")
    }
    assert set(drawn) == {(0.5, None), (1.0, 0.2), (-0.3, 0.2), (0.1, 0.3), (0.4, 0.3)}
    assert drawn[0.5, None][1]["markerfacecolor"] == "white"
    # Every panel has the rows that it needs, in order of appearance: EMA 0, HWA 1; the other one Lookahead 0. Two
    # groups around each row.
    assert [round(drawn[key][0]) for key in [(0.5, None), (1.0, 0.2), (0.1, 0.3)]] == [0, 1, 0]
    assert drawn[1.0, 0.2][0] < 1 < drawn[-0.3, 0.2][0]
    assert drawn[1.0, 0.2][1]["fmt"] != drawn[-0.3, 0.2][1]["fmt"]


@pytest.mark.parametrize(("counts", "note"), [
    ((5, 5), "mean over 5 seeds; bars: 95 % confidence interval of the mean"),
    ((3, 1, 5), "mean over 1 to 5 seeds; bars: 95 % confidence interval of the mean; hollow: one seed"),
    ((1, 1), "one seed, no interval"),
])
def test_dots_say_how_many_seeds_and_what_the_bars_are(tmp_path, monkeypatch, counts, note):
    titles = []
    monkeypatch.setattr(matplotlib.figure.Figure, "suptitle", lambda self, text, **keywords: titles.append(text))
    intervals = {str(place): Interval(1.0, 0.5, n) for place, n in enumerate(counts)}
    dot_intervals({"SGD": {"HWA": intervals}}, tmp_path / "dots.png", "points", "Differences")
    assert titles == [f"Differences\n{note}"]


@pytest.mark.parametrize("panels", [{}, {"SGD": {}}, {"SGD": {"equal steps": {}}}])
def test_no_interval_is_refused(tmp_path, panels):
    with pytest.raises(ValueError, match="no interval"):
        dot_intervals(panels, tmp_path / "dots.png", "points", "Differences")


def test_a_line_that_leaves_given_limits_is_named_at_their_edge(tmp_path, recorded):
    members = [series("high", 0, 90.0, seeds=1), series("low", 1, 10.0, seeds=1)]
    curves(members, tmp_path / "curves.png", "epoch", "accuracy, %", "SGD", ylim=(80, 95), xticks={1: "one", 20: "twenty"}, zero_line=True)
    places = {arguments[0]: keywords["xy"][1] for arguments, keywords in named(recorded, "annotate")}
    assert places["low"] == 80 and 80 < places["high"] < 95
