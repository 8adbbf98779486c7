"""Report of the instruments: what its plots show, and its tables by hand."""

import json

import numpy as np
import pytest

from hwa_jax.report.analysis_plots import chain, curvature, hull, segments
from hwa_jax.report.analysis_report import write_report
from hwa_jax.report.landscape_plots import landscape
from pictures import decoded, named, recorded  # noqa: F401


def plane(loss=None, error=None):
    x, y = np.linspace(-1, 2, 7), np.linspace(-1, 1, 5)
    bowl = (x - 0.5) ** 2 + y[:, None] ** 2
    return {
        "x": x.tolist(), "y": y.tolist(), "loss": (bowl if loss is None else loss).tolist(),
        "error": (0.1 * bowl if error is None else error).tolist(),
        "positions": {"outer": [1.0, 0.0, 0.0], "hwa": [0.5, 0.2, 0.0], "inner 0": [1.01, 0.01, 0.75]},
        "trajectory": {"step 1": [-0.5, 0.5, 0.3], "step 2": [0.0, 0.1, 0.1], "step 3": [1.0, 0.0, 0.0]},
    }


def draw(study, path):
    return landscape(study, path, title="plane", xlabel="first", ylabel="second", split="validation")


def test_a_landscape_shows_loss_as_contours_and_error_as_cells_in_percent(tmp_path, recorded):
    study = plane()
    pixels = decoded(draw(study, tmp_path / "plane.png"))
    assert pixels.shape[0] > 400 and pixels.shape[1] > 1200
    [((_, _, loss, levels), _)] = named(recorded, "contourf")
    np.testing.assert_array_equal(loss, study["loss"])
    assert levels[0] == np.min(loss) and (np.diff(levels, 2) > 0).all()  # closer together near the minimum
    # Colour bars are cells too.
    [((_, _, error), keywords)] = [call for call in named(recorded, "pcolormesh") if "vmin" in call[1]]
    np.testing.assert_allclose(error, 100 * np.array(study["error"]))
    assert keywords["cmap"] == "cividis_r"


def test_weights_at_one_place_share_a_marker_and_every_name_is_written_once(tmp_path, recorded):
    draw(plane(), tmp_path / "plane.png")
    texts = [arguments[0] for arguments, _ in named(recorded, "annotate")]
    # Two panels; outer, inner 0 and the end of the trajectory lie within 2 % of the width.
    assert sorted(texts) == sorted(2 * ["outer, inner 0, step 3", "hwa", "step 1"])
    legend = [keywords["label"] for _, keywords in named(recorded, "plot") if "label" in keywords]
    assert "outer, inner 0 (0.75 off the plane), step 3" in legend and "hwa" in legend
    assert "step 1 to step 3, projected" in legend


def test_labels_stay_inside_the_frame_and_off_each_other(tmp_path, recorded):
    study = plane()
    study["positions"] = {f"particle {n}": [1.9, -0.9 + 0.13 * n, 0.0] for n in range(6)}
    study["trajectory"] = {}
    draw(study, tmp_path / "plane.png")
    scale = 72 * 6.4 / 3  # points of paper per unit
    boxes = []
    for (text, (x, y)), keywords in named(recorded, "annotate")[:6]:
        dx, dy = keywords["xytext"]
        boxes.append((scale * x + dx, scale * y + dy, 0.28 * 9 * len(text), 5.4))
    for cx, cy, width, height in boxes:
        assert cx + width <= scale * 2.0 + 1e-9 and cy - height >= -scale - 1e-9
    for i, (ax, ay, aw, ah) in enumerate(boxes):
        for bx, by, bw, bh in boxes[:i]:
            assert abs(ax - bx) >= aw + bw - 1e-9 or abs(ay - by) >= ah + bh - 1e-9


@pytest.mark.parametrize("loss", [np.full((5, 7), 0.3), np.where(np.arange(35).reshape(5, 7) == 3, np.nan, 1.0)], ids=["plateau", "nan"])
def test_a_plateau_and_a_hole_are_drawn(tmp_path, loss):
    assert (decoded(draw(plane(loss, loss), tmp_path / "plane.png")) < 250).any()


def pair(a, b, loss, error):
    return {"from": a, "to": b, "position": [0.0, 0.5, 1.0], "loss": loss, "error": error, "loss_barrier": 0.25, "error_barrier": 0.125}


PAIRS = [pair("a", "b", [1.0, 0.5, 2.0], [0.1, 0.2, 0.4]), pair("b", "c", [2.0, 1.0, 1.0], [0.4, 0.1, 0.2])]


def test_segments_and_chain_draw_errors_in_percent(tmp_path, recorded):
    segments(PAIRS, tmp_path / "segments.png", "between")
    lines = [(keywords["label"], list(arguments[1])) for arguments, keywords in named(recorded, "plot")]
    assert lines[0] == ("a to b", [1.0, 0.5, 2.0]) and lines[3] == ("b to c", pytest.approx([40.0, 10.0, 20.0]))
    recorded.clear()
    chain(PAIRS, tmp_path / "chain.png", "chain")
    drawn = [(list(arguments[0]), list(arguments[1])) for arguments, _ in named(recorded, "plot")]
    # Segments start where the one before ended, and dots are the solutions.
    assert drawn[1] == ([1.0, 1.5, 2.0], [2.0, 1.0, 1.0]) and drawn[2] == ([0, 1, 2], [1.0, 2.0, 1.0])


HULL = {
    "corners": {"a": {"loss": 1.0, "error": 0.2}, "b": {"loss": 3.0, "error": 0.2}}, "centre": {"loss": 1.25, "error": 0.2},
    "inside": {"loss": [0.5, 1.5, 2.5, 1.5], "error": [0.2] * 3 + [0.2 + 1e-16]}, "concentration": 1.0,
}


def test_a_hull_shows_all_points_and_all_corners(tmp_path, recorded):
    hull(HULL, tmp_path / "hull.png", "hull")
    loss, error = [(list(arguments[0]), list(arguments[1])) for arguments, _ in named(recorded, "bar")]
    assert loss == ([0.5, 1.5, 2.5], [1, 2, 1])
    assert error == ([20.0], [4])
    limits = [arguments for arguments, keywords in named(recorded, "set_xlim") if len(arguments) == 2 and not keywords]
    assert limits[0][0] < 0.5 and limits[0][1] > 3.0
    # All equal: an axis around the one value.
    assert limits[1][0] < 19.9 and limits[1][1] > 20.1


def test_points_of_a_hull_too_close_for_bars_of_their_own_share_them(tmp_path, recorded):
    """Two of twelve losses are 1e-4 apart on an axis of 2: seven bars that can be seen, not twelve hairlines."""
    losses = [1.0, 1.0001, *np.linspace(1.1, 2.4, 10)]
    hull(HULL | {"inside": {"loss": losses, "error": [0.2] * 12}}, tmp_path / "hull.png", "hull")
    (places, counts, width), _ = named(recorded, "bar")[0]
    assert len(places) == 7 and sum(counts) == 12 and width == pytest.approx(1.4 / 7)


CURVATURE = {
    "outer": {"loss": 0.5, "trace": 10.0, "trace_error": 0.5, "eigenvalues": [4.0, 2.0, 1.0], "residuals": [0.1, 0.01, 0.2],
              "sharpness": 0.002, "sharpness_error": 0.0001},
}


def test_curvature_has_two_standard_errors(tmp_path, recorded):
    curvature(CURVATURE, tmp_path / "curvature.png", "curvature")
    bars = [(arguments[0][0], keywords["xerr"][0]) for arguments, keywords in named(recorded, "errorbar")]
    assert bars == [(10.0, 1.0), (4.0, pytest.approx(0.1)), (0.002, pytest.approx(0.0002))]


def report(tmp_path, **studies):
    splits = {name: "validation, 20 examples" for name in studies}
    return write_report(studies, tmp_path, title="HWA, step 4 of 4", splits=splits, meta={
        "seed": 3, "num_train": 90, "environment": {"git_commit": "abc"}, "network": "mlp", "command": "python experiments/analyze.py",
    }).read_text()


def cells(text, first):
    """The cells of the table row that starts so."""
    [line] = [line for line in text.splitlines() if line.startswith("|") and line.split("|")[1].strip() == first]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_tables_by_hand(tmp_path):
    text = report(tmp_path, connectivity={"compared": PAIRS, "successive": []}, hull=HULL, curvature=CURVATURE)
    # a to b: the mean of the ends is 1.5 nats and 25 %, the midpoint has 0.5 and 20 %.
    assert cells(text, "a") == ["a", "b", "0.2500", "12.50", "+1.0000", "+5.00"]
    assert cells(text, "loss, nats") == ["loss, nats", "1.0000", "2.0000", "1.2500", "0.5000", "1.5000", "2.5000", "75%", "25%"]
    # Equal errors are not below each other, whatever their last bits.
    assert cells(text, "error, %")[-2:] == ["0%", "0%"]
    assert cells(text, "outer") == ["outer", "0.5000", "10 ± 0.5", "4, 2, 1", "0.2", "0.002 ± 0.0001"]
    assert "### Successive solutions" not in text and not (tmp_path / "chain.png").exists()
    assert "- seeds: 1 (3)" in text and "- commits of the trainings: abc" in text and "python experiments/analyze.py" in text


def test_what_is_not_finite_is_null_in_json(tmp_path):
    broken = {"outer": {**CURVATURE["outer"], "loss": float("nan")}}
    report(tmp_path, curvature=broken)
    assert json.loads((tmp_path / "results.json").read_text())["curvature"]["outer"]["loss"] is None
