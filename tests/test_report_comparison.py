"""The comparison's files: complete, legible by machine and reader, whatever cells are missing."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from report_cells import cell, full_comparison, paired

from hwa_jax.report.comparison import write_comparison

META = {
    "description": "Synthetic cells.",
    "command": "python experiments/compare_hwa.py --config=c.py --workdir=DIR",
    "data": "none",
    "grid": {"rate": [0.1, math.inf]},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("comparison") / "new" / "directory"
    cells = full_comparison(seeds=5)
    path = write_comparison(cells, directory, title="Compared", meta=META)
    return cells, path


def test_every_image_in_the_report_exists_and_is_not_blank(written):
    _, path = written
    names = re.findall(r"!\[[^]]+\]\(([^)]+)\)", path.read_text())
    assert len(names) == len(set(names)) == 9
    assert {p.name for p in path.parent.iterdir()} == {*names, "report.md", "results.json"}
    for name in names:
        with Image.open(path.parent / name) as image:
            assert image.width > 700 and image.height > 400
            assert len(image.convert("RGB").getcolors(maxcolors=10**6)) > 50


def test_report_explains_itself(written):
    _, path = written
    text = path.read_text()
    for needed in (
        "# Compared", META["description"], META["command"], "**Equal steps**",
        "**Equal compute**", "seeds: 5 (0, 1, 2, 3, 4)", "hardware:", "jaxlib", "- data: none",
        '- grid: `{"rate": [0.1, null]}`', "Here K = 2, H = 90, I = 10.",
        "## SGD, constant learning rate", "## AdamW, cosine learning rate",
    ):  # fmt: skip
        assert needed in text, needed
    assert "Not run" not in text and "not described" not in text


def test_results_hold_cells_and_recomputable_summary(written):
    cells, path = written
    results = json.loads((path.parent / "results.json").read_text())
    assert list(results) == ["meta", "environment", "cells", "summary"]
    assert results["cells"] == cells
    assert results["meta"]["grid"] == {"rate": [0.1, None]}
    for section in results["summary"]:
        chosen = {
            (c["method"], c["comparison"], c["seed"]): c["test"]["accuracy"]
            for c in cells
            if (c["optimizer"], c["schedule"]) == (section["optimizer"], section["schedule"])
        }
        hwa = [r for r in section["rows"] if r["method"] == "hwa"]
        for row in hwa:
            plain = [chosen["plain", row["comparison"], s] for s in range(5)]
            ours = [chosen["hwa", "both", s] for s in range(5)]
            expected = np.mean(np.subtract(ours, plain))
            assert row["difference_to_plain"]["mean"] == pytest.approx(expected, rel=1e-9)
            assert row["verdict"] == "better"
        assert len(section["rows"]) == 16


def test_writing_again_replaces_every_file_by_the_same(tmp_path):
    cells = paired("hwa", [0.01, 0.02, 0.03])
    contents = []
    for _ in range(2):
        write_comparison(cells, tmp_path, title="Compared", meta=META)
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4


@pytest.mark.parametrize(
    "cells",
    [
        [cell()],
        [cell("hwa", "both")],
        [cell(curve=[]), cell("ema", curve=[])],
        [cell(curve=[{"step": s, "epoch": s, "accuracy": None, "nll": None} for s in (1, 20)])],
        [cell(), cell("ema", test={"accuracy": None, "nll": None, "ece": None})],
        [cell(), cell("my/method [1]|x", "both", compute_epochs=20.0)],
        [cell("hwa", "both", sync_period=h) for h in (1, 10, 90)] + [cell()],
        [cell(optimizer="sgd"), cell(optimizer="../../x")],
        [cell(schedule=f"s{i}", seed=i) for i in range(5)],
    ],
)
def test_incomplete_comparisons_are_written(cells, tmp_path):
    path = write_comparison(cells, tmp_path / "out", title="Few", meta={})
    assert path.read_text().startswith("# Few")
    json.loads((tmp_path / "out" / "results.json").read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_sweep_draws_every_variant_in_a_style_of_its_own(tmp_path, monkeypatch):
    import hwa_jax.report.comparison_plots as plots

    drawn = []
    monkeypatch.setattr(plots, "curves", lambda series, path, *_: drawn.extend(series) or path)
    cells = [cell("hwa", "equal_steps", sync_period=h) for h in (1, 10, 90)] + [cell()]
    text = write_comparison(cells, tmp_path, title="Sweep", meta={}).read_text()
    assert "H = 1 or 10 or 90, I" in text
    assert [s.label for s in drawn] == ["plain", "HWA (H=1)", "HWA (H=10)", "HWA (H=90)"]
    assert len({s.style % 8 for s in drawn}) == 4  # eight colours: none shared


def test_no_cells_are_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="cells is empty"):
        write_comparison([], tmp_path / "out", title="None", meta={})
    assert not list(tmp_path.iterdir())


def test_bad_cell_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="lacks"):
        write_comparison([{"method": "hwa"}], tmp_path / "out", title="Bad", meta={})
    assert not list(tmp_path.iterdir())


def test_equal_compute_curves_count_the_passes_of_all_replicas(tmp_path, monkeypatch):
    import hwa_jax.report.comparison_plots as plots

    drawn = {}
    monkeypatch.setattr(
        plots, "curves", lambda series, path, *_: drawn.update({path.stem: series}) or path
    )
    cells = [cell("plain", "equal_compute"), cell("hwa", "both")]
    write_comparison(cells, tmp_path, title="Scaled", meta={})
    last = {
        (stem[-7:], s.label): s.runs[0][0][-1] for stem, group in drawn.items() for s in group
    }
    assert last == {("l_steps", "HWA"): 20, ("compute", "plain"): 40, ("compute", "HWA"): 40}


def test_importing_the_report_does_not_load_matplotlib_or_rich():
    code = (
        "import sys, hwa_jax.report.comparison;"
        "print({'matplotlib', 'rich', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
