"""The program of `make bench`: cells, their files, resuming, the time limit, the report. Nothing is timed here."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
CELL = ("--rows=particles", "--models=mlp", "--particles=1", "--repeats=1")

sys.path.append(str(BENCHMARKS))  # where the program finds its modules
report = importlib.import_module("report")


def bench(output, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(
        [sys.executable, BENCHMARKS / "run.py", f"--output={output}", *arguments],
        env=environment, capture_output=True, text=True, cwd=output,
    )


def result(**parts):
    """A cell of particles as its file says it."""
    cell = {"row": "particles", "model": parts.pop("model", "cnn_s"), "num_particles": parts.pop("num_particles", 4)}
    environment = {"platform": parts.pop("platform", "cpu"), "xla_flags": "", "git_commit": None, "date": "2026-01-01", "num_devices": 1}
    environment |= dict.fromkeys(("cpu_model", "cpu_cores", "device_kind", "python", "jax", "jaxlib", "flax", "optax", "numpy", "torch"), "x")
    return {"cell": cell, "ratios": {}, "figures": {}, "not_run": {}, "environment": environment, "busy_cores_before": 0.0, **parts}


def ratio(value):
    return {"ratio": value, "low": value, "high": value}


def goal_line(results, text):
    lines = report.text(results, dict.fromkeys((goal.row for goal in report.GOALS), Row)).splitlines()
    return next(line for line in lines if line.startswith(f"| {text}"))


class Row:
    TITLE, NOTE = "title", "note"


def test_a_cell_is_measured_once_and_reported(tmp_path):
    first = bench(tmp_path, *CELL)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "cells" / "particles-mlp-1.json"
    cell = json.loads(path.read_text())
    log = (tmp_path / "scratch" / "particles-mlp-1.log").read_text()
    assert cell["finished"], log
    # PyTorch is an extra of the benchmarks: its sides are measured, or said not to be.
    names = {"N × single", "N × lax", "naive vmap", "torch eager", "torch.compile", "torch.func.vmap"}
    assert names == (cell["ratios"].keys() | cell["not_run"].keys()) - {"best PyTorch"}
    assert {"N × single", "N × lax", "naive vmap"} <= cell["ratios"].keys()
    single = cell["ratios"]["N × single"]
    assert 0 < single["low"] <= single["ratio"] <= single["high"]
    # The weights of the MLP, their momentum and the gradients are float32.
    assert cell["figures"]["step memory by the compiler, MB"] > 2 * 4 * 266_610 / 1e6
    shown = (tmp_path / "report.md").read_text()
    assert re.search(r"^\| mlp +\| 1 +\|", shown, re.MULTILINE)
    before = path.stat().st_mtime_ns
    second = bench(tmp_path, *CELL)
    assert "1 cells, 1 finished before" in second.stdout
    assert path.stat().st_mtime_ns == before
    assert (tmp_path / "report.md").read_text() == shown


def test_a_cell_over_its_limit_is_not_run_and_stays_so(tmp_path):
    assert bench(tmp_path, *CELL, "--limit=0.1").returncode == 0
    cell = json.loads((tmp_path / "cells" / "particles-mlp-1.json").read_text())
    assert cell["finished"] and cell["not_run"] == {"the rest": "over its limit of 0 s"}
    assert "not run: over its limit" in (tmp_path / "report.md").read_text()
    assert "1 finished before" in bench(tmp_path, *CELL).stdout


def test_a_cell_that_was_cut_off_is_measured_again(tmp_path):
    (tmp_path / "cells").mkdir()
    unfinished = {key: value for key, value in result(model="mlp", num_particles=1).items() if key != "busy_cores_before"}
    (tmp_path / "cells" / "particles-mlp-1.json").write_text(json.dumps(unfinished))
    assert "1 cells, 0 finished before" in bench(tmp_path, *CELL, "--limit=0.1").stdout


def test_unknown_rows_are_refused(tmp_path):
    ended = bench(tmp_path, "--rows=particle")
    assert ended.returncode == 2 and "'particle': give some of particles, layers" in ended.stderr


def test_goals_say_whether_all_their_cells_reach_them():
    text = "ours / PyTorch best, CNN-S and ResNet-20"
    fast = result(ratios={"best PyTorch": ratio(0.5)})
    slow = result(model="resnet20", ratios={"best PyTorch": ratio(2.0)})
    fast_too = result(model="resnet20", ratios={"best PyTorch": ratio(1.0)})
    assert "cnn_s 4: 0.500 " in goal_line([fast], text) and "| so far " in goal_line([fast], text)
    assert "| yes " in goal_line([fast, fast_too], text)
    assert "cnn_s 4: 0.500; resnet20 4: 2.00" in goal_line([fast, slow], text) and "| no " in goal_line([fast, slow], text)
    # Another N, another device and a side that is missing do not reach a goal.
    assert "not run" in goal_line([result(num_particles=8, ratios={"best PyTorch": ratio(0.5)})], text)
    assert "not run" in goal_line([result(platform="gpu", ratios={"best PyTorch": ratio(0.5)})], text)
    assert "cnn_s 4: not run" in goal_line([result(not_run={"best PyTorch": "reason"})], text)


def test_more_is_better_where_a_goal_says_so():
    cell = {"row": "roofline", "model": "resnet20", "num_particles": 1}
    for share, reached in ((0.4, "no"), (0.5, "yes")):
        results = [{**result(figures={"share of peak": share}), "cell": cell}]
        assert f"| {reached} " in goal_line(results, "share of peak")


def test_what_was_not_run_says_why_and_what_does_not_apply_is_a_dash():
    measured = result(model="mlp", ratios={"naive vmap": ratio(1234.5)}, figures={"compile, s": 0.01234})
    missing = result(not_run={"naive vmap": "one call took over 60 s"}, busy_cores_before=1.5)
    shown = report.text([measured, missing], {"particles": Row, **dict.fromkeys((goal.row for goal in report.GOALS[3:]), Row)})
    rows = {line.split("|")[1].strip(): [part.strip() for part in line.split("|")[2:-1]] for line in shown.splitlines() if line.startswith("|")}
    assert rows["model"] == ["num particles", "naive vmap", "compile, s"]
    assert rows["mlp"] == ["4", "1,234 (1,234 to 1,234)", "0.0123"]
    assert rows["cnn_s"] == ["4", "not run", "–"]
    assert "- cnn_s 4, naive vmap: not run: one call took over 60 s" in shown
    assert "not idle before 1 of 2 cells" in shown


@pytest.mark.parametrize(("layer", "shape"), [("dense", "3x5x4"), ("batch_norm", "3x4x4x2")])
def test_layers_of_particles_have_the_gradients_of_one(layer, shape):
    layers = importlib.import_module("layers")
    gradients, arguments = layers._layer(layer, [int(size) for size in shape.split("x")])
    stacked = jax.vmap(gradients)(*(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), argument) for argument in arguments))
    for factor, number in ((1, 0), (2, 1)):
        one = gradients(*(jax.tree.map(lambda leaf: factor * leaf, argument) for argument in arguments))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a[number], b, rtol=1e-5, atol=1e-5), stacked, one)
        (params, inputs), _ = one
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, arguments[0]) and inputs.shape == arguments[2].shape


def test_examples():
    files = [BENCHMARKS / f"{name}.py" for name in ("timing", "report", "run", "roofline")]
    ended = subprocess.run([sys.executable, "-m", "doctest", *files], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("name", ["mlp", "cnn_s", "resnet20", "wrn-16-1", "wrn-16-4", "vgg16"])
def test_networks_of_both_sides_have_the_same_weights(name):
    pytest.importorskip("torch", reason="an extra of the benchmarks")
    ours, theirs = importlib.import_module("jax_step"), importlib.import_module("torch_models")
    params, batch_stats = jax.eval_shape(ours.functional_model(name).init, jax.random.key(0))
    network = theirs.create(name, num_classes=10, image_shape=ours.MODELS[name][0])
    assert sorted(p.numel() for p in network.parameters()) == sorted(leaf.size for leaf in jax.tree.leaves(params))
    running = [buffer for key, buffer in network.named_buffers() if "running" in key]
    assert sorted(b.numel() for b in running) == sorted(leaf.size for leaf in jax.tree.leaves(batch_stats))
