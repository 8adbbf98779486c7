"""The README's Python runs, its files exist, and its numbers are those of results/."""

import json
import re
from pathlib import Path

import pytest

from hwa_jax.report.comparison_tables import summary_table

_ROOT = Path(__file__).resolve().parents[1]
_README = (_ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", _README, re.DOTALL))
def test_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    # The snippet regresses on the sum of eight inputs, so the weights it ends with are ones.
    assert abs(names["hwa_weights"]["kernel"] - 1).max() < 0.05


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:experiments|configs)/\w+\.py", _README))))
def test_named_files_exist(path):
    assert (_ROOT / path).is_file()


def test_make_targets_exist():
    makefile = (_ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", _README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_results_table_is_that_of_the_committed_cells():
    cells = []
    for path in sorted((_ROOT / "results" / "hwa_fashion_mnist" / "cells").glob("*.json")):
        cells += json.loads(path.read_text())
    # Without the studies of other periods and training sizes.
    main = [cell for cell in cells if cell["num_train"] == 10_000 and cell["sync_period"] in (None, 100)]
    shown = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", _README, re.DOTALL)[1]
    assert summary_table(main) in shown
