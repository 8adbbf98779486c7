"""A training's programs compiled for other devices: for CPU devices here, and for TPUs where their compiler is installed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import pytest

from hwa_jax import UserError
from hwa_jax.report.compiled import add_to_report, report
from hwa_jax.training import absent_devices
from hwa_jax.training.ahead_of_time import CompiledProgram, compile_programs
from programs import ROOT
from pruning_runs import pruning_setup
from training_runs import small_setup


def by_name(setup, devices):
    return {program.name: program for program in compile_programs(setup, devices)}


def test_what_a_step_of_hwa_does_on_four_devices():
    setup = small_setup({"hwa.num_replicas": 4, "num_devices": 4, "model.norm": "batch"})
    programs = by_name(setup, jax.devices()[4:])
    assert list(programs) == ["step", "50 steps", "batches of an epoch", "evaluation of all", "statistics of all", "mean of all"]
    for name in ("step", "50 steps"):
        assert (programs[name].always, programs[name].sometimes) == ((), ("all-reduce",))
    # A replica's state, and all training images, lie on each device.
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(setup.initial_state())) / 4
    assert programs["step"].argument_bytes >= state + setup.train.images.nbytes
    assert programs["50 steps"].argument_bytes == programs["step"].argument_bytes and programs["step"].temporary_bytes > 0


def test_particles_of_swamp_never_communicate():
    programs = by_name(pruning_setup({"num_devices": 2}), jax.devices()[2:])
    assert list(programs)[-2:] == ["collection by SWA", "pruning"]
    for name in ("step", "50 steps", "batches of an epoch", "collection by SWA", "pruning"):
        assert programs[name].always == programs[name].sometimes == (), name
    assert programs["mean of all"].always == ("all-reduce",)


def test_what_is_no_name_of_devices():
    for name in ("v5e", "v5e:0x2", "v5e:2x2x2x2", "h100:four"):
        with pytest.raises(UserError, match=f"^--topology={name}: give kind:size"):
            absent_devices.devices(name)
    with pytest.raises(UserError, match="^--topology=v4:2x2x1: .* two devices for each chip of v4"):
        absent_devices.devices("v4:2x2x1")


def test_a_report_of_all_that_was_compiled(tmp_path):
    config = small_setup().config
    first, second = (CompiledProgram("step", size, 0, ("all-reduce", "all-reduce"), ()) for size in (2_000_000, 3_000_000))
    for topology, program in (("v5e:2x2", first), ("h100:4", first), ("v5e:2x2", second)):
        path = add_to_report(tmp_path / "report", config, topology, "a kind", [program], f"command for {topology}")
    text = path.read_text()
    # The same training for the same devices is replaced.
    assert text.count("## HWA of") == 2 and [text.count(f" {size} MB |") for size in (2, 3)] == [1, 1]
    assert text.count("2 all-reduce") == 2 and "command for h100:4" in text


def test_the_committed_report_is_that_of_its_cells():
    directory = ROOT / "results" / "compiled_ahead"
    cells = [json.loads(path.read_text()) for path in sorted(directory.glob("cells/*.json"))]
    assert cells and (directory / "report.md").read_text() == report(cells)


LIBRARY = Path(os.environ.get("TPU_LIBRARY_PATH", ROOT / "build" / "tpu" / "libtpu" / "libtpu.so"))
for_tpus = pytest.mark.skipif(
    not LIBRARY.is_file() and find_spec("libtpu") is None, reason="the compiler for TPUs is not installed: make tpu-compiler"
)


def compile_ahead(*arguments):
    """A process of its own: this one has its devices."""
    library = {"TPU_LIBRARY_PATH": str(LIBRARY)} if LIBRARY.is_file() else {}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", **library}
    command = [sys.executable, ROOT / "experiments" / "compile_ahead.py", *arguments, "--config.model.name=mlp"]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


@for_tpus
def test_hwa_and_swamp_compile_for_tpus(tmp_path):
    hwa = compile_ahead("--config=configs/hwa_digits.py", "--topology=v5e:2x2", "--config.hwa.num_replicas=4", f"--output={tmp_path}")
    swamp = compile_ahead("--config=configs/swamp_digits.py", "--topology=v5e:1x1", f"--output={tmp_path}")
    assert (hwa.returncode, swamp.returncode) == (0, 0), (hwa.stderr, swamp.stderr)
    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "cells").iterdir()}
    assert {cell["device_kind"] for cell in cells.values()} == {"TPU v5 lite"} and len(cells) == 2
    step = cells["hwa_of_mlp_k4_float32_on_v5e_2x2"]["programs"][0]
    assert (step["name"], step["always"], step["sometimes"]) == ("step", [], ["all-reduce"])
    report = (tmp_path / "report.md").read_text()
    assert "## HWA of mlp, K = 4, float32, on v5e:2x2 (TPU v5 lite)" in report and "## SWAMP of mlp, N = 4" in report


@for_tpus
def test_a_slice_that_libtpu_does_not_know():
    ended = compile_ahead("--config=configs/hwa_digits.py", "--topology=v5e:3x3")
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1].startswith("error: --topology=v5e:3x3: INVALID_ARGUMENT")

