"""NaN in one replica: found in the step, named, kept out of every average; the run stops or goes on with the others."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_runs import checkpoint, compilation_cache_dir, compiled_once, exported, rows, small_setup, train  # noqa: F401

from hwa_jax.errors import Diverged
from hwa_jax.training.session import Session

pytestmark = pytest.mark.usefixtures("compiled_once")

# No momentum: what a replica has gathered does not outlive the average, so an average without it is all that it leaves.
FIELDS = {
    "hwa.num_replicas": 4, "training.duration": "12 steps", "model.norm": "batch", "evaluation.every": "12 steps",
    "logging.every": "12 steps", "checkpoint.every": "12 steps",
}
DROP = {**FIELDS, "hwa.nan_policy": "drop"}


@pytest.fixture
def poison(monkeypatch):
    """poison({step: replicas}): before these steps, counted from 1, one weight of these replicas becomes NaN."""

    def inject(planned):
        step = Session.step

        def poisoned(session, state, count):
            for replica in planned.get(int(state.step) + 1, ()):
                params = dict(state.params)
                params["dense1"] = {**params["dense1"], "kernel": params["dense1"]["kernel"].at[replica, 0, 0].set(np.nan)}
                state = session.setup.place(state._replace(params=params))
            return step(session, state, count)

        monkeypatch.setattr(Session, "step", poisoned)

    return inject


def assert_close(mine, theirs, atol=1e-6):
    mine, theirs = exported(mine), exported(theirs)
    for name, leaf in theirs.items():
        np.testing.assert_allclose(mine[name], leaf, rtol=0, atol=atol * np.abs(leaf).max(), err_msg=name)


@pytest.mark.parametrize(("step", "fields"), [
    (2, {}), (4, {}), pytest.param(4, {"num_devices": 4}, marks=pytest.mark.slow),
    pytest.param(2, {"num_devices": 4, "hwa.data_parallel": 2}, marks=pytest.mark.slow),
], ids=["between averages", "at the average", "four devices", "two by two"])
def test_the_average_is_that_of_the_others(tmp_path, poison, caplog, step, fields):
    # The same without NaN: replica 2 counts nothing in the first average, after step 4.
    expected = {**FIELDS, "hwa.replica_weights": (1, 1, 0, 1), "training.duration": "4 steps"}
    train(tmp_path / "expected", expected)
    train(tmp_path / "expected", FIELDS)
    poison({step: [2]})
    with caplog.at_level(logging.WARNING, "hwa_jax"):
        train(tmp_path / "dropped", {**DROP, **fields})
    assert_close(tmp_path / "dropped", tmp_path / "expected")
    [said] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("replica")]
    assert said == f"replica 2: loss or gradient is not finite at step {step}: dropped, and restarted from the mean of the others at step 4"
    [row] = rows(tmp_path / "dropped", kind="drop")
    assert (row["step"], row["replica"], row["first_non_finite"]) == (4, 2, step)
    # The whole state is finite: a replica that has restarted is one of them in all respects.
    for leaf in jax.tree.leaves(checkpoint(tmp_path / "dropped")):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("policy", ["drop", "stop"])
def test_an_update_that_overflows_right_before_the_inner_evaluation(tmp_path, monkeypatch, policy):
    step = Session.step

    def exploding(session, state, count):
        state = step(session, state, count)
        if int(state.step) == 3:
            params = dict(state.params)
            params["dense1"] = jax.tree.map(lambda leaf: leaf.at[2].set(3e38), params["dense1"])
            state = session.setup.place(state._replace(params=params))
        return state

    monkeypatch.setattr(Session, "step", exploding)
    fields = {**FIELDS, "evaluation.every": "4 steps", "hwa.nan_policy": policy}
    if policy == "stop":
        with pytest.raises(Diverged, match="not finite"):
            train(tmp_path, fields)
        return
    train(tmp_path, fields)
    assert [(row["step"], row["replica"]) for row in rows(tmp_path, kind="drop")] == [(4, 2)]
    # What could not be measured has no row.
    assert {row["step"] for row in rows(tmp_path, kind="evaluation", weights="inner")} == {8, 12}
    assert {row["step"] for row in rows(tmp_path, kind="evaluation", weights="outer")} == {4, 8, 12}


def test_before_an_evaluation_between_averages_it_restarts_from_the_outer_weights_of_then(tmp_path, poison):
    poison({6: [0, 3]})
    train(tmp_path, {**DROP, "evaluation.every": "7 steps", "logging.every": "3 steps"})
    assert [(row["step"], row["replica"]) for row in rows(tmp_path, kind="drop")] == [(6, 0), (6, 3)]
    measured = [row[name] for row in rows(tmp_path) for name in ("loss", "accuracy", "nll", "spread") if name in row]
    assert len(measured) > 20 and np.isfinite(measured).all()


@pytest.mark.parametrize("fields", [
    pytest.param({"hwa.optimizer_state": "average", "optimizer.name": "adamw", "optimizer.learning_rate": 0.01}, marks=pytest.mark.slow),
    pytest.param({"optimizer.momentum": 0.9, "hwa.optimizer_state": "reset", "training.ema_decay": 0.5}, marks=pytest.mark.slow),
    {"hwa.sync_dtype": "bfloat16", "hwa.outer_optimizer.name": "sgd", "hwa.replica_weights": (1, 2, 3, 4)},
], ids=["average", "reset", "outer"])
def test_nothing_of_it_stays_in_any_state(tmp_path, poison, fields):
    poison({3: [1], 7: [1, 2]})
    results = train(tmp_path, {**DROP, **fields})
    assert [row["replica"] for row in rows(tmp_path, kind="drop")] == [1, 1, 2]
    for leaf in jax.tree.leaves(checkpoint(tmp_path)):
        assert np.isfinite(leaf).all()
    assert all(np.isfinite(split["nll"]) for weights in results["final"].values() for split in weights.values())


def test_the_watch_measures_the_others(tmp_path, poison):
    # It looks at the replicas one step before the average after step 8.
    poison({6: [1]})
    train(tmp_path, {**DROP, "evaluation.averaging_health": True})
    assert [(row["step"], row["replica"]) for row in rows(tmp_path, kind="drop")] == [(7, 1)]
    measured = [row["online_gap"] for row in rows(tmp_path, kind="health")]
    assert len(measured) == 3 and np.isfinite(measured).all()


def test_without_nan_nothing_changes(tmp_path):
    train(tmp_path / "stop", FIELDS)
    train(tmp_path / "drop", DROP)
    assert_close(tmp_path / "drop", tmp_path / "stop")
    assert rows(tmp_path / "drop", kind="drop") == []


@pytest.mark.parametrize("step", [2, 4])
def test_stop_names_the_replica_and_stores_nothing_of_it(tmp_path, poison, step):
    poison({step: [2]})
    with pytest.raises(Diverged, match=f"^loss or gradient of replica 2 is not finite at step {step}: lower"):
        train(tmp_path, FIELDS)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not list((tmp_path / "window").glob("step_*")) and not list((tmp_path / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("fields", [{}, {"hwa.num_replicas": 1}])
def test_where_all_are_lost_the_run_stops(tmp_path, poison, fields):
    poison({2: [0], 3: range(1, {**FIELDS, **fields}["hwa.num_replicas"])})
    with pytest.raises(Diverged, match="^loss or gradient of replica 0 is not finite at step 2"):
        train(tmp_path, {**DROP, **fields})


def test_a_run_that_stopped_goes_on_with_the_other_policy(tmp_path, poison, monkeypatch):
    fields = {"checkpoint.every": "4 steps"}
    with monkeypatch.context():
        poison({6: [3]})
        with pytest.raises(Diverged, match="replica 3"):
            train(tmp_path, {**FIELDS, **fields})
        assert train(tmp_path, {**DROP, **fields})["steps"] == 12
    assert [(row["step"], row["replica"]) for row in rows(tmp_path, kind="drop")] == [(8, 3)]


def test_the_one_that_is_lost_becomes_the_weighted_mean_of_the_others():
    setup = small_setup({"hwa.num_replicas": 3, "hwa.replica_weights": (3, 5, 1), "hwa.nan_policy": "drop"})
    state = setup.initial_state()
    params = jax.tree.map(lambda leaf: leaf * jnp.array([1.0, np.nan, 5.0]).reshape(3, *[1] * (leaf.ndim - 1)), state.params)
    progress = state.progress._replace(first_non_finite=state.progress.first_non_finite.at[1].set(7))
    before = jax.device_get(params)
    restarted = setup.restart_lost(state._replace(params=params, progress=progress))
    assert restarted.progress.first_non_finite.tolist() == jax.device_get(setup.zero_progress().first_non_finite).tolist()
    for mine, leaf in zip(jax.tree.leaves(restarted.params), jax.tree.leaves(before)):
        # 3 of 1 and 1 of 5: 2
        np.testing.assert_array_equal(np.asarray(mine)[[0, 2]], leaf[[0, 2]])
        np.testing.assert_allclose(mine[1], 2 * leaf[0], rtol=1e-6)
