"""The window on disk against NumPy in float64, and against everything that can go wrong with it."""

import os
import pathlib
import shutil
import tempfile
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hwa_jax.errors import UserError
from hwa_jax.storage import saved_trees, window_store
from hwa_jax.storage.float64_mean import Float64Mean
from hwa_jax.storage.window_store import WindowStore


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where possible: nothing here cuts the power, and a disk's fsync is slow."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield pathlib.Path(directory)


class Dense(NamedTuple):
    kernel: object
    bias: object


def member(step):
    rng = np.random.default_rng(step)
    dense = Dense(rng.normal(size=(3, 4)).astype(np.float32), np.float32(step))
    return {"layers": [dense, None], "moments": (rng.normal(size=5), {})}


def filled(directory, steps, size=3, keep=None):
    window = WindowStore(directory, size, keep=keep)
    for step in steps:
        window.push(step, member(step))
    window.wait()
    return window


def assert_mean_of(mean, steps):
    """Equal to the float64 mean of these members, rounded once, in structure and dtypes too."""
    members = [member(step) for step in steps]
    assert jax.tree.structure(mean) == jax.tree.structure(members[0])

    def check(found, *leaves):
        expected = np.mean([np.float64(leaf) for leaf in leaves], axis=0)
        assert type(found) is np.ndarray and found.dtype == leaves[0].dtype
        np.testing.assert_array_equal(found, expected.astype(found.dtype))

    jax.tree.map(check, mean, *members)


def test_a_hand_computed_window(tmp_path):
    # size 2: pushes 1.0, 2.0, 4.0 -> means 1.0, (1 + 2) / 2 = 1.5, (2 + 4) / 2 = 3.0
    with WindowStore(tmp_path, 2) as window:
        for step, value, mean in [(10, 1.0, 1.0), (20, 2.0, 1.5), (30, 4.0, 3.0)]:
            window.push(step, {"w": np.float32(value)})
            assert window.mean()["w"] == np.float32(mean)
        assert window.steps == window.stored_steps == [20, 30]


def test_the_window_continues_when_it_is_opened_again(tmp_path):
    for first in (1, 3, 5):
        with WindowStore(tmp_path, 3, keep=5) as window:
            window.push(first, member(first))
            window.push(first + 1, member(first + 1))
    with WindowStore(tmp_path, 3, keep=5) as window:
        assert (window.steps, window.stored_steps) == ([4, 5, 6], [2, 3, 4, 5, 6])
        assert_mean_of(window.mean(), [4, 5, 6])
    assert_mean_of(window.mean(), [4, 5, 6])  # reading goes on after close
    with pytest.raises(ValueError, match="closed"):
        window.push(7, member(7))


@pytest.mark.parametrize(
    "arguments, steps",
    [
        ({}, [7, 8, 9]),
        ({"size": 1}, [9]),
        ({"size": 5}, [5, 6, 7, 8, 9]),
        ({"size": 100}, list(range(10))),
        ({"stride": 2}, [5, 7, 9]),
        ({"stride": 4, "size": 100}, [1, 5, 9]),
        ({"stride": 100}, [9]),
        ({"upto": 8}, [6, 7, 8]),
        ({"upto": 8.5}, [6, 7, 8]),
        ({"upto": 100}, [7, 8, 9]),
        ({"upto": 1}, [0, 1]),
        ({"upto": 7, "size": 2, "stride": 3}, [4, 7]),
    ],
)
def test_mean_over_other_windows(tmp_path_factory, arguments, steps, _cache={}):
    if not _cache:
        _cache["window"] = filled(tmp_path_factory.mktemp("window"), range(10), keep=10)
    assert_mean_of(_cache["window"].mean(**arguments), steps)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 60), max_size=12, unique=True).map(sorted),
    st.integers(1, 14),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(-1, 61)),
)
def test_selection_is_that_of_numpy_slices(steps, size, stride, upto):
    # Without a disk: the members are in the cache.
    window = WindowStore("a/directory/that/is/not/there", 3)
    window._trees = type("Trees", (), {"steps": steps, "directory": "-"})()
    window._cache = {step: [np.float64(2.0**step)] for step in steps}
    window._treedef = jax.tree.structure(0)
    allowed = np.array([s for s in steps if upto is None or s <= upto])
    chosen = allowed[np.arange(len(allowed) - 1, -1, -stride)[:size]]
    if len(chosen) == 0:
        with pytest.raises(ValueError, match="no member"):
            window.mean(size, stride, upto)
    else:
        # Powers of two: the sum tells exactly which members are in it.
        assert window.mean(size, stride, upto) * len(chosen) == pytest.approx(
            sum(2.0**s for s in chosen), rel=1e-15
        )


def test_an_empty_window_has_no_mean(tmp_path):
    with WindowStore(tmp_path / "window", 2) as window:
        assert window.steps == window.stored_steps == []
        for arguments in ({}, {"upto": 3}):
            with pytest.raises(ValueError, match="has no member"):
                window.mean(**arguments)
        window.truncate(after=0)
        window.wait()
        assert not (tmp_path / "window").exists()
        window.push(5, member(5))
        with pytest.raises(ValueError, match="no member up to step 4"):
            window.mean(upto=4)


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"size": 0}, "size=0: must be at least 1"),
        ({"size": -1}, "size=-1"),
        ({"size": 2.0}, "size=2.0: must be an integer"),
        ({"size": True}, "size=True"),
        ({"size": 3, "keep": 2}, "keep=2: must be at least 3"),
    ],
)
def test_constructor_arguments(tmp_path, arguments, error):
    with pytest.raises((ValueError, TypeError), match=error):
        WindowStore(tmp_path, **arguments)


def test_mean_arguments(tmp_path):
    window = filled(tmp_path, [1])
    for arguments in ({"size": 0}, {"stride": 0}, {"stride": -1}, {"size": 1.5}):
        with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
            window.mean(**arguments)


def test_order_of_pushes(tmp_path):
    window = filled(tmp_path, [5, 7])
    with pytest.raises(ValueError, match=r"push\(6\): older than the newest member, 7"):
        window.push(6, member(6))
    for step, error in ((-1, ValueError), (8.0, TypeError), (True, TypeError), ("8", TypeError)):
        with pytest.raises(error):
            window.push(step, member(8))
    window.push(7, member(70))  # replaces
    assert window.steps == [5, 7]
    assert_mean_of(window.mean(), [5, 70])
    window.push(np.int64(8), member(8))
    window.push(jnp.int32(9), member(9))
    assert window.steps == [7, 8, 9]
    window.close()
    window = WindowStore(tmp_path, 3)
    assert_mean_of(window.mean(), [70, 8, 9])
    with pytest.raises(ValueError, match="older"):
        window.push(8, member(8))


def test_many_replacements_of_one_step(tmp_path):
    window = filled(tmp_path, [1])
    for version in range(12):  # past 9, where names stop sorting as numbers do
        window.push(2, member(version))
    assert_mean_of(window.mean(), [1, 11])
    window.close()
    assert sorted(os.listdir(tmp_path)) == ["step_00000001.0", "step_00000002.11"]
    assert_mean_of(WindowStore(tmp_path, 3).mean(), [1, 11])


def test_truncate_gives_the_window_of_an_uninterrupted_run(tmp_path):
    window = filled(tmp_path, range(1, 9), keep=6)
    window.truncate(after=6)
    assert (window.steps, window.stored_steps) == ([4, 5, 6], [3, 4, 5, 6])
    with pytest.raises(ValueError, match="older"):
        window.push(5, member(5))
    window.push(7, member(77))
    assert_mean_of(window.mean(), [5, 6, 77])
    window.truncate(after=100)
    assert window.stored_steps == [3, 4, 5, 6, 7]
    window.truncate(after=-1)
    assert window.stored_steps == []
    window.push(0, {"another": 1.0})  # an emptied window takes any model
    assert window.mean() == {"another": 1.0}


def test_retention_keeps_more_than_the_window(tmp_path):
    window = filled(tmp_path, range(10), size=2, keep=5)
    assert (window.steps, window.stored_steps) == ([8, 9], [5, 6, 7, 8, 9])
    assert sorted(os.listdir(tmp_path)) == [f"step_{s:08d}.0" for s in range(5, 10)]
    # Another size and another retention when it is opened again; reading removes nothing.
    window.close()
    window = WindowStore(tmp_path, 1)
    assert (window.steps, window.stored_steps) == ([9], [5, 6, 7, 8, 9])
    window.push(10, member(10))
    assert window.stored_steps == [10]


def test_members_come_back_bit_for_bit(tmp_path):
    window = filled(tmp_path, [3, 4])
    tree = window.member(3)
    assert type(tree["layers"][0]) is Dense and tree["layers"][1] is None
    for found, pushed in zip(jax.tree.leaves(tree), jax.tree.leaves(member(3)), strict=True):
        assert found.tobytes() == np.asarray(pushed).tobytes() and found.dtype == pushed.dtype
    found[...] = 0  # the caller's own
    assert_mean_of(window.mean(), [3, 4])
    with pytest.raises(UserError, match="no undamaged step 5: it has 3, 4"):
        window.member(5)


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn", ">f4"]
)
def test_floats_are_summed_in_float64_and_keep_their_dtype(tmp_path, dtype):
    dtype = jnp.dtype(dtype)
    wide = np.complex128 if dtype.kind == "c" else np.float64
    values = [(np.random.default_rng(s).normal(size=(2, 7)) * 4).astype(dtype) for s in range(9)]
    with WindowStore(tmp_path, 9) as window:
        for step, value in enumerate(values):
            window.push(step, value)
        for mean in (window.mean(), WindowStore(tmp_path, 9).mean()):
            assert mean.dtype == dtype.newbyteorder("=")
            expected = np.mean([v.astype(wide) for v in values], axis=0)
            np.testing.assert_array_equal(mean, expected.astype(mean.dtype))


def test_small_steps_are_not_lost_in_bfloat16(tmp_path):
    # 256 + 1 is 256 in bfloat16; the sum of 255 ones and one 256 is 511, its mean 1.99609375 -> 2.
    with WindowStore(tmp_path, 4) as window:
        for step, value in enumerate([256, 1, 1, 2]):
            window.push(step, jnp.asarray(value, jnp.bfloat16))
        assert window.mean() == 65.0  # 260 / 4; summed in bfloat16: 258 / 4 = 64.5


def test_integers_and_masks_are_the_newest_members(tmp_path):
    with WindowStore(tmp_path, 2) as window:
        for step in (1, 2, 3):
            counter = np.int32(step), np.uint32([step, 7]), np.array([step == 2])
            window.push(step, {"counter": counter, "empty": np.zeros((0, 4), np.float32)})
        mean = window.mean()
        assert mean["counter"][0] == 3 and mean["counter"][0].dtype == np.int32
        assert mean["counter"][1].tolist() == [3, 7] and mean["counter"][2].tolist() == [False]
        assert mean["empty"].shape == (0, 4) and mean["empty"].dtype == np.float32
        mean["counter"][1][0] = 99
        assert window.mean()["counter"][1].tolist() == [3, 7]
    assert WindowStore(tmp_path, 2).mean(upto=2)["counter"][2].tolist() == [True]


@pytest.mark.parametrize("tree", [{}, None, (), np.float32(2), {"a": [None, {}]}, 1.5])
def test_trees_with_no_leaf_or_one(tmp_path, tree):
    with WindowStore(tmp_path, 2) as window:
        window.push(1, tree)
        window.push(2, tree)
    mean = WindowStore(tmp_path, 2).mean()
    assert jax.tree.structure(mean) == jax.tree.structure(tree)
    assert jax.tree.leaves(mean) == jax.tree.leaves(tree)


def test_nan_and_inf_are_stored_and_leave_the_window(tmp_path):
    with WindowStore(tmp_path, 2) as window:
        for step, value in enumerate([np.nan, 1.0, np.inf, -np.inf, 3.0, 5.0]):
            window.push(step, np.float32(value))
            if step in (1, 3):
                assert np.isnan(window.mean())
        assert window.mean() == 4.0


def test_huge_members_leave_no_trace_behind(tmp_path):
    # A running sum that subtracts would answer (1e30 + 1 - 1e30 + 2) / 2 = 1.
    with WindowStore(tmp_path, 2) as window:
        for step, value in enumerate([1e30, 1.0, 2.0]):
            window.push(step, np.float32(value))
        assert window.mean() == 1.5


def test_device_arrays_are_copied_before_push_returns(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("device",))
    sharded = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("device")))
    step_on = jax.jit(lambda x: x + 1, donate_argnums=0)
    host = np.arange(3.0)
    with WindowStore(tmp_path, 1) as window:
        window.push(1, {"host": host, "device": sharded, "optax": optax.MaskedNode()})
        host[:] = -1
        step_on(sharded).block_until_ready()
        mean = window.mean()
    assert isinstance(mean["optax"], optax.MaskedNode)
    assert mean["host"].tolist() == [0, 1, 2] and mean["device"].tolist() == list(range(16))


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a": [np.zeros(3, "f4")]}, r"a/0 is float32\[3\], but float32\[2\]"),
        ({"a": [np.zeros(2)]}, r"a/0 is float64\[2\], but float32\[2\]"),
        ({"a": (np.zeros(2, "f4"),)}, "a is tuple, but list"),
        ({"a": [np.zeros(2, "f4")], "b": 1.0}, r"b is float64\[\], but nothing"),
        ({"b": [np.zeros(2, "f4")]}, "a is nothing, but list"),
    ],
)
def test_a_member_of_another_model_is_refused(tmp_path, tree, message):
    with WindowStore(tmp_path, 2) as window:
        window.push(1, {"a": [np.zeros(2, "f4")]})
        with pytest.raises(ValueError, match=message):
            window.push(2, tree)
        window.push(2, {"a": [np.ones(2, "f4")]})
    with WindowStore(tmp_path, 2) as window:
        with pytest.raises(UserError, match=message) as error:
            window.push(3, tree)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
        assert window.steps == [1, 2]


def test_what_cannot_be_stored_is_refused_at_once(tmp_path):
    with WindowStore(tmp_path, 2) as window:
        for leaf in ("text", jax.random.key(0), object()):
            with pytest.raises(TypeError, match="^a/0: "):
                window.push(1, {"a": [leaf]})
        assert window.steps == []


# Damage


def step_path(directory, step):
    return directory / f"step_{step:08d}.0"


def files_of(directory, step):
    return sorted(path for path in step_path(directory, step).rglob("*") if path.is_file())


def truncate_arrays(path):
    for file in (path / "arrays").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
    "tree.json is missing": lambda path: (path / "tree.json").unlink(),
    "tree.json is empty": lambda path: (path / "tree.json").write_text(""),
    "tree.json is altered": lambda path: (path / "tree.json").write_text(
        (path / "tree.json").read_text().replace("layers", "lawyers")
    ),
    "tree.json is not text": lambda path: (path / "tree.json").write_bytes(b"\xff\xfe\n{}"),
    "no arrays": lambda path: shutil.rmtree(path / "arrays"),
    "half the arrays": lambda path: shutil.rmtree(path / "arrays" / "d"),
    "arrays of another step": lambda path: (
        shutil.rmtree(path / "arrays"),
        shutil.copytree(path.parent / "step_00000001.0" / "arrays", path / "arrays"),
    ),
    "truncated": truncate_arrays,
    "empty": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize(
    "damage, damaged", [*((damage, 4) for damage in DAMAGE), ("truncated", 3), ("truncated", 6)]
)
def test_a_damaged_member_is_left_out_with_a_warning(tmp_path, caplog, damage, damaged):
    filled(tmp_path, range(1, 7), keep=6).close()
    DAMAGE[damage](step_path(tmp_path, damaged))
    window = WindowStore(tmp_path, 3, keep=6)
    whole = [step for step in range(1, 7) if step != damaged]
    assert window.steps == whole[-3:]
    assert_mean_of(window.mean(), whole[-3:])
    assert_mean_of(window.mean(size=6), whole)
    assert window.stored_steps == whole
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert f"step {damaged} " in line and str(step_path(tmp_path, damaged)) in line
    with pytest.raises(UserError, match="no undamaged step"):
        window.member(damaged)
    # Training goes on: the damaged step is pushed again, or pushed out of the window.
    again = whole[-1] + 1
    window.push(again, member(60))
    assert_mean_of(window.mean(), [*whole[-2:], 60])
    for step in range(again + 1, again + 7):
        window.push(step, member(step))
    window.close()
    assert sorted(os.listdir(tmp_path)) == [f"step_{again + i:08d}.0" for i in range(1, 7)]


def test_damage_is_noticed_when_the_member_is_asked_for(tmp_path):
    filled(tmp_path, range(1, 5), size=1, keep=4).close()
    window = WindowStore(tmp_path, 1, keep=4)
    truncate_arrays(step_path(tmp_path, 2))
    with pytest.raises(UserError, match="step_00000002.0: is damaged .*: delete this directory"):
        window.member(2)
    assert window.stored_steps == [1, 3, 4]


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path):
    filled(tmp_path, [1, 2]).close()
    expected = WindowStore(tmp_path, 1).mean()
    noticed = set()
    for file in files_of(tmp_path, 2):
        original = file.read_bytes()
        for position in {0, len(original) // 3, len(original) // 2, len(original) - 1}:
            altered = bytearray(original)
            altered[position] ^= 0x10
            file.write_bytes(altered)
            window = WindowStore(tmp_path, 1)
            if window.steps == [1]:
                noticed.add(file.name)
            else:
                assert window.steps == [2]
                jax.tree.map(np.testing.assert_array_equal, window.mean(), expected)
        file.write_bytes(original)
    assert "tree.json" in noticed and len(noticed) > 2


def test_members_of_two_models_in_one_directory(tmp_path, caplog):
    filled(tmp_path, [1, 2, 3]).close()
    with WindowStore(tmp_path / "other", 3) as other:
        other.push(2, {"w": 1.0})
    shutil.rmtree(step_path(tmp_path, 2))
    shutil.move(step_path(tmp_path / "other", 2), tmp_path)
    window = WindowStore(tmp_path, 3)
    assert window.steps == [1, 3]
    assert "w is float64[]" in caplog.text or "layers" in caplog.text
    assert_mean_of(window.mean(), [1, 3])


def test_leftovers_are_ignored_and_strangers_are_left_alone(tmp_path):
    filled(tmp_path, [1, 2]).close()
    shutil.copytree(step_path(tmp_path, 2), tmp_path / ".saving-step_00000003.0")
    shutil.copytree(step_path(tmp_path, 1), tmp_path / ".removed-step_00000000.0")
    shutil.copytree(step_path(tmp_path, 1), tmp_path / "step_00000002.1")  # the old one not yet gone
    for name in ("notes.txt", ".hidden", "step_1", "step_00000009.0.bak"):
        (tmp_path / name).write_text("")
    before = sorted(os.listdir(tmp_path))
    window = WindowStore(tmp_path, 3)
    assert window.steps == [1, 2]
    assert_mean_of(window.mean(), [1, 1])
    assert sorted(os.listdir(tmp_path)) == before  # reading changes nothing
    window.push(3, member(3))
    assert_mean_of(window.mean(), [1, 1, 3])
    window.close()
    assert sorted(os.listdir(tmp_path)) == [
        ".hidden", "notes.txt", "step_00000001.0", "step_00000002.1", "step_00000003.0",
        "step_00000009.0.bak", "step_1",
    ]  # fmt: skip


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file"):
        WindowStore(tmp_path / "file", 2)
    with WindowStore(tmp_path / "file" / "window", 2) as window:
        window.push(1, member(1))
        with pytest.raises(UserError, match="cannot be written"):
            window.wait()


# The worker


def test_push_returns_before_the_save_and_the_queue_is_bounded(tmp_path, monkeypatch):
    may_write, pushed = threading.Event(), []
    write = saved_trees._write_arrays
    monkeypatch.setattr(
        saved_trees, "_write_arrays", lambda *args: (may_write.wait(30), write(*args))
    )
    window = WindowStore(tmp_path, 9)

    def push_many():
        for step in range(9):
            window.push(step, member(step))
            pushed.append(step)

    pusher = threading.Thread(target=push_many)
    pusher.start()
    # One in the worker's hands, the queue full, one more waiting for its place.
    while len(pushed) < 1 + window_store._QUEUE_LENGTH:
        assert pusher.is_alive()
    pusher.join(0.2)
    assert pusher.is_alive() and len(pushed) == 1 + window_store._QUEUE_LENGTH
    may_write.set()
    pusher.join()
    assert_mean_of(window.mean(), range(9))
    window.close()


@pytest.mark.parametrize("surface", ["push", "wait", "close", "mean", "steps", "exit"])
def test_an_error_of_the_worker_surfaces_once_and_leaves_no_hole(tmp_path, monkeypatch, surface):
    window = filled(tmp_path, [1, 2])
    failing = threading.Event()

    def fail(*_):
        failing.wait(30)
        raise RuntimeError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(saved_trees, "_write_arrays", fail)
        window.push(3, member(3))
        window.push(4, member(4))  # waits behind the one that fails, and is dropped with it
        failing.set()
        window._queue.join()
    actions = {
        "push": lambda: window.push(5, member(5)),
        "wait": window.wait,
        "close": window.close,
        "mean": window.mean,
        "steps": lambda: window.steps,
        "exit": lambda: window.__exit__(None, None, None),
    }
    with pytest.raises(RuntimeError, match="on fire"):
        actions[surface]()
    assert window.steps == [1, 2]
    assert_mean_of(window.mean(), [1, 2])
    if surface not in ("close", "exit"):
        window.push(3, member(3))
        assert_mean_of(window.mean(), [1, 2, 3])
    window.close()
    window.close()
    assert WindowStore(tmp_path, 3).steps in ([1, 2], [1, 2, 3])


def test_a_model_larger_than_the_cache_is_read_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(window_store, "_CACHE_BYTES", 0)
    window = filled(tmp_path, range(6), keep=5)
    assert window._cache == {}
    assert_mean_of(window.mean(), [3, 4, 5])
    window.close()
    assert_mean_of(WindowStore(tmp_path, 3).mean(), [3, 4, 5])


def test_what_was_evicted_leaves_the_memory(tmp_path):
    window = filled(tmp_path, range(20), size=2, keep=4)
    assert sorted(window._cache) == window.stored_steps == [16, 17, 18, 19]


def test_a_second_window_reads_while_the_first_pushes(tmp_path):
    with WindowStore(tmp_path, 2) as writer:
        for step in range(1, 8):
            writer.push(step, member(step))
            writer.wait()
            reader = WindowStore(tmp_path, 2)
            assert_mean_of(reader.mean(), reader.steps)
            assert reader.steps == [step - 1, step][-min(step, 2) :]


# Arithmetic over many members


def test_ten_thousand_members_in_the_accumulator():
    rng = np.random.default_rng(0)
    base = rng.normal(size=50)
    mean, exact = Float64Mean(), np.zeros(50, np.longdouble)
    for _ in range(10_000):
        value = (base + 1e-3 * rng.normal(size=50)).astype(np.float32)
        mean.add([value])
        exact += value
    # One rounding to float32 at the end is all that is left: 2**-24 = 6e-8.
    np.testing.assert_allclose(mean.value()[0], exact / 10_000, rtol=6e-8)


@pytest.mark.slow
def test_ten_thousand_pushes(tmp_path):
    rng, size = np.random.default_rng(0), 50
    base, pushed = rng.normal(size=8), []
    with WindowStore(tmp_path, size) as window:
        for step in range(10_000):
            pushed.append((base + 1e-2 * rng.normal(size=8)).astype(np.float32))
            window.push(step, pushed[-1])
            if step % 1000 == 999:
                exact = np.mean(np.float64(pushed[-size:]), axis=0)
                np.testing.assert_allclose(window.mean(), exact, rtol=6e-8)
    assert window.stored_steps == list(range(9_950, 10_000))
    np.testing.assert_array_equal(WindowStore(tmp_path, size).mean(), window.mean())
