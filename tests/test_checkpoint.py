"""Checkpoints: bit-for-bit, replaced safely, and the one before when the newest is broken."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from storage_cases import tmp_path  # noqa: F401

from hwa_jax.errors import UserError
from hwa_jax.storage import atomic
from hwa_jax.storage.checkpoint import CheckpointStore


def training_state(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "dense": {"kernel": rng.normal(size=(4, 3)), "bias": np.zeros(3)},
        "blocks": {0: rng.normal(size=2), 10: rng.normal(size=2), 2: rng.normal(size=2)},
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.inject_hyperparams(optax.adamw)(optax.cosine_decay_schedule(0.1, 100)),
    )
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
        params = optax.apply_updates(params, updates)
    key = jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 2))
    return {"params": params, "optimizer": state, "key": key, "bf16": jnp.ones(2, jnp.bfloat16)}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(ours) is np.ndarray and ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape and ours.tobytes() == np.asarray(theirs).tobytes()


def damage(tmp_path, step, revision=0):
    shutil.rmtree(tmp_path / f"step_{step:08d}.{revision}" / "arrays" / "d")


def test_a_training_state_comes_back_bit_for_bit(tmp_path):
    state, metadata = training_state(), {"epoch": 3, "rate": 0.1, "name": "ü", "list": [1, None]}
    CheckpointStore(tmp_path).save(7, state, metadata)
    abstract = jax.eval_shape(lambda: state)
    for like in (None, state, abstract):
        step, tree, found = CheckpointStore(tmp_path).restore(like)
        assert (step, found) == (7, metadata)
        assert_same(tree, state)


def test_the_restored_state_trains_on_like_the_one_that_was_saved(tmp_path):
    state = training_state()
    CheckpointStore(tmp_path).save(1, state)
    restored = CheckpointStore(tmp_path).restore(like=state).tree
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.inject_hyperparams(optax.adamw)(optax.cosine_decay_schedule(0.1, 100)),
    )
    step = jax.jit(lambda s: optimizer.update(s["params"], s["optimizer"], s["params"]))
    jax.tree.map(np.testing.assert_array_equal, step(restored), step(state))


def test_the_newest_ones_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    assert store.restore() is None and store.steps == []
    for step in (0, 5, 10, 15, 20):
        store.save(step, {"w": np.float32(step)})
    assert store.steps == [10, 15, 20] == CheckpointStore(tmp_path).steps
    assert sorted(os.listdir(tmp_path)) == [f"step_{s:08d}.0" for s in (10, 15, 20)]
    assert store.restore().step == 20 and store.restore().metadata is None
    assert store.restore(step=15).tree == {"w": 15.0}


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path)
    for version in range(3):
        store.save(4, {"w": np.full(version, version)}, {"version": version})
    assert os.listdir(tmp_path) == ["step_00000004.2"]
    assert store.restore().metadata == {"version": 2}
    assert store.restore().tree["w"].tolist() == [2, 2]


def test_a_save_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {"w": np.float32(1)})

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(atomic, "commit_directory", fail)
        store.save(2, {"w": np.float32(2)})
    for bad in ({"w": "text"}, {"w": jax.random.key(0)}):
        with pytest.raises(TypeError, match="^w: "):
            store.save(2, bad)
    with pytest.raises(TypeError):
        store.save(2, {"w": 1.0}, {"not json": object()})
    assert os.listdir(tmp_path) == ["step_00000001.0"]
    assert store.restore().tree == {"w": 1.0}


def test_a_damaged_newest_falls_back_with_one_warning(tmp_path, caplog):
    store = CheckpointStore(tmp_path)
    store.save(1, training_state(1))
    store.save(2, training_state(2))
    damage(tmp_path, 2)
    store = CheckpointStore(tmp_path)
    step, tree, _ = store.restore(like=training_state())
    assert step == 1
    assert_same(tree, training_state(1))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "step 2 " in line and "is damaged (" in line and "\n" not in line
    assert store.steps == [1]
    with pytest.raises(UserError, match="no undamaged step 2: it has 1"):
        store.restore(step=2)
    # The damaged one does not push the good one out, and is replaced when training gets there.
    store.save(3, training_state(3))
    assert store.steps == [1, 3]
    store.save(4, training_state(4))
    assert sorted(os.listdir(tmp_path)) == ["step_00000003.0", "step_00000004.0"]


def test_a_damaged_one_is_replaced_by_the_same_step(tmp_path):
    CheckpointStore(tmp_path).save(2, {"w": 1.0})
    damage(tmp_path, 2)
    store = CheckpointStore(tmp_path)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        store.restore()
    store.save(2, {"w": 2.0})
    assert store.restore().tree == {"w": 2.0} and store.steps == [2]
    assert os.listdir(tmp_path) == ["step_00000002.1"]


def test_all_damaged_is_an_error_and_none_at_all_is_not(tmp_path):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save(step, {"w": 1.0})
        damage(tmp_path, step)
    for fresh in (store, CheckpointStore(tmp_path)):
        with pytest.raises(UserError, match=r"every checkpoint is damaged, of steps \[1, 2\]"):
            fresh.restore()
        with pytest.raises(UserError, match=r"every checkpoint is damaged, of steps \[1, 2\]"):
            fresh.restore()
    store.truncate(after=-1)
    assert os.listdir(tmp_path) == [] and store.restore() is None


def test_truncation_makes_an_older_checkpoint_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep=9)
    for step in (1, 2, 3):
        store.save(step, {"w": float(step)})
    damage(tmp_path, 3)
    store.truncate(after=1)
    assert os.listdir(tmp_path) == ["step_00000001.0"] and store.restore().step == 1


@pytest.mark.parametrize(
    "like, message",
    [
        ({"w": np.zeros((2, 3), np.float32)}, r"float32\[2,2\] at w, where float32\[2,3\]"),
        ({"w": np.zeros((2, 2))}, r"float32\[2,2\] at w, where float64\[2,2\]"),
        ({"w": jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)}, r"where bfloat16\[2,2\] is expected"),
        ({"v": np.zeros((2, 2), np.float32)}, r"has float32\[2,2\] at w, where nothing"),
        ([np.zeros((2, 2), np.float32)], "has dict at the whole tree, where list"),
    ],
)
def test_a_checkpoint_of_another_model_is_named(tmp_path, like, message):
    store = CheckpointStore(tmp_path)
    store.save(3, {"w": np.zeros((2, 2), np.float32)})
    with pytest.raises(UserError, match=message) as error:
        store.restore(like)
    assert f"{tmp_path}: step 3" in str(error.value) and "\n" not in str(error.value)
    assert store.steps == [3]


def test_bad_arguments(tmp_path):
    for keep in (0, -1, 1.5, True):
        with pytest.raises((ValueError, TypeError), match="keep="):
            CheckpointStore(tmp_path, keep=keep)
    store = CheckpointStore(tmp_path)
    for step in (-1, 1.0, "1", True):
        with pytest.raises((ValueError, TypeError), match="step="):
            store.save(step, {})
    with pytest.raises(UserError, match="no undamaged step 1: it has none"):
        store.restore(step=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        CheckpointStore(tmp_path / "file")
