"""The notebooks: their form, and their code from top to bottom at a small size."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from programs import ROOT
from training_runs import compilation_cache_dir  # noqa: F401

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# nbformat 4.5: what a code and a markdown cell consist of.
KEYS = {"code": {"cell_type", "id", "metadata", "source", "execution_count", "outputs"}, "markdown": {"cell_type", "id", "metadata", "source"}}
# Plots are drawn without IPython, which would show them.
PROGRAM = """
import json, pathlib, sys
names = {}
for cell in json.loads(pathlib.Path(sys.argv[1]).read_text())["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
plots = [names["plt"].figure(number).axes[0] for number in names["plt"].get_fignums()]
print(json.dumps({
    "results": names["results"], "lines": [{line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in plots],
    "exported": float((names["predict"](names["test"].images).argmax(-1) == names["test"].labels).mean()),
}))
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


def executed(name, directory, compiled):
    """What the notebook made at its reduced size: results, the plots' lines by label, accuracy of the exported file."""
    environment = {
        **os.environ, "HWA_JAX_NOTEBOOK": "small", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT), "TMPDIR": str(directory), "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(compiled), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, ROOT / "notebooks" / name], env=environment, cwd=directory, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_hwa_from_top_to_bottom(tmp_path, compilation_cache_dir):  # noqa: F811
    made = executed("hwa_colab.ipynb", tmp_path, compilation_cache_dir)
    final, (curves, windows) = made["results"]["final"], made["lines"]
    assert final["hwa"]["test"]["accuracy"] > 0.5
    assert made["exported"] == pytest.approx(final["hwa"]["test"]["accuracy"], abs=1e-6)
    # Five epochs, each with an average; the curve ends where the results do.
    assert curves.keys() == {"inner", "outer", "hwa"} and [x for x, _ in curves["hwa"]] == [1, 2, 3, 4, 5]
    assert curves["hwa"][-1][1] == pytest.approx(100 * final["hwa"]["validation"]["accuracy"])
    # Five averages are kept: I = 1 is the last outer average, I = 5 is all of them, which is HWA with I = 10.
    (by_size,) = windows.values()
    assert [x for x, _ in by_size] == [1, 2, 5]
    assert by_size[0][1] == pytest.approx(curves["outer"][-1][1]) and by_size[2][1] == pytest.approx(curves["hwa"][-1][1])


def test_swamp_from_top_to_bottom(tmp_path, compilation_cache_dir):  # noqa: F811
    made = executed("swamp_colab.ipynb", tmp_path, compilation_cache_dir)
    (accuracies, layers), accuracy = made["lines"], made["results"]["cycles"][-1]["evaluation"]["average"]["test"]["accuracy"]
    assert accuracy > 0.5 and made["exported"] == pytest.approx(accuracy, abs=1e-6)
    # Half of the weights go after each cycle, until more than 70 % are gone.
    left = pytest.approx([100, 50, 25], abs=0.01)
    assert accuracies.keys() == {"average", "particle_0", "particle_1"} and len(layers) == 3
    for line in [*accuracies.values(), *layers.values()]:
        assert [x for x, _ in line] == left
    assert accuracies["average"][-1][1] == pytest.approx(100 * accuracy)
    for line in layers.values():
        assert 100 == line[0][1] > line[1][1] > line[2][1] > 0


INSTALL = {"".join(json.loads(path.read_text())["cells"][2]["source"]) for path in NOTEBOOKS}


@pytest.fixture
def install(monkeypatch):
    """Runs the cell that installs, on a machine without hwa_jax but with these commands and modules; how pip was called, and how it ended."""

    def run(source, there=(), code=0):
        calls = []

        def pip(command, **_):
            calls.append(command)
            return subprocess.CompletedProcess(command, code, "", "pip: no such address")

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
            patch.setattr(shutil, "which", lambda name: name if name in there else None)
            patch.setattr(subprocess, "run", pip)
            (cell,) = INSTALL
            exec(re.sub("^SOURCE = .*$", f"SOURCE = {source!r}", cell, flags=re.MULTILINE) if source else cell, {})
        return calls, str(ended.value)

    return run


@pytest.mark.parametrize(("there", "jax_here"), [("nvidia-smi", "jax[cuda12]"), ("libtpu", "jax[tpu]"), ("", "jax")])
def test_jax_is_installed_for_the_accelerator(install, there, jax_here):
    # This process has imported JAX, as Colab's has NumPy.
    calls, message = install("..", there=[there])
    assert calls == [[sys.executable, "-m", "pip", "install", "-q", "..", jax_here]] and "Restart" in message


def test_an_installation_that_fails_says_why(install):
    assert install("..", code=1)[1] == "pip: no such address"


def test_the_address_has_to_be_filled_in(install):
    calls, message = install(None)
    assert not calls and "SOURCE" in message
