"""The Makefile and .ci/run, with stand-ins for Python, apt-get and make: nothing is installed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Writes its arguments to calls.txt; `-m venv` copies the stand-in to where the interpreter will be.
PYTHON = """#!/bin/sh
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
case "$*" in
  "-c import sys, pip"*) ;;
  *) echo "$*" >> calls.txt ;;
esac
"""
VENV = "-m venv --clear .venv"
INSTALL = "-m pip install -qq --disable-pip-version-check -c constraints.txt -e ."
INSTALL_TPU = "-m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target build/tpu libtpu"
TEST = "-m pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder"


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path):
    """A folder with the files that the targets depend on, and a stand-in interpreter."""
    for name in ("Makefile", "setup.py", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    script(tmp_path / "python", PYTHON)
    return tmp_path


def make(clone, *arguments, python="./python"):
    # An outer make would hand its flags down.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    environment["PYTHON"] = python
    return subprocess.run(
        ["make", *arguments], cwd=clone, env=environment, capture_output=True, text=True
    )


def calls(clone):
    """The interpreter's calls since the last look."""
    path = clone / "calls.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def touch_later(path):
    later = (path.parent / ".venv" / "base.stamp").stat().st_mtime + 10
    os.utime(path, (later, later))


def test_make_alone_lists_every_target_and_does_nothing_else(clone):
    result = make(clone)
    phony = re.search(r"^\.PHONY: (.*)$", (clone / "Makefile").read_text(), re.MULTILINE)
    listed = [line.split()[1] for line in result.stdout.splitlines()]
    assert listed == phony.group(1).split()
    assert {"venv", "demo", "demo-swamp", "smoke", "test", "test-all", "faults", "bench", "conv-lowerings", "onednn", "tpu-compiler", "docs", "clean"} <= set(listed)
    assert all(len(line.split()) > 3 for line in result.stdout.splitlines())
    assert result.stdout == make(clone, "help").stdout
    assert calls(clone) == []


def test_each_target_starts_from_an_empty_clone(clone):
    expected = {
        "venv": [VENV, INSTALL],
        "test": [VENV, INSTALL + "[dev]", TEST],
        "test-all": [VENV, INSTALL + "[dev]", TEST + " -m "],
        "docs": [VENV, INSTALL + "[docs]", "-m sphinx -W --keep-going -q docs build/docs"],
        "demo": [
            VENV,
            INSTALL,
            "experiments/compare_hwa.py --config=configs/compare_hwa_digits.py --workdir=runs/demo",
        ],
        "demo-swamp": [VENV, INSTALL, "experiments/train_swamp.py --config=configs/swamp_digits.py --workdir=runs/demo-swamp"],
        "smoke": [VENV, INSTALL, "experiments/smoke.py"],
        "faults": [VENV, INSTALL + "[dev]", TEST + " -m  tests/faults tests/test_lost_replicas.py tests/test_processes.py tests/test_streamed_training.py tests/test_swamp_processes.py tests/test_swamp_resume.py"],
        "bench": [VENV, INSTALL + "[bench]", "benchmarks/run.py"],
        "conv-lowerings": [VENV, INSTALL, "benchmarks/conv_lowerings.py"],
        "onednn": [VENV, INSTALL + "[onednn]", "-c from hwa_jax import onednn; onednn.main()"],
        "tpu-compiler": [VENV, INSTALL, INSTALL_TPU],
    }
    for target, commands in expected.items():
        result = make(clone, target)
        assert (result.returncode, result.stderr) == (0, "")
        assert calls(clone) == commands
        assert make(clone, "clean").returncode == 0
        assert not (clone / ".venv").exists()


def test_installs_again_only_after_a_change(clone):
    make(clone, "venv")
    assert calls(clone) == [VENV, INSTALL]
    make(clone, "venv")
    assert calls(clone) == []
    make(clone, "test")
    assert calls(clone) == [INSTALL + "[dev]", TEST]
    make(clone, "test")
    assert calls(clone) == [TEST]
    touch_later(clone / "constraints.txt")
    make(clone, "venv")
    assert calls(clone) == [INSTALL]


def test_failed_installation_is_tried_again(clone):
    failing = PYTHON + 'case "$*" in *"pip install"*) [ -e network ] ;; esac\n'
    script(clone / "python", failing)
    assert make(clone, "venv").returncode != 0
    assert calls(clone) == [VENV, INSTALL]
    (clone / "network").touch()
    assert make(clone, "venv").returncode == 0
    assert calls(clone) == [INSTALL]


def test_unusable_environment_is_made_anew(clone):
    (clone / ".venv" / "bin").mkdir(parents=True)
    script(clone / ".venv" / "bin" / "python", "#!/bin/sh\nexit 1\n")
    assert make(clone, "venv").returncode == 0
    assert calls(clone) == [VENV, INSTALL]


@pytest.mark.parametrize("python", ["./old", "./missing"])
def test_old_or_missing_python_is_one_line(clone, python):
    script(clone / "old", "#!/bin/sh\nexit 1\n")
    result = make(clone, "demo", python=python)
    errors = [line for line in result.stderr.splitlines() if not line.startswith("make:")]
    assert errors == [f"error: PYTHON={python} is not Python 3.11 or newer: make PYTHON=python3.12"]
    assert result.returncode == 2
    assert not (clone / ".venv").exists()


def test_clean_keeps_results(clone):
    written = ("runs/demo/table.md", "runs/demo-swamp/results.json", "runs/demo-swamp.compiled/a", "hwa_jax/__pycache__/a.pyc")
    for path in ("runs/mine/table.md", *written):
        (clone / path).parent.mkdir(parents=True)
        (clone / path).touch()
    assert make(clone, "clean").returncode == 0
    assert (clone / "runs/mine/table.md").exists()
    assert not any((clone / path).parent.exists() for path in written)


@pytest.mark.parametrize("tests_pass", [True, False])
@pytest.mark.parametrize("apt_works", [True, False])
def test_ci_runs_the_tests_even_without_the_data_set(tmp_path, apt_works, tests_pass):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    script(stand_ins / "id", "#!/bin/sh\necho 0\n")
    script(stand_ins / "dpkg", "#!/bin/sh\nexit 1\n")
    script(stand_ins / "apt-get", f"#!/bin/sh\necho apt $*\nexit {int(not apt_works)}\n")
    script(stand_ins / "make", f"#!/bin/sh\necho make $*\nexit {int(not tests_pass)}\n")
    result = subprocess.run(
        ["bash", ".ci/run"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{stand_ins}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    lines = result.stdout.splitlines()
    assert lines[0] == "apt update -qq"
    assert lines[-1] == "make test"
    assert ("apt install -y -qq dataset-fashion-mnist" in lines) == apt_works
    assert ("warning: dataset-fashion-mnist" in result.stderr) == (not apt_works)
    assert (result.returncode == 0) == tests_pass
