"""The notebooks: their form, and their code from top to bottom at a small size."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest

from programs import ROOT
from training_runs import compilation_cache_dir  # noqa: F401

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# nbformat 4.5: what a code and a markdown cell consist of.
KEYS = {"code": {"cell_type", "id", "metadata", "source", "execution_count", "outputs"}, "markdown": {"cell_type", "id", "metadata", "source"}}
# What IPython prints of the figures is nothing here; the plots are drawn all the same.
PROGRAM = """
import json, pathlib, sys
names = {}
for cell in json.loads(pathlib.Path(sys.argv[1]).read_text())["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
figures = names["plt"].get_fignums()
drawn = [len(names["plt"].figure(number).axes[0].lines) for number in figures]
print(json.dumps({"final": names["results"]["final"], "lines": drawn, "predicted": len(names["predicted"])}))
"""


def test_both_are_there():
    assert [path.name for path in NOTEBOOKS] == ["hwa_colab.ipynb", "swamp_colab.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_form_is_that_of_nbformat_4_without_outputs(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5) and notebook.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.keys() == KEYS[cell["cell_type"]] and re.fullmatch(r"[\w-]{1,64}", cell["id"])
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))
    # Every piece of code is announced.
    kinds = [cell["cell_type"] for cell in cells]
    assert kinds == ["markdown"] + ["markdown", "code"] * (len(kinds) // 2)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path, tmp_path, compilation_cache_dir):  # noqa: F811
    environment = {
        **os.environ, "HWA_JAX_NOTEBOOK": "small", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache_dir),
    }
    ended = subprocess.run([sys.executable, "-c", PROGRAM, path], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    last = json.loads(ended.stdout.splitlines()[-1])
    is_swamp = path.stem.startswith("swamp")
    assert last["final"]["average" if is_swamp else "hwa"]["test"]["accuracy"] > 0.5
    assert last["lines"] == ([3, 3] if is_swamp else [3, 1]) and last["predicted"] == 8
