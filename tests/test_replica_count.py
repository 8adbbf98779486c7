"""A run that goes on with another number of replicas."""

import logging

import jax
import numpy as np
import pytest
from training_runs import (  # noqa: F401
    by_path, checkpoint, compilation_cache_dir, compiled_once, exported, listing, rows, small_config, small_setup, train,
)

from hwa_jax.algorithms import stored_run
from hwa_jax.errors import UserError
from hwa_jax.storage.checkpoint import CheckpointStore
from hwa_jax.training.session import Session
from hwa_jax.training.workdir import Workdir

pytestmark = pytest.mark.usefixtures("compiled_once")

# An average after every fourth step; the run is left at step 10, where the replicas have gone apart for two steps.
BEGUN = {
    "model.norm": "batch", "optimizer.name": "adamw", "optimizer.learning_rate": 0.01, "training.ema_decay": 0.5,
    "training.duration": "10 steps", "evaluation.every": "20 steps",
}
LONGER = {**BEGUN, "training.duration": "20 steps"}


def begin(directory, **fields):
    train(directory, {**BEGUN, **fields})
    return checkpoint(directory)


def restart(directory, fields):
    """The state that a session begins with, on the host."""
    setup = small_setup(fields)
    with Workdir(directory, setup.config, setup.dataset.fingerprint) as workdir, Session(setup, workdir) as session:
        return jax.device_get(session.state)


@pytest.mark.parametrize(("before", "after"), [
    (2, 3), (2, 1), pytest.param(3, 2, marks=pytest.mark.slow), pytest.param(1, 2, marks=pytest.mark.slow),
])
def test_all_replicas_restart_from_the_outer_weights(tmp_path, before, after):
    stored = begin(tmp_path, **{"hwa.num_replicas": before})
    if before > 1:
        assert any(np.ptp(leaf, axis=0).max() > 1e-4 for leaf in jax.tree.leaves(stored.params))
    state = restart(tmp_path, {**LONGER, "hwa.num_replicas": after})
    assert state.step == stored.step == 10
    mine, theirs = (by_path(tree._replace(step=(), progress=())) for tree in (state, stored))
    for name, leaf in theirs.items():
        # Counts are 10 on all replicas, or of the optimizer's own steps.
        wanted = leaf.mean(axis=0, dtype=np.float64).astype(leaf.dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf[0]
        np.testing.assert_array_equal(mine[name], np.broadcast_to(wanted, (after, *wanted.shape)), err_msg=name)
    assert {leaf.shape for leaf in state.progress} == {(after,)} and not state.progress.loss.any()


def test_replicas_that_count_differently_meet_as_they_count(tmp_path):
    stored = begin(tmp_path, **{"hwa.replica_weights": (3, 1)})
    state = restart(tmp_path, {**LONGER, "hwa.num_replicas": 3, "hwa.replica_weights": (1, 1, 2)})
    kernel = stored.params["dense1"]["kernel"].astype(np.float64)
    np.testing.assert_allclose(state.params["dense1"]["kernel"][2], (3 * kernel[0] + kernel[1]) / 4, rtol=1e-6)


def test_the_run_goes_on_exactly_and_says_what_happened(tmp_path, caplog):
    for name in ("whole", "parts"):
        begin(tmp_path / name)
    with caplog.at_level(logging.WARNING, "hwa_jax"):
        results = train(tmp_path / "whole", {**LONGER, "hwa.num_replicas": 4})
    [said] = [record.getMessage() for record in caplog.records if "instead of" in record.getMessage()]
    assert said.startswith("4 replicas instead of 2: all of them restart from the outer weights of step 10")
    # The window's first member is from before; the partial cycle at step 10 is gone, as in any longer run.
    assert results["window"] == [12, 16, 20] and results["config"]["hwa"]["num_replicas"] == 4
    [row] = rows(tmp_path / "whole", kind="restart")
    assert (row["step"], row["num_replicas_before"], row["num_replicas"]) == (10, 2, 4)
    assert [row["step"] for row in rows(tmp_path / "whole", kind="push")] == [4, 8, 10, 12, 16, 20]
    # In parts: bit-identical, and what is no change is no restart.
    for duration in ("15 steps", "20 steps"):
        train(tmp_path / "parts", {**LONGER, "hwa.num_replicas": 4, "training.duration": duration})
    assert len(rows(tmp_path / "parts", kind="restart")) == 1
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole._replace(progress=()), parts._replace(progress=()))


@pytest.mark.parametrize(("field", "value", "then"), [("replica_weights", (3, 1), (1, 3)), ("replica_batch_sizes", (5, 10), ())])
def test_other_weights_and_batches_of_as_many_replicas_are_told_of(tmp_path, caplog, field, value, then):
    stored = begin(tmp_path, **{f"hwa.{field}": value})
    with caplog.at_level(logging.WARNING, "hwa_jax"):
        state = restart(tmp_path, {**LONGER, f"hwa.{field}": then})
        # At the next start it is no change any more.
        restart(tmp_path, {**LONGER, f"hwa.{field}": then})
    assert [r.getMessage() for r in caplog.records if "instead of" in r.getMessage()] == [f"hwa.{field}={then} instead of {value} from step 10 on"]
    [row] = rows(tmp_path, kind="change")
    assert (row["step"], row[field], row[f"{field}_before"]) == (10, list(then) or None, list(value))
    # The replicas themselves go on from where they are.
    jax.tree.map(np.testing.assert_array_equal, state, stored)
    before = rows(tmp_path)
    train(tmp_path, {**LONGER, f"hwa.{field}": then})
    assert rows(tmp_path)[:len(before)] == before and rows(tmp_path, kind="change") == [row]


def test_other_replicas_that_count_otherwise_are_one_row(tmp_path, caplog):
    begin(tmp_path, **{"hwa.replica_weights": (3, 1)})
    with caplog.at_level(logging.WARNING, "hwa_jax"):
        restart(tmp_path, {**LONGER, "hwa.num_replicas": 3})
    assert [r.getMessage().partition(" from ")[0] for r in caplog.records if "instead of" in r.getMessage()] == [
        "3 replicas instead of 2: all of them restart", "hwa.replica_weights=() instead of (3, 1)",
    ]
    [row] = rows(tmp_path, kind="restart")
    assert (row["num_replicas_before"], row["replica_weights"], row["replica_weights_before"]) == (2, None, [3, 1])
    assert not rows(tmp_path, kind="change")


def test_between_restart_and_next_checkpoint_it_can_be_evaluated(tmp_path):
    begin(tmp_path)
    restart(tmp_path, {**LONGER, "hwa.num_replicas": 3})
    run = stored_run.open_run(tmp_path)
    assert run.setup.num_replicas == 3 and run.state.params["dense1"]["kernel"].shape[0] == 3


def test_a_damaged_checkpoint_falls_back_to_one_of_the_former_number(tmp_path):
    begin(tmp_path)
    restart(tmp_path, {**LONGER, "hwa.num_replicas": 3})
    [newest] = (tmp_path / "checkpoints").glob("step_00000010*")
    (newest / "tree.json").write_text("")
    state = restart(tmp_path, {**LONGER, "hwa.num_replicas": 3})
    assert state.step == 5 and state.params["dense1"]["kernel"].shape[0] == 3
    assert [row["step"] for row in rows(tmp_path, kind="restart")] == [5]


def test_checkpoints_of_earlier_versions_have_as_many_as_the_configuration(tmp_path):
    stored = begin(tmp_path)
    CheckpointStore(tmp_path / "checkpoints").save(10, stored, {"seconds": {"training": 1.0}, "window": [4, 8]})
    state = restart(tmp_path, LONGER)
    jax.tree.map(np.testing.assert_array_equal, state, stored)
    CheckpointStore(tmp_path / "checkpoints").save(10, stored, {"seconds": {}, "window": []})
    with pytest.raises(UserError, match=r"step 10 has float32\[2,10\] at .*, where float32\[3,10\] is expected"):
        restart(tmp_path, {**LONGER, "hwa.num_replicas": 3})


def test_partitioned_data_cannot_be_partitioned_anew(tmp_path):
    partitioned = {"hwa.data_mode": "partitioned"}
    begin(tmp_path, **partitioned)
    before = listing(tmp_path)
    with pytest.raises(UserError, match=r"^hwa.num_replicas=3: the run has 2, and .*'partitioned' an epoch would have 3 steps instead of 4: give 2"):
        train(tmp_path, {**LONGER, **partitioned, "hwa.num_replicas": 3})
    assert listing(tmp_path) == before


def test_a_finished_run_is_not_passed_off_as_one_of_another_number(tmp_path):
    begin(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(UserError, match=r"^hwa.num_replicas=3: the run is finished, with 2: give a longer training.duration"):
        train(tmp_path, {**BEGUN, "hwa.num_replicas": 3})
    assert listing(tmp_path) == before
    assert train(tmp_path, BEGUN)["steps"] == 10
