"""hwa.window_size="auto": I is the best of the stored window on the validation split, and is reported as chosen."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwa_jax.algorithms import window_choice
from hwa_jax.algorithms.hwa import open_window
from hwa_jax.algorithms.stored_weights import open_weights
from hwa_jax.errors import UserError
from hwa_jax.storage.safetensors import load_metadata
from hwa_jax.training.config import validate
from programs import ROOT, call
from training_runs import (  # noqa: F401
    SMALL, compilation_cache_dir, compiled_once, exported, rows, small_config, small_setup, train,
)

pytestmark = pytest.mark.usefixtures("compiled_once")
AUTO = {"hwa.window_size": "auto"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Pushes after 4, 8, 12, 16 and 18 steps."""
    directory = tmp_path_factory.mktemp("auto") / "run"
    train(directory, AUTO)
    return directory


@given(st.integers(1, 500))
def test_candidates_reach_from_one_to_all_in_small_steps(number):
    sizes = window_choice.candidates(number)
    assert sizes[0] == 1 and sizes[-1] == number and sizes == sorted(set(sizes))
    assert all(later <= max(earlier + 1, 1.6 * earlier) for earlier, later in zip(sizes, sizes[1:]))
    assert len(sizes) <= 20


def test_the_best_on_validation_is_taken(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    choice = results["window_choice"]
    assert choice["split"] == "validation" and [point["window_size"] for point in choice["curve"]] == [1, 2, 3, 4, 5]
    best = max(choice["curve"], key=lambda point: (point["accuracy"], -point["nll"]))
    assert choice["window_size"] == best["window_size"] and len(results["window"]) == best["window_size"]
    assert results["final"]["hwa"]["validation"]["nll"] == pytest.approx(best["nll"], rel=1e-6)
    # A point of the curve is the final figure of a training with that I, and the chosen one gives the same weights.
    for point in (best, choice["curve"][-1]):
        given = train(tmp_path / str(point["window_size"]), {"hwa.window_size": point["window_size"]})
        assert given["final"]["hwa"]["validation"]["accuracy"] == point["accuracy"]
        assert "window_choice" not in given
    mine, theirs = exported(run), exported(tmp_path / str(best["window_size"]))
    assert all((mine[name] == theirs[name]).all() for name in theirs)


def test_a_choice_at_every_evaluation_is_in_the_log(run):
    """After 9 steps two members are there, after 18 all five."""
    found = rows(run, kind="window")
    assert [row["step"] for row in found] == [9, 18] and found[0]["window_size"] in (1, 2)
    assert found[1]["window_size"] == json.loads((run / "results.json").read_text())["window_choice"]["window_size"]


def test_what_reads_a_run_chooses_alike(run, tmp_path):
    chosen = json.loads((run / "results.json").read_text())["window_choice"]["window_size"]
    assert len(open_weights(run).corners) == chosen
    file = tmp_path / "auto.safetensors"
    assert call("evaluate.py", "export", f"--workdir={run}", f"--output={file}").code == 0
    facts = load_metadata(file)
    assert facts["window_choice"]["window_size"] == chosen == len(facts["window"])


def test_keep_pushes_limits_how_far_back_the_choice_looks(tmp_path):
    results = train(tmp_path / "run", AUTO | {"hwa.keep_pushes": 2})
    assert [point["window_size"] for point in results["window_choice"]["curve"]] == [1, 2]


def test_all_pushes_are_kept_without_a_limit():
    setup = small_setup(AUTO)
    assert window_choice.longest(setup) == 5
    assert window_choice.longest(small_setup({"hwa.window_size": 3})) == 3


def test_the_choice_costs_no_training_and_changes_none(run, tmp_path):
    train(tmp_path / "run")
    setup = small_setup()
    with open_window(setup, tmp_path / "run") as fixed, open_window(small_setup(AUTO), run) as auto:
        assert fixed.steps == [12, 16, 18] and auto.stored_steps == [4, 8, 12, 16, 18]
        for step in fixed.steps:
            for layer, leaves in fixed.member(step).params.items():
                assert all((leaf == auto.member(step).params[layer][name]).all() for name, leaf in leaves.items())


@pytest.mark.parametrize("size", ["best", 0, -1, 2.5, True, None])
def test_other_sizes_are_one_clear_line(size):
    with pytest.raises(UserError, match=r"^hwa.window_size=.*: must be an int of at least 1, or 'auto'$"):
        validate(small_config({"hwa.window_size": size}))


def test_on_the_command_line(tmp_path):
    arguments = [f"--config={ROOT / 'configs' / 'hwa_digits.py'}", *(f"--config.{name}={value}" for name, value in {**SMALL, **AUTO}.items())]
    ended = call("train_hwa.py", f"--workdir={tmp_path / 'run'}", *arguments, "--config.data.validation_fraction=0")
    assert ended.code == 2 and ended.stderr.count("\n") == 1
    assert "data.validation_fraction=0.0" in ended.stderr and "validation split" in ended.stderr
    assert "chosen on validation, of at most 5 pushes" in call("train_hwa.py", *arguments, f"--workdir={tmp_path / 'run'}", "--dry_run").stdout
