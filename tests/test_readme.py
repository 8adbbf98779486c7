"""The README's Python runs, its files exist, and its numbers are those of results/."""

import json
import re
from pathlib import Path

import pytest

from hwa_jax.algorithms.hwa_comparison import read_cells
from hwa_jax.report import sparsity_tables
from hwa_jax.report.comparison_tables import summary_table

_ROOT = Path(__file__).resolve().parents[1]
_README = (_ROOT / "README.md").read_text()


def snippet_that_has(text, tmp_path, monkeypatch):
    """The names that a snippet of the README leaves behind."""
    [code] = [code for code in re.findall(r"```python\n(.*?)```", _README, re.DOTALL) if text in code]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    return names


def test_every_snippet_is_run_here():
    assert len(re.findall(r"```python\n", _README)) == 2


def test_online_average_runs(tmp_path, monkeypatch):
    names = snippet_that_has("online_average", tmp_path, monkeypatch)
    # It regresses on the sum of eight inputs, so the weights it ends with are ones.
    assert abs(names["hwa_weights"]["kernel"] - 1).max() < 0.05


def test_pruning_runs(tmp_path, monkeypatch):
    names = snippet_that_has("sparse_update", tmp_path, monkeypatch)
    # One of eight is left after three halvings: the input that matters, with its weight of 3.
    assert names["mask"]["kernel"].ravel().tolist() == [True] + 7 * [False]
    assert abs(names["w"]["kernel"][0, 0] - 3) < 0.2 and (names["w"]["kernel"][2:] == 0).sum() >= 5


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
        cells += read_cells(path)
    # Without the studies of other periods and training sizes.
    main = [cell for cell in cells if cell["num_train"] == 10_000 and cell["sync_period"] in (None, 100)]
    shown = re.search(r"<!-- results -->\n(.*?)<!-- /results -->", _README, re.DOTALL)[1]
    assert summary_table(main) in shown


def test_swamp_table_is_that_of_the_committed_cells():
    cells = [json.loads(path.read_text()) for path in sorted((_ROOT / "results" / "swamp_fashion_mnist" / "cells").glob("*.json"))]
    shown = re.search(r"<!-- swamp results -->\n(.*?)<!-- /swamp results -->", _README, re.DOTALL)[1]
    assert sparsity_tables.summary_table(cells) in shown
