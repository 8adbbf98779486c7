"""The pages of docs/: their commands could be run, what they name exists, their Python runs, and the site builds."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from functools import reduce

import jax
import numpy as np
import pytest

from hwa_jax.algorithms import hwa_comparison
from hwa_jax.storage.safetensors import save_weights
from hwa_jax.training.config import default_config
from hwa_jax.training.predictor import description
from hwa_jax.training.setup import prepare
from own_images import write_folder
from programs import ROOT
from training_runs import set_fields

PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXT = {page.name: page.read_text() for page in PAGES}
COMMANDS = sorted({
    (page, line.strip()) for page, text in TEXT.items() for line in re.findall(r"^    (?:\w+=\S+ )*python .*$", text, re.MULTILINE)
})


def load_config(argument):
    path, _, variant = argument.partition(":")
    spec = importlib.util.spec_from_file_location("a_configuration", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def test_every_stage_is_a_page_with_commands():
    assert {"index.md", "api.md", "trial.md", "pilot.md", "scale.md", "cpu.md", "sparse.md", "retrain.md"} <= set(TEXT)
    assert {page for page, _ in COMMANDS} == {"trial.md", "pilot.md", "scale.md", "cpu.md", "scaling.md", "sparse.md", "retrain.md"}


@pytest.mark.parametrize("page", ["trial.md", "pilot.md", "scale.md", "sparse.md", "retrain.md"])
def test_a_stage_says_what_decides_and_how_long_it_takes(page):
    assert "## How long it takes" in TEXT[page]
    assert "## What decides" in TEXT[page] or "The check at each step" in TEXT[page]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_have_their_program_flags_and_fields(page, line):
    words = shlex.split(line)
    program, *arguments = words[words.index("python") + 1:]
    source = (ROOT / program).read_text()
    if "several_processes=True" in source or "run_study" in source:
        source += (ROOT / "hwa_jax/training/program.py").read_text()
    flags = dict(argument[2:].partition("=")[::2] for argument in arguments if argument.startswith("--"))
    config = load_config(flags["config"]) if "config" in flags else None
    for name, value in flags.items():
        if name.startswith("config."):
            *groups, field = name.split(".")[1:]
            assert field in reduce(lambda node, group: node[group], groups, config), name
        else:
            assert re.search(rf'DEFINE_\w+\(\s*"{name}"', source), name
    for word in arguments:
        assert word.startswith("--") or f'"{word}"' in source, word


@pytest.mark.parametrize("page", TEXT)
def test_named_files_fields_and_targets_exist(page):
    text = TEXT[page]
    for path in re.findall(r"(?:experiments|configs|hwa_jax)/[\w/]+\.py", text):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"\]\(([\w/]+\.md)\)", text):
        assert (ROOT / path).is_file() if path.startswith("results/") else path in TEXT, path
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    fields = default_config()
    for group, field in re.findall(r"`(hwa|data|optimizer|schedule|training)\.(\w+)`", text):
        assert field in fields[group], f"{group}.{field}"


def test_the_trial_can_be_run():
    hwa_comparison._validate(load_config("configs/trial.py"))


def test_tables_of_scaling_are_what_the_program_prints():
    shown = re.search(r"<!-- computed -->\n(.*?)<!-- /computed -->", TEXT["scaling.md"], re.DOTALL)[1]
    printed = subprocess.run([sys.executable, ROOT / "experiments" / "scaling.py"], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert shown == printed.stdout
    # K = 8, 1 Gbit/s, bfloat16: 14 · (0.05 s + 14 GB / 8 / 125 MB/s).
    assert f"{14 * (0.05 + 14e9 / 8 / 125e6):.1f}" == "196.7" and re.search(r"8 \| bfloat16 .* 196\.7 ", shown)


def test_every_module_of_the_reference_exists():
    modules = re.findall(r"automodule:: ([\w.]+)", TEXT["api.md"])
    assert "hwa_jax.online" in modules
    for module in modules:
        assert importlib.util.find_spec(module), module


@pytest.mark.parametrize(("page", "figure", "claim"), [
    ("trial.md", "+2.58 ± 1.32", "H10   | HWA - plain, equal steps "), ("trial.md", "+0.57 ± 0.56", "H10   | HWA - plain, equal compute "),
    ("trial.md", "+2.23 ± 0.74", "H10   | HWA - plain, equal steps "), ("trial.md", "+0.98 ± 0.70", "H10   | HWA - plain, equal compute "),
    ("trial.md", "+1.29 ± 0.89", "H10   | HWA - plain, equal steps "), ("trial.md", "+0.14 ± 0.43", "H10   | HWA - plain, equal compute "),
    ("trial.md", "0.99 ± 0.50", "H1    | HWA - offline window, equal compute "), ("trial.md", "-1.28 ± 0.79", "H1    | HWA - plain, equal compute "),
    ("pilot.md", "+1.94 ± 1.02", "H4    | HWA at H=1 (268 MB) - plain"), ("pilot.md", "+1.16 ± 0.72", "H4    | HWA at H=500 (537 kB) - plain"),
    ("pilot.md", "0.78 ± 0.45", "H4    | HWA at H=500 (537 kB) - HWA at H=1"), ("scale.md", "+1.16 ± 0.72", "H4    | HWA at H=500 (537 kB) - plain"),
])
def test_figures_are_those_of_the_report(page, figure, claim):
    report = (ROOT / "results" / "hwa_fashion_mnist" / "report.md").read_text()
    assert figure in TEXT[page]
    assert any(figure in line for line in report.splitlines() if f"| {claim}" in line)


def test_the_snippet_of_retraining_measures_a_deployed_model(tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", TEXT["retrain.md"], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "PICTURES")
    setup = prepare(set_fields(default_config(), {
        "data.name": "mine", "data.source": "folder", "data.data_dir": "PICTURES", "data.image_size": 32, "model.name": "mlp", "num_devices": 1,
        "training.batch_size": 10,
    }))
    # Weights that answer class 1, whatever they see.
    params, batch_stats = setup.model.init(jax.random.key(0))
    [last] = [name for name, layer in params.items() if layer["bias"].shape == (3,)]
    params[last] = {"kernel": np.zeros_like(params[last]["kernel"]), "bias": np.float32([0, 1, 0])}
    save_weights("deployed.safetensors", params, batch_stats, description(setup))
    names = {}
    exec(code, names)
    np.testing.assert_allclose(names["accuracy"], np.mean(setup.dataset.test.labels == 1), rtol=1e-6)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="make docs installs it")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path / "site")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    api = (tmp_path / "site" / "api.html").read_text()
    assert 'id="hwa_jax.online.online_average"' in api and 'id="hwa_jax.data.sources.load"' in api
    assert "HWA on Fashion-MNIST" in (tmp_path / "site" / "results" / "hwa_fashion_mnist" / "report.html").read_text()
