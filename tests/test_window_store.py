"""The window on disk against NumPy in float64: windows, retention, dtypes, structures."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from storage_cases import Dense, assert_mean_of, filled, member, tmp_path  # noqa: F401

from hwa_jax.errors import UserError
from hwa_jax.storage import tree_structure
from hwa_jax.storage.float64_mean import Float64Mean
from hwa_jax.storage.window_store import WindowStore


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


@pytest.fixture(scope="module")
def window_of_ten(tmp_path_factory):
    return filled(tmp_path_factory.mktemp("window"), range(10), keep=10)


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
def test_mean_over_other_windows(window_of_ten, arguments, steps):
    assert_mean_of(window_of_ten.mean(**arguments), steps)


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


def test_only_a_tree_unlike_the_last_one_is_walked(tmp_path, monkeypatch):
    describe, walks = tree_structure.describe, []
    monkeypatch.setattr(tree_structure, "describe", lambda tree: walks.append(1) or describe(tree))
    with WindowStore(tmp_path, size=3) as window:
        for step in (1, 2, 3):
            window.push(step, {"a": np.full(2, step, np.float32), "b": step})
        assert len(walks) == 1
        for other in ({"a": np.ones(2, np.float32), "b": 1.5}, {"a": np.ones(2, np.float64), "b": 1}, {"a": [1.0, 1.0], "b": 1}):
            with pytest.raises(UserError, match="push one structure"):
                window.push(4, other)
        window.truncate(after=0)
        window.push(1, [1.0])
        window.push(2, [2.0])
        assert window.mean() == [1.5]


def test_a_window_of_another_model_is_refused_before_the_first_push(tmp_path):
    window = WindowStore(tmp_path, 2)
    window.require_like({"w": 1.0})  # an empty window takes any model
    window.push(1, {"w": np.zeros(2, np.float32)})
    window.require_like({"w": jax.ShapeDtypeStruct((2,), jnp.float32)})
    with pytest.raises(UserError, match=r"w is float32\[2\], where bfloat16\[2\] is expected"):
        window.require_like({"w": jax.ShapeDtypeStruct((2,), jnp.bfloat16)})
    window.close()
    with pytest.raises(UserError, match="w is float32.*choose another directory"):
        WindowStore(tmp_path, 2).require_like({"w": jax.ShapeDtypeStruct((3,), jnp.float32)})


def test_what_cannot_be_stored_is_refused_at_once(tmp_path):
    with WindowStore(tmp_path, 2) as window:
        for leaf in ("text", jax.random.key(0), object()):
            with pytest.raises(TypeError, match="^a/0: "):
                window.push(1, {"a": [leaf]})
        assert window.steps == []


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
