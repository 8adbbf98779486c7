"""One pruning over several processes: the masks and weights of one process, whatever N."""

import shutil

import numpy as np
import pytest

from hwa_jax.training.workdir import read_json
from process_runs import PRUNING_FIELDS, TRAIN_SWAMP, run, run_in_float64
from pruning_runs import cycle_weights, prune
from training_runs import compilation_cache_dir, compiled_once, rows  # noqa: F401


def assert_same_pruning(mine, theirs, rtol):
    """Masks, and weights relative to the largest of a leaf; what the gate chose; the log but for rounding."""
    metrics = [[read_json(path) for path in sorted((run / "cycles").glob("*/metrics.json"))] for run in (mine, theirs)]
    assert [m["solution"] for m in metrics[0]] == [m["solution"] for m in metrics[1]] and len(metrics[0]) >= 2
    for cycle, (found, expected) in enumerate(zip(*metrics)):
        for name in sorted({path.stem for path in (theirs / "cycles" / f"{cycle:03d}").glob("*.safetensors")}):
            (weights, mask), (others, other_mask) = (cycle_weights(run, cycle, name) for run in (mine, theirs))
            for leaf in mask:
                np.testing.assert_array_equal(mask[leaf], other_mask[leaf], err_msg=f"{cycle} {name} {leaf}")
            for leaf in weights:
                np.testing.assert_allclose(weights[leaf], others[leaf], rtol=0, atol=rtol * np.abs(others[leaf]).max(), err_msg=f"{cycle} {name} {leaf}")
        assert found["gate"]["particles"] == pytest.approx(expected["gate"]["particles"], rel=10 * rtol)
    assert [row["step"] for row in rows(mine)] == [row["step"] for row in rows(theirs)]
    for row, other in zip(rows(mine), rows(theirs)):
        assert row["loss"] == pytest.approx(other["loss"], rel=10 * rtol)


@pytest.fixture(scope="module")
def on_two_processes(compilation_cache_dir, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("processes") / "run"
    return directory, run(directory, 2, 2, program=TRAIN_SWAMP, compiled=compilation_cache_dir)


def test_two_processes_are_one_pruning(on_two_processes, compiled_once, tmp_path):  # noqa: F811
    directory, ends = on_two_processes
    # 4 and 2 · 8 steps, on two processes of two devices and on one of one.
    prune(tmp_path / "one", {**PRUNING_FIELDS, "num_devices": 1})
    assert_same_pruning(directory, tmp_path / "one", 1e-5)
    assert read_json(directory / "environment.json")["num_processes"] == 2
    assert sorted(path.name for path in directory.iterdir()) == sorted(path.name for path in (tmp_path / "one").iterdir())
    # Process 0 alone speaks.
    assert "weights:" in ends[0][1] and ends[1][1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("num_particles", ["(1, 3)", "(2, 4)"])
def test_any_number_of_particles(num_particles, compilation_cache_dir, compiled_once, tmp_path):  # noqa: F811
    # 1 and 3 are trained by both processes, 2 by one device of each.
    fields = {"swamp.num_particles": num_particles, "swamp.gate_fraction": 0.0, "swamp.averaging": "always"}
    run(tmp_path / "two", 2, 2, fields, program=TRAIN_SWAMP, compiled=compilation_cache_dir)
    run(tmp_path / "one", 1, 1, fields, program=TRAIN_SWAMP, compiled=compilation_cache_dir)
    for cycle in (0, 1):
        (weights, mask), (others, other_mask) = (cycle_weights(tmp_path / name, cycle) for name in ("two", "one"))
        for leaf, kept in mask.items():
            np.testing.assert_array_equal(kept, other_mask[leaf])
        for leaf, value in weights.items():
            np.testing.assert_allclose(value, others[leaf], rtol=0, atol=1e-5 * np.abs(others[leaf]).max(), err_msg=leaf)


@pytest.mark.slow
def test_cycles_in_float64(compilation_cache_dir, tmp_path):  # noqa: F811
    for name, layout in (("two", (2, 2)), ("one", (1, 1))):
        run_in_float64(tmp_path / name, *layout, {"swamp.prunable": ""}, program=TRAIN_SWAMP, compiled=compilation_cache_dir)
    assert {leaf.dtype for leaf in cycle_weights(tmp_path / "two", 0)[0].values()} == {np.dtype(np.float64)}
    assert_same_pruning(tmp_path / "two", tmp_path / "one", 1e-9)


@pytest.mark.slow
def test_one_process_continues_what_two_began(on_two_processes, compilation_cache_dir, compiled_once, tmp_path):  # noqa: F811
    shutil.copytree(on_two_processes[0], tmp_path / "run")
    further = {"swamp.target_sparsity": 0.55}
    [(_, _, stderr)] = run(tmp_path / "run", 1, 4, further, program=TRAIN_SWAMP, compiled=compilation_cache_dir)
    assert "under another num_processes" in stderr
    prune(tmp_path / "one", {**PRUNING_FIELDS, **further, "num_devices": 1})
    assert len(list((tmp_path / "run" / "cycles").iterdir())) == 3
    assert_same_pruning(tmp_path / "run", tmp_path / "one", 1e-5)
