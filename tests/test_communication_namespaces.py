"""The measurement of communication: its prediction by hand, its report, and what it says where it cannot run. Nothing is timed here."""

import importlib
import json
import sys

import pytest

from programs import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # where the program finds its modules
program = importlib.import_module("communication_namespaces")
RESULTS = ROOT / "results" / "communication"
FACTS = {"bytes": 202_440, "plain_seconds": 0.002, "unlimited_seconds": {"1": 0.002, "10": 0.004}}


@pytest.mark.parametrize(("cell", "expected"), [
    # 2 (α + S / 2B) with S / B = 202,440 · 8 / 10⁷ · 1514 / 1448 = 0.16933 s, divided by H = 10, on top of 2 ms; α as on the link without a limit.
    ({"bits_per_second": 1e7, "relay_seconds": 0.0, "sync_period": 10}, 0.002 + (0.004 + 0.169334) / 10),
    ({"bits_per_second": 1e8, "relay_seconds": 0.02, "sync_period": 1}, 0.002 + 2 * (0.001 + 2 * 0.02) + 0.0169334),
])
def test_predictions_by_hand(cell, expected):
    assert program.prediction(cell, FACTS)["predicted_seconds"] == pytest.approx(expected, rel=1e-4)


def test_the_report_counts_what_was_predicted():
    cells = [
        {"bits_per_second": 1e8, "relay_seconds": 0.02, "sync_period": 10, "measured_seconds": 0.010, "predicted_seconds": 0.011},
        {"bits_per_second": 1e7, "relay_seconds": 0.0, "sync_period": 1, "measured_seconds": 0.010, "predicted_seconds": 0.013},
    ]
    tcp = [cells[0] | {"congestion_control": "bbr", "restarts_after_pause": restarts, "pause_seconds": 1.0} for restarts in (False, True)]
    machine = {"cpu_model": "a processor", "cpu_cores": 2, "jax": "0.10", "python": "3.11", "git_commit": None}
    text = program.report({**FACTS, "cells": cells, "tcp": tcp, "environment": machine, "date": "2026-01-01", "busy_cores_before": 0.1})
    assert "Predicted within 20% of the measured step: 1 of 2 rows." in text
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if "Mbit/s |" in line]
    assert rows[0] == ["100 Mbit/s", "20 ms", "10", "10.00", "11.00", "1.10", "400 %", "450 %"]
    assert rows[1][:3] == ["10 Mbit/s", "0 ms", "1"] and rows[1][5] == "1.30"
    settings = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if "| bbr" in line]
    assert settings == [["bbr", "0", "1 s", "10.00", "11.00", "1.10"], ["bbr", "1", "1 s", "10.00", "11.00", "1.10"]]
    assert program.line(tcp[1]) == "100 Mbit/s, 20 ms, bbr, 1, 1 s, H = 10: 10.00 ms a step"


def test_without_the_rights_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(program, "missing", lambda: "needs root")
    monkeypatch.setattr(sys, "argv", ["communication_namespaces.py"])
    assert program.main() == 0
    assert capsys.readouterr().out == "not run: needs root\n"


def test_the_committed_report_is_that_of_the_committed_figures():
    result = json.loads((RESULTS / "results.json").read_text())
    assert (RESULTS / "report.md").read_text() == program.report(result)
    assert {(cell["bits_per_second"], cell["relay_seconds"], cell["sync_period"]) for cell in result["cells"]} >= {
        (rate, latency, period) for rate in (1e7, 1e8, 1e9) for latency in (0.0, 0.02) for period in (1, 10, 100)
    }
