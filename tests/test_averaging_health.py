"""The watch over averages: its figures against ones computed by hand, its sentences, and what it must not change."""

import inspect
import logging

import numpy as np
import pytest

from hwa_jax.algorithms.hwa import open_window
from hwa_jax.analysis import averaging_health
from hwa_jax.analysis.averaging_health import Health, movement_cosine, warnings
from training_runs import (  # noqa: F401
    by_path, checkpoint, compilation_cache_dir, compiled_once, exported, rows, small_setup, train,
)

pytestmark = pytest.mark.usefixtures("compiled_once")
WATCHED = {"evaluation.averaging_health": True, "hwa.keep_pushes": 9}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two replicas; pushes after 4, 8, 12, 16 and 18 steps, a window of 3."""
    directory = tmp_path_factory.mktemp("watched") / "run"
    train(directory, WATCHED)
    return directory


def losses(setup, params):
    """NLL of every validation image in float64, and whether it is right."""
    images = (np.asarray(setup.validation.images) / 255.0 - setup.dataset.mean) / setup.dataset.std
    logits = np.asarray(setup.model.predict(params, {}, images.astype(np.float32)), np.float64)
    labels = np.asarray(setup.validation.labels)
    shifted = logits - logits.max(1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    return nll, logits.argmax(1) == labels


def mean(trees):
    return {layer: {leaf: np.mean([tree[layer][leaf] for tree in trees], axis=0) for leaf in leaves} for layer, leaves in trees[0].items()}


def test_every_push_has_a_row(run):
    found = rows(run, kind="health")
    assert [row["step"] for row in found] == [4, 8, 12, 16, 18]
    assert found[0]["gap"] == 0 and found[0]["ends_gap"] is None and found[0]["holds_first"]
    assert [row["holds_first"] for row in found] == [True, True, True, False, False]
    assert all(row["stale_gap"] is None for row in found)


@pytest.mark.parametrize("done, members", [(12, (4, 8, 12)), (18, (12, 16, 18))])
def test_the_gap_and_the_ends_by_hand(run, done, members):
    setup = small_setup(WATCHED)
    with open_window(setup, run) as window:
        trees = [window.member(step).params for step in members]
    average, newest = losses(setup, mean(trees)), losses(setup, trees[-1])
    [row] = rows(run, kind="health", step=done)
    difference = average[0] - newest[0]
    assert row["gap"] == pytest.approx(difference.mean(), rel=1e-4, abs=1e-6)
    assert row["gap_error"] == pytest.approx(difference.std(ddof=1) / np.sqrt(len(difference)), rel=1e-4)
    assert row["accuracy_gap"] == pytest.approx(average[1].mean() - newest[1].mean())
    oldest, middle = losses(setup, trees[0]), losses(setup, mean([trees[0], trees[-1]]))
    assert row["ends_gap"] == pytest.approx((oldest[0] - newest[0]).mean(), rel=1e-4)
    assert row["valley"] == pytest.approx(middle[0].mean() - max(oldest[0].mean(), newest[0].mean()), rel=1e-3, abs=1e-5)
    errors = [1 - side[1].mean() for side in (oldest, middle, newest)]
    assert row["error_barrier"] == pytest.approx(max(errors) - (errors[0] + errors[2]) / 2, abs=1e-6)


def test_the_replicas_one_step_before_they_meet(run, tmp_path):
    """A training of 7 steps ends one step before the average after 8; all began the cycle as the outer weights after 4."""
    train(tmp_path / "seven", {"training.duration": "7 steps"})
    setup = small_setup(WATCHED)
    inner = checkpoint(tmp_path / "seven").params
    with open_window(setup, run) as window:
        start, outer = window.member(4).params, window.member(8).params
    flat = [np.concatenate([(leaf[k] - by_path(start)[name]).ravel() for name, leaf in by_path(inner).items()]) for k in (0, 1)]
    [row] = rows(run, kind="health", step=8)
    assert row["cosine"] == pytest.approx(flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1]), rel=1e-4)
    before = np.mean([losses(setup, {layer: {n: leaf[k] for n, leaf in leaves.items()} for layer, leaves in inner.items()})[0] for k in (0, 1)])
    assert row["online_gap"] == pytest.approx(losses(setup, outer)[0].mean() - before, rel=1e-3, abs=1e-5)


def test_cosines_by_hand():
    stacked = {"a": np.float32([[1, 0], [1, 1], [-1, 0]]), "steps": np.int32([1, 1, 1])}
    # The pairs: 1/√2, -1, -1/√2.
    assert float(movement_cosine(stacked, {"a": np.zeros(2, np.float32), "steps": np.int32(0)})) == pytest.approx(-1 / 3)
    assert np.isnan(movement_cosine({"a": np.ones((2, 3))}, {"a": np.ones(3)}))


def test_the_watch_changes_no_weights(run, tmp_path):
    train(tmp_path / "unwatched", {"hwa.keep_pushes": 9})
    ours, theirs = exported(run), exported(tmp_path / "unwatched")
    assert ours and all((ours[name] == theirs[name]).all() for name in theirs)
    assert rows(tmp_path / "unwatched", kind="health") == []


def test_a_resumed_run_measures_the_same(run, tmp_path):
    """After 10 steps it has forgotten how the cycle of steps 9 to 12 began; all else is as without an interruption."""
    train(tmp_path / "run", WATCHED | {"training.duration": "10 steps"})
    train(tmp_path / "run", WATCHED)
    for row, whole in zip(rows(tmp_path / "run", kind="health")[-3:], rows(run, kind="health")[-3:], strict=True):
        assert row["cosine"] == (None if row["step"] == 12 else whole["cosine"])
        assert {**row, "cosine": 0, "holds_first": 0} == {**whole, "cosine": 0, "holds_first": 0}


def test_an_average_from_the_start_is_named_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "hwa_jax"):
        train(tmp_path / "run", WATCHED | {"hwa.window_size": 9, "optimizer.learning_rate": 0.1})
    alarmed = [row["step"] for row in rows(tmp_path / "run", kind="health") if row["warnings"] == ["early"]]
    assert len(alarmed) > 1
    [line] = [record.getMessage() for record in caplog.records if "worse than the latest weights" in record.getMessage()]
    assert line.startswith(f"averaging, step {alarmed[0]}: ") and "start later (hwa.offline_start)" in line


def test_one_replica_with_batch_norm(tmp_path):
    fields = WATCHED | {"hwa.num_replicas": 1, "model.norm": "batch", "training.duration": "8 steps"}
    results = train(tmp_path / "run", fields)
    first, last = rows(tmp_path / "run", kind="health")
    assert all(row["cosine"] is None and row["online_gap"] is None for row in (first, last))
    # The average of two pushes with the running statistics of the second.
    setup = small_setup(fields)
    with open_window(setup, tmp_path / "run") as window:
        stale = setup.evaluator.one(window.mean().params, window.member(8).batch_stats, setup.validation)["nll"]
    assert last["stale_gap"] == pytest.approx(stale - results["final"]["hwa"]["validation"]["nll"], rel=1e-3, abs=1e-5)


WORSE = Health(gap=0.1, gap_error=0.01, accuracy_gap=-0.02, ends_gap=0.3, error_barrier=0.1, valley=-0.05)


@pytest.mark.parametrize("changes, names, words", [
    ({"gap": 0.029}, [], ""),
    ({"gap": -1.0}, [], ""),
    ({}, ["long"], "shorten hwa.window_size"),
    ({"holds_first": True}, ["early"], "start later (hwa.offline_start)"),
    ({"rate_ratio": 0.1, "holds_first": True}, ["decay"], "has fallen to 10% of what it was"),
    ({"valley": 0.01}, ["basins"], "a barrier of 10.0 points"),
    ({"valley": 0.01, "error_barrier": 0.01}, ["long"], "shorten"),
    ({"gap": 0.0, "stale_gap": 0.5}, ["stale"], "recompute them on training images"),
    ({"gap": 0.0, "online_gap": 0.5}, ["apart"], "synchronize more often (hwa.sync_period)"),
    ({"stale_gap": 0.5, "online_gap": 0.5}, ["long", "apart", "stale"], "shorten"),
    ({"gap": float("nan")}, [], ""),
])
def test_sentences(changes, names, words):
    found = warnings(WORSE._replace(**changes))
    assert list(found) == names
    assert words in next(iter(found.values()), "")
    assert all("\n" not in sentence for sentence in found.values())


def test_every_threshold_says_where_it_comes_from():
    source = inspect.getsource(averaging_health).splitlines()
    for name in ("SIGNIFICANT", "CONNECTED", "RATE_FELL", "STALE", "APART"):
        [line] = [number for number, text in enumerate(source) if text.startswith(f"{name} = ")]
        assert source[line - 1].startswith("# "), name
