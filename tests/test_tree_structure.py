"""Structures survive JSON, and nothing that a file names is imported or run."""

import collections
import json
import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwa_jax.storage.tree_structure import describe, first_difference, leaf_structures, rebuild


class Pair(NamedTuple):
    left: object
    right: object


class Outer:
    class Inner(NamedTuple):
        value: object


def through_json(tree):
    structure, leaves = describe(tree)
    return rebuild(json.loads(json.dumps(structure)), leaves)


leaves = st.sampled_from([np.float32(1), np.arange(3), 2, 2.5, True, None, np.zeros((0, 2))])
trees = st.recursive(
    leaves,
    lambda child: st.one_of(
        st.lists(child, max_size=3),
        st.lists(child, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), child, max_size=3),
        st.dictionaries(st.integers(-3, 12), child, max_size=3),
        st.builds(Pair, child, child),
        st.builds(Outer.Inner, child),
    ),
    max_leaves=12,
)


@given(trees)
def test_structure_and_leaf_order_are_those_of_jax(tree):
    structure, found = describe(tree)
    assert [id(x) for x in found] == [id(x) for x in jax.tree.leaves(tree)]
    assert jax.tree.structure(through_json(tree)) == jax.tree.structure(tree)
    assert len(leaf_structures(structure)) == len(found)
    assert first_difference(structure, json.loads(json.dumps(structure))) is None


@pytest.mark.parametrize(
    "stored, given, difference",
    [
        ({"a": np.zeros(3)}, {"a": np.zeros(4)}, ("a", "float64[3]", "float64[4]")),
        ({"a": np.zeros(3, "f4")}, {"a": np.zeros(3)}, ("a", "float32[3]", "float64[3]")),
        ({"a": 1.0, "b": 2.0}, {"a": 1.0}, ("b", "float64[]", "nothing")),
        ({"a": 1.0}, {"a": 1.0, "b": [2]}, ("b", "nothing", "list")),
        ([1, {"x": 2}], [1, {"x": 2.0}], ("1/x", "int64[]", "float64[]")),
        ([1], (1,), ("the whole tree", "list", "tuple")),
        ({"a": None}, {"a": {}}, ("a", "none", "dict")),
        (Pair(1, 2), (1, 2), ("the whole tree", "Pair(left, right)", "tuple")),
        ([Pair(1, 2)], [Pair(1, 2.0)], ("0/right", "int64[]", "float64[]")),
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}, None),
    ],
)
def test_first_difference_names_the_path_and_both(stored, given, difference):
    assert first_difference(describe(stored)[0], describe(given)[0]) == difference


def test_abstract_and_device_leaves_are_described_like_arrays():
    array = np.zeros((2, 3), jnp.bfloat16)
    expected = {"type": "leaf", "shape": [2, 3], "dtype": "bfloat16"}
    for leaf in (array, jnp.asarray(array), jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)):
        assert describe(leaf)[0] == expected


@pytest.mark.parametrize(
    "tree, message",
    [
        ({"a": {"b": "text"}}, "a/b: str can be neither stored"),
        ([np.array(["x"])], "0: an array of dtype <U1"),
        ({"a": np.array([None])}, "a: an array of dtype object"),
        ({"rng": jax.random.key(0)}, "rng: a PRNG key array: pass jax.random.key_data"),
        ({"a": {1: 0, "b": 0}}, "a: the keys of a dict"),
        ({(1, 2): 0}, "the whole tree: the keys of a dict"),
        ({"a": collections.OrderedDict(b=1)}, "a: OrderedDict can be neither stored"),
        ({"a": np.zeros(1, [("x", "f4")])}, "a: an array of dtype"),
    ],
)
def test_what_cannot_be_stored_is_named(tree, message):
    with pytest.raises(TypeError, match=message.replace("(", r"\(")):
        describe(tree)


def test_a_class_that_is_not_loaded_gets_one_stand_in():
    structure, found = describe(Pair(1, 2))
    structure["module"] = "a_module_that_nobody_has"
    first, second = rebuild(structure, found), rebuild(structure, found)
    assert type(first).__name__ == "Pair" and first._fields == ("left", "right")
    assert type(first) is type(second) and first == (1, 2)
    assert "a_module_that_nobody_has" not in sys.modules


def test_a_class_with_other_fields_is_not_used():
    structure, found = describe(Pair(1, 2))
    structure["fields"] = ["left", "middle"]
    assert rebuild(structure, found)._fields == ("left", "middle")


def test_nothing_that_the_file_names_runs(monkeypatch):
    ran = []

    class Trap(tuple):
        _fields = ("value",)

        def __new__(cls, *_):
            ran.append("constructor")

    module = types.ModuleType("trap")
    module.Trap = Trap
    module.call = lambda *_: ran.append("function")
    module.__getattr__ = lambda name: ran.append("module attribute")
    monkeypatch.setitem(sys.modules, "trap", module)
    for module_name, name in [
        ("trap", "Trap"), ("trap", "call"), ("trap", "missing"), ("os", "system"), ("trap", "a.b"),
        ("builtins", "tuple"),
    ]:  # fmt: skip
        structure = {
            "type": "namedtuple", "module": module_name, "name": name, "fields": ["value"],
            "items": [{"type": "none"}],
        }  # fmt: skip
        tree = rebuild(structure, [])
        assert tuple(tree) == (None,) and tree._fields == ("value",)
    assert ran == []


def test_fields_that_are_code_are_refused():
    structure = {"type": "namedtuple", "module": "m", "name": "N", "items": [{"type": "none"}]}
    for field in ("__import__('os')", "a b", "_hidden", "class"):
        with pytest.raises(ValueError):
            rebuild({**structure, "fields": [field]}, [])
