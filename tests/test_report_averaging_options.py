"""Ways to average online in a report: each against the plain average of its own setting, with its bytes."""

import re

import pytest
from pictures import named, recorded  # noqa: F401
from report_cells import cell

from hwa_jax.report.averaging_options import equal_compute_table, of_main_average, options, options_table
from hwa_jax.report.comparison import write_comparison

JITTER = (0.0, 0.001, -0.001)


def trained(hwa, online, **fields):
    """The cells of three seeds: accuracies of HWA and of its online average."""
    return [
        cell(method, "both", seed, accuracy - 0.01 * seed + (JITTER[seed] if fields.get("averaging") else 0.0),
             **{"window_size": 10 if method == "hwa" else None, **fields})
        for method, accuracy in (("hwa", hwa), ("online", online)) for seed in range(3)
    ]


CELLS = [
    *[cell("plain", "equal_steps", seed, 0.7) for seed in range(3)],
    *trained(0.80, 0.79),
    *trained(0.83, 0.78, averaging="bfloat16", bytes_communicated=4_000_000),
    *trained(0.60, 0.50, sync_period=4, synchronizations=450, bytes_communicated=180_000_000),
    *trained(0.61, 0.52, sync_period=4, averaging="bfloat16", synchronizations=450, bytes_communicated=90_000_000),
    *trained(0.40, 0.30, replica_batch_sizes="50:10"),
    *trained(0.35, 0.30, replica_batch_sizes="50:10", averaging="weights 5:1"),
]


def test_each_is_compared_with_the_plain_average_of_its_own_setting():
    found = {(one.sync_period, one.batches, one.averaging): one for one in options(CELLS)}
    assert list(found) == [
        (4, None, None), (4, None, "bfloat16"), (90, None, None), (90, None, "bfloat16"), (90, "50:10", None), (90, "50:10", "weights 5:1"),
    ]
    means = {key: {name: d.mean for name, d in one.differences.items()} for key, one in found.items()}
    assert means[90, None, "bfloat16"] == pytest.approx({"hwa": 3.0, "online": -1.0})
    assert means[4, None, "bfloat16"] == pytest.approx({"hwa": 1.0, "online": 2.0})
    assert means[90, "50:10", "weights 5:1"] == pytest.approx({"hwa": -5.0, "online": 0.0})
    assert all(means[key] == {} for key in found if key[2] is None)
    # Differences 2.9, 3.0 and 3.1: 4.303 · 0.1 / √3
    assert found[90, None, "bfloat16"].differences["hwa"].half_width == pytest.approx(0.2484, abs=1e-4)


def test_the_table_has_bytes_and_verdicts():
    lines = [[entry.strip() for entry in line.split("|")[1:-1]] for line in options_table(options(CELLS)).splitlines()[2:]]
    # 180 MB / 450 = 400 kB; 61, 60.1 and 58.9: 4.303 · 1.054 / √3 = 2.62
    assert lines[0] == ["4", "all full", "plain", "59.00 ± 2.48", "–", "3", "reference", "–", "400 kB", "180 MB"]
    assert lines[1] == ["4", "all full", "bfloat16", "60.00 ± 2.62", "+1.00 ± 0.25", "3", "better", "+2.00 ± 0.25", "200 kB", "90 MB"]
    assert lines[5][1:3] == ["50:10", "weights 5:1"] and lines[5][6] == "worse"


LONG = [cell("plain", "equal_compute", seed, 0.82 - 0.01 * seed) for seed in range(3)]


def test_equal_compute_by_hand():
    """One network with twice the epochs: 82, 81, 80. HWA: 80, 79, 78, and with bfloat16 83, 82.1, 80.9."""
    offline = [cell("offline_window", "equal_compute", seed, 0.81 - 0.01 * seed, num_train=n) for seed in range(2) for n in (9000, 500)]
    others = [cell("plain", "equal_compute", seed, 0.1, compute_epochs=80.0) for seed in range(3)]
    others += [cell("offline_window", "equal_compute", seed, 0.1, window_size=size) for seed in range(3) for size in (5, "auto")]
    found = {(one.sync_period, one.batches, one.averaging): one.singles for one in options([*CELLS, *LONG, *offline, *others])}
    assert found[90, None, None]["plain"].mean == pytest.approx(-2.0) and found[90, None, "bfloat16"]["plain"].mean == pytest.approx(1.0)
    assert found[90, None, "bfloat16"]["plain"].half_width == pytest.approx(0.2484, abs=1e-4)
    assert found[90, None, None]["offline_window"].mean == pytest.approx(-1.0) and found[90, None, None]["offline_window"].n == 2
    # Batches of 50 and 10 are not twice the passes.
    assert found[90, "50:10", None] == found[90, "50:10", "weights 5:1"] == {}


def test_the_table_of_equal_compute_says_who_wins():
    table = equal_compute_table(options([*CELLS, *LONG]))
    lines = [[entry.strip() for entry in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert len(lines) == 4 and lines[3] == ["90", "all full", "bfloat16", "82.00 ± 2.62", "+1.00 ± 0.25", "better", "–", "not judged", "3"]
    assert lines[0][4:6] == ["-22.00 ± 0.00", "worse"]


def test_settings_that_vary_are_named_and_compared_apart():
    """K = 4 gains 1 point by bfloat16, K = 2 gains 3; I = "auto" sorts after numbers."""
    cells = [*CELLS[:15], *trained(0.85, 0.84, num_replicas=4), *trained(0.86, 0.84, num_replicas=4, averaging="bfloat16"), *trained(0.9, 0.84, num_replicas=4)[:3]]
    cells = cells[:-3] + [c | {"window_size": "auto"} for c in cells[-3:]]
    found = options(cells)
    assert [(one.setting, one.averaging) for one in found] == [
        ("K=2, I=10", None), ("K=2, I=10", "bfloat16"), ("K=4, I=10", None), ("K=4, I=10", "bfloat16"), ("K=4, I=auto", None),
    ]
    assert [one.differences["hwa"].mean for one in found if one.averaging] == pytest.approx([3.0, 1.0])
    lines = options_table(found).splitlines()
    assert lines[0].startswith("| Setting ") and lines[6].startswith("| K=4, I=auto | 90 |")


def test_a_report_with_a_chosen_window_beside_a_given_one(tmp_path):
    chosen = [c | {"window_size": "auto", "sync_period": 4} for c in CELLS[3:6]]
    text = write_comparison([*CELLS, *LONG, *chosen], tmp_path, title="Chosen", meta={}).read_text()
    assert "HWA (H=4, I=auto)" in text and "I=auto" in text and "offline" in text


def test_a_training_that_diverged_is_not_judged():
    nothing = {"accuracy": None, "nll": None, "ece": None}
    lost = [c | {"test": nothing, "bytes_communicated": None, "synchronizations": None} if c["averaging"] == "bfloat16" else c for c in CELLS]
    found = {(one.sync_period, one.averaging): one for one in options(lost)}
    assert found[4, "bfloat16"].sent == 0
    assert options_table(options(lost)).count("not judged") == 2


def test_what_would_flatten_the_plot_is_left_out_and_said(tmp_path, recorded):
    wild = [c | {"test": {**c["test"], "accuracy": 0.9 - 0.4 * c["seed"]}} if c["averaging"] == "weights 5:1" else c for c in CELLS]
    text = write_comparison(wild, tmp_path, title="Wild", meta={}).read_text()
    assert "Not drawn, since their intervals are more than 20 times as wide as the median: weights 5:1, batches 50:10 at H = 90." in text
    # In its own plot: bf16 at both H, of HWA and of the online average. The other plot has four differences to plain training.
    assert len(named(recorded, "errorbar")) == 4 + 4
    assert "Not drawn" not in write_comparison(CELLS, tmp_path, title="Tame", meta={}).read_text()


def test_one_way_to_average_needs_no_table(tmp_path):
    alone = [c for c in CELLS if c["averaging"] is None]
    assert options(alone) == []
    assert "Ways to average" not in write_comparison(alone, tmp_path, title="One", meta={}).read_text()
    assert not (tmp_path / "averaging.png").exists()


def test_the_report_keeps_the_options_apart(tmp_path):
    text = write_comparison(CELLS, tmp_path, title="Options", meta={}).read_text()
    before, ways, after = re.split(r"## Ways to average online|## The claims", text)
    assert "bfloat16" in ways and "averaging.png" in ways and (tmp_path / "averaging.png").is_file()
    assert "bfloat16" not in before + after and "50:10" not in before + after and "HWA (H=4)" in before
    assert {c["averaging"] for c in of_main_average(CELLS)} == {None} == {c["replica_batch_sizes"] for c in of_main_average(CELLS)}
