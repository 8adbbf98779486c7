"""experiments/analyze.py on finished work directories of both trainings, and on what it cannot use."""

import json
import shutil

import numpy as np
import pytest

from hwa_jax.algorithms.stored_weights import open_weights
from hwa_jax.storage.sparse_weights import load_sparse_weights, save_sparse_weights
from pictures import decoded
from programs import call
from pruning_runs import prune
from training_runs import compilation_cache_dir, compiled_once, listing, train  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")
TINY = ("--positions=3", "--points=4", "--resolution=3", "--samples=2", "--iterations=3", "--examples=20")


@pytest.fixture(scope="module")
def hwa_run(tmp_path_factory):
    """18 steps, a push every 4 and one at the end, a window of 3; the last cycle is partial: 2 replicas that differ."""
    directory = tmp_path_factory.mktemp("hwa") / "run"
    train(directory)
    return directory


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """8 steps: two pushes, at the second of which the replicas have just been averaged."""
    directory = tmp_path_factory.mktemp("short") / "run"
    train(directory, {"training.duration": "8 steps"})
    return directory


@pytest.fixture(scope="module")
def swamp_run(tmp_path_factory):
    """Three cycles of three particles; 0, 36 and 59 % pruned."""
    directory = tmp_path_factory.mktemp("swamp") / "run"
    prune(directory, {"swamp.num_particles": 3})
    return directory


def analyze(workdir, output, *arguments):
    return call("analyze.py", f"--workdir={workdir}", f"--output={output}", *TINY, *arguments)


@pytest.mark.parametrize("kind", ["hwa", "swamp"])
def test_a_report_of_all_instruments(kind, hwa_run, swamp_run, tmp_path):
    workdir, output = {"hwa": hwa_run, "swamp": swamp_run}[kind], tmp_path / "made" / "output"
    before = listing(workdir)
    ended = analyze(workdir, output)
    assert (ended.code, ended.stderr.strip()) == (0, "")
    assert listing(workdir) == before  # nothing is written there
    pictures = {"segments", "chain", "hull", "plane", "random", "curvature"}
    assert {path.name for path in output.iterdir()} == {"report.md", "results.json", *(f"{name}.png" for name in pictures)}
    report = (output / "report.md").read_text()
    for name in pictures:
        assert f"]({name}.png)" in report
        assert 0.01 < (decoded(output / f"{name}.png") < 250).any(axis=2).mean() < 0.9
    results = json.loads((output / "results.json").read_text())
    names = {"hwa": {"step 12", "outer", "hwa", "inner 0", "inner 1"}, "swamp": {"particle 0", "particle 1", "particle 2", "average"}}[kind]
    assert set(results["curvature"]) == names
    assert len(results["connectivity"]["compared"]) == len(names) * (len(names) - 1) // 2
    assert np.shape(results["landscape"]["plane"]["loss"]) == (3, 3)
    assert results["splits"]["curvature"] == "train, 20 examples" and results["splits"]["hull"] == "validation, 20 examples"


def test_the_weights_of_a_work_directory_are_what_it_says(hwa_run, swamp_run):
    subject = open_weights(hwa_run)
    assert list(subject.corners) == ["step 12", "step 16", "step 18"] and subject.mask is None
    for name in ("hwa", "outer"):
        stored = json.loads((hwa_run / "results.json").read_text())["final"][name]["validation"]
        assert subject.setup.evaluate(subject.compared[name], ["validation"])["validation"] == pytest.approx(stored, rel=1e-5)
    subject = open_weights(swamp_run, cycle=1)
    metrics = json.loads((swamp_run / "cycles" / "001" / "metrics.json").read_text())["evaluation"]
    for name in ("average", "particle 1"):
        stored = metrics[name.replace(" ", "_")]["validation"]
        assert subject.setup.evaluate(subject.compared[name], ["validation"])["validation"] == pytest.approx(stored, rel=1e-5)
    assert list(subject.successive) == ["cycle 0", "cycle 1", "cycle 2"] and subject.masks_differ
    assert list(subject.plane) == ["particle 0", "particle 1", "particle 2"]


def test_the_last_cycle_unless_another_one_is_asked_for(swamp_run):
    last, first = open_weights(swamp_run), open_weights(swamp_run, cycle=0)
    assert "cycle 2 of 2, 59.0% pruned" in last.title and "cycle 0 of 2, 0.0% pruned" in first.title
    assert all((leaf["kernel"] != 0).all() for leaf in first.compared["average"].params.values())


def test_replicas_that_have_just_been_averaged_are_left_out(short_run):
    assert list(open_weights(short_run).compared) == ["step 4", "outer", "hwa"]


@pytest.mark.parametrize("arguments, message", [
    (["--what=curvature,flatness"], "--what=curvature,flatness: give some of connectivity, hull, landscape, curvature"),
    (["--cycle=0"], "--cycle=0: belongs to a work directory of experiments/train_swamp.py"),
    (["--resolution=1"], "--resolution"),
    (["--split=all"], "--split"),
])
def test_flags_that_do_not_fit(hwa_run, tmp_path, arguments, message):
    ended = analyze(hwa_run, tmp_path / "output", *arguments)
    assert ended.code == 2 and ended.stderr.startswith("error: ") and message in ended.stderr
    assert ended.stderr.count("\n") == 1 and not (tmp_path / "output").exists()


def test_a_cycle_that_is_not_there(swamp_run, tmp_path):
    ended = analyze(swamp_run, tmp_path / "output", "--cycle=3")
    assert (ended.code, ended.stderr) == (2, "error: --cycle=3: finished are 0, 1, 2: give one of them\n")


def test_an_output_that_is_a_file(hwa_run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        ended = analyze(hwa_run, output)
        assert ended.code == 2 and "is not a directory that can be written to" in ended.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_directories_without_weights(hwa_run, swamp_run, tmp_path):
    assert "has no config.json" in analyze(tmp_path, tmp_path / "output").stderr
    (tmp_path / "config.json").write_text('{"title": "a comparison"}')
    assert "belongs to another program" in analyze(tmp_path, tmp_path / "output").stderr
    shutil.copytree(swamp_run, tmp_path / "swamp")
    shutil.rmtree(tmp_path / "swamp" / "cycles")
    assert "has no finished cycle yet" in analyze(tmp_path / "swamp", tmp_path / "output").stderr
    shutil.copytree(hwa_run, tmp_path / "hwa")
    shutil.rmtree(tmp_path / "hwa" / "window")
    ended = analyze(tmp_path / "hwa", tmp_path / "output")
    assert ended.code == 2 and "its window is empty after step 18" in ended.stderr


@pytest.fixture(scope="module")
def single_run(tmp_path_factory):
    """Iterative magnitude pruning with SWA: one particle, two cycles."""
    directory = tmp_path_factory.mktemp("single") / "run"
    prune(directory, {"swamp.num_particles": 1, "swamp.target_sparsity": 0.3})
    return directory


def test_one_particle_has_neither_a_hull_nor_a_plane(single_run, tmp_path):
    ended = analyze(single_run, tmp_path / "output", "--what=hull")
    assert (ended.code, ended.stderr) == (2, "error: a hull has at least two corners: only average is here, give more weights\n")
    ended = analyze(single_run, tmp_path / "output", "--what=landscape")
    assert ended.code == 2 and "a plane goes through three weight vectors, here are 2: cycle 0, cycle 1" in ended.stderr
    assert not (tmp_path / "output").exists()


def test_without_a_choice_what_the_weights_do_not_allow_is_left_out(single_run, tmp_path):
    ended = analyze(single_run, tmp_path / "output")
    assert ended.code == 0 and ended.stdout.startswith("hull is left out: a hull has at least two corners: only average is here")
    assert "landscape is left out: a plane goes through three weight vectors" in ended.stdout
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"report.md", "results.json", "chain.png", "curvature.png"}
    assert "left out" in (tmp_path / "output" / "report.md").read_text()


def test_weights_that_have_diverged_are_one_clear_line(swamp_run, tmp_path):
    shutil.copytree(swamp_run, tmp_path / "run")
    file = tmp_path / "run" / "cycles" / "002" / "particle_1.safetensors"
    params, batch_stats, mask = load_sparse_weights(file)
    params["dense1"]["bias"][:2] = np.nan
    save_sparse_weights(file, params, batch_stats, mask)
    for what in ("connectivity", "hull", "landscape", "curvature"):
        ended = analyze(tmp_path / "run", tmp_path / "output", f"--what={what}")
        assert ended.code == 2 and "leaf dense1/bias of particle 1 holds 2 values that are not finite" in ended.stderr


def test_a_window_of_two_spans_no_plane(short_run, tmp_path):
    ended = analyze(short_run, tmp_path / "output", "--what=landscape")
    assert ended.code == 2 and "step 4, step 8 and hwa lie on one line" in ended.stderr
