"""The page of results/: that of the committed figures, a row per claim, and what it says of results that are chosen here."""

import json
from pathlib import Path

import pytest
from report_cells import cell

from hwa_jax.errors import UserError
from hwa_jax.report.claims_page import BESIDE, CLAIMS, SOURCES, page, rows, verdict, write_page

_RESULTS = Path(__file__).resolve().parents[1] / "results"
JITTER = (0.0, 0.001, -0.001)


def write(directory, name, cells, command="python made.py"):
    (directory / name).mkdir()
    (directory / name / "results.json").write_text(json.dumps({"meta": {"command": command}, "cells": cells}))


def comparison(gain):
    """Plain and HWA of three seeds; HWA is better by `gain` and a jitter."""
    return [
        cell(method, "both" if method == "hwa" else "equal_steps", seed, 0.8 + difference)
        for seed in range(3) for method, difference in (("plain", 0.0), ("hwa", gain + JITTER[seed]))
    ]


def claims(text):
    """First column -> the lines of the table that it begins."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| ") and (name := line.split("|")[1].strip()) in CLAIMS:
            found.setdefault(name, []).append(line)
    return found


def test_the_committed_page_is_that_of_the_committed_results():
    assert (_RESULTS / "README.md").read_text() == page(_RESULTS)


def test_the_committed_pages_files_exist():
    for part in (_RESULTS / "README.md").read_text().split("](")[1:]:
        assert (_RESULTS / part.split(")")[0]).is_file()


def test_every_directory_of_results_has_its_rows():
    missing = {path.parent.name for path in _RESULTS.glob("*/results.json")} - SOURCES.keys() - BESIDE.keys()
    assert not missing


def test_what_no_claim_reads_from_is_linked(tmp_path):
    assert "no claim" not in page(tmp_path)
    (tmp_path / "sweep_swamp_digits").mkdir()
    (tmp_path / "sweep_swamp_digits" / "report.md").touch()
    assert page(tmp_path).endswith(f"\n- [{BESIDE['sweep_swamp_digits']}](sweep_swamp_digits/report.md)\n")


def test_nothing_is_there_yet(tmp_path):
    found = claims(page(tmp_path))
    assert list(found) == list(CLAIMS) == [*(f"H{n}" for n in range(1, 11)), *(f"S{n}" for n in range(1, 8))]
    assert all(len(lines) == 1 and "not run" in lines[0] for lines in found.values())


def test_a_gain_is_reproduced_and_has_its_command_and_plot(tmp_path):
    write(tmp_path, "hwa_fashion_mnist", comparison(0.02), "python experiments/compare_hwa.py")
    (tmp_path / "hwa_fashion_mnist" / "differences.png").touch()
    text = page(tmp_path)
    (line,) = claims(text)["H1"]
    # Jitter of 0.1 points in three seeds: 4.303 * 0.1 / sqrt(3).
    assert "HWA - plain, equal steps: +2.00 ± 0.25 points" in line and "1 of 1" in line and "reproduced" in line
    assert "[plot](hwa_fashion_mnist/differences.png), [report](hwa_fashion_mnist/report.md)" in line
    assert "\n- `python experiments/compare_hwa.py`\n" in text
    assert "not run" in claims(text)["H5"][0]


def test_a_loss_contradicts_and_two_data_sets_have_a_row_each(tmp_path):
    write(tmp_path, "hwa_fashion_mnist", comparison(0.02))
    write(tmp_path, "hwa_mnist1d", comparison(-0.02))
    good, bad = claims(page(tmp_path))["H1"]
    assert "reproduced" in good and "MNIST-1D" in bad and "0 of 1, 1 contradicted" in bad and "| contradicted" in bad


def test_an_interval_that_contains_zero_reproduces_nothing(tmp_path):
    write(tmp_path, "hwa_digits", comparison(0.0))
    assert "not reproduced" in claims(page(tmp_path))["H1"][0]


def test_one_seed_is_not_judged(tmp_path):
    write(tmp_path, "hwa_digits", comparison(0.02)[:2])
    assert "not judged" in claims(page(tmp_path))["H1"][0] and verdict([]) == "not judged"


def test_cases_that_hurt_and_a_sweep(tmp_path):
    hurt = [
        {"case": case, "subject": "fashion_mnist_cnn", "seed": seed, "accuracy": {"latest": 0.9 + JITTER[seed], "average": 0.9 - loss},
         "pushes": [{"test_gap": loss + JITTER[seed]}]}
        for case, loss in (("healthy", -0.01), ("early", 0.0), ("early alone", 0.05), ("stale", 0.05)) for seed in range(3)
    ]
    windows = [{"window_size": size, "stride": 1, "accuracy": accuracy} for size, accuracy in ((1, 0.8), (2, 0.9))]
    swept = [
        {"num_replicas": 2, "sync_period": 10, "schedule": "constant", "seed": seed, "windows": windows, "diverged": None,
         "test": {"outer": 0.8, "base": 0.82 + JITTER[seed]}}
        for seed in range(2)
    ]
    write(tmp_path, "averaging_hurts", hurt)
    write(tmp_path, "sweep_digits", swept)
    found = {row.claim: row for row in rows(tmp_path)}
    # Alone 5 points, in HWA none.
    assert found["H5"].example.startswith("early, offline averaging alone: loss cost of averaging: +50.00 ± 2.48 10⁻³ nats")
    assert found["H5"].example.endswith("; alone - HWA shown: 2 of 2") and (found["H5"].count, found["H5"].verdict) == ("4 of 6", "partly")
    # The share of settings has no interval and is not counted.
    assert found["H6"].example == (
        "K=2, H=10: average over the default I - outer weights: +2.05 ± 0.64 points; settings as good as the best, 1 of 2, constant: 50.00 %"
    )
    assert (found["H6"].n, found["H6"].count) == ("2", "1 of 1")


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, ("3 of 3", "reproduced")), (2.0, ("2 of 3", "partly"))])
def test_an_exported_network(tmp_path, seconds, expected):
    (tmp_path / "sparse_export").mkdir()
    facts = {"model": {"name": "mlp"}, "config": {"data": {"name": "digits"}}, "sparsity": 0.98}
    (tmp_path / "sparse_export" / "mlp.report.json").write_text(json.dumps({
        "facts": facts, "bytes": {"sparse_file": 10, "dense_file": 100}, "flops": {"sparse": 2, "dense": 100},
        "latency": [{"batch_size": 1, "seconds": {"predict": seconds, "dense": 1.0}}],
    }))
    (row,) = rows(tmp_path)
    assert row.claim == "S7" and "file 0.10, FLOPs 0.02, time at batch 1" in row.example and (row.count, row.verdict) == expected


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, "hwa_digits", [])
    (tmp_path / "hwa_digits" / "results.json").write_text("{")
    with pytest.raises(UserError, match="hwa_digits/results.json: cannot be read .*restore the file"):
        write_page(tmp_path)
    assert not (tmp_path / "README.md").exists()
    with pytest.raises(UserError, match="--results=.*/nowhere: is no directory"):
        page(tmp_path / "nowhere")
