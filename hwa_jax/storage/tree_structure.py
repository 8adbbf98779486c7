"""The structure of a pytree as JSON, and back, without running anything that the JSON names.

A structure is nested dictionaries: containers with their children, leaves with shape
and dtype. Children of a dict are in the order of their sorted keys, so leaves come in
the order of ``jax.tree.leaves``. Known containers: dict with str or int keys, list,
tuple, NamedTuple and None.
"""

import collections
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np


def describe(tree):
    """Structure and leaves of a pytree.

    Args:
        tree: containers as in the module's text; leaves are numbers, arrays or
            ``jax.ShapeDtypeStruct``, of boolean or numeric dtype.

    Returns:
        The structure, which ``json`` can write, and the list of the leaves as they came.

    Raises:
        TypeError: a container or a leaf is of another kind; names its "/"-joined path.

    Example:
        >>> describe({"b": None, "a": np.zeros((2, 3), np.float32)})[0]["items"][0]
        ['a', {'type': 'leaf', 'shape': [2, 3], 'dtype': 'float32'}]
    """
    leaves = []

    def visit(node, path):
        if node is None:
            return {"type": "none"}
        if type(node) is dict:
            keys = sorted(_checked_keys(node, path))
            return {"type": "dict", "items": [[k, visit(node[k], (*path, k))] for k in keys]}
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            items = [visit(x, (*path, f)) for f, x in zip(node._fields, node)]
            return {
                "type": "namedtuple",
                "module": type(node).__module__,
                "name": type(node).__qualname__,
                "fields": list(node._fields),
                "items": items,
            }
        if type(node) in (list, tuple):
            items = [visit(x, (*path, i)) for i, x in enumerate(node)]
            return {"type": type(node).__name__, "items": items}
        leaves.append(node)
        shape, dtype = _checked_leaf(node, path)
        return {"type": "leaf", "shape": list(shape), "dtype": dtype.name}

    return visit(tree, ()), leaves


def rebuild(structure, leaves):
    """The pytree of ``structure`` with these leaves; the inverse of ``describe``.

    A NamedTuple class is looked up by module and qualified name among the modules that
    are loaded already and used if it has the same fields; otherwise an equal
    ``collections.namedtuple`` stands in for it. No module is imported and no code runs.

    Args:
        structure: as ``describe`` returns it.
        leaves: iterable of as many leaves as the structure has.

    Example:
        >>> rebuild(*describe({"a": (1.0, None)}))
        {'a': (1.0, None)}
    """
    leaves = iter(leaves)

    def build(node):
        kind = node["type"]
        if kind == "none":
            return None
        if kind == "leaf":
            return next(leaves)
        if kind == "dict":
            return {key: build(child) for key, child in node["items"]}
        children = [build(child) for child in node["items"]]
        if kind == "list":
            return children
        if kind == "tuple":
            return tuple(children)
        fields = tuple(node["fields"])
        # Not the class's own constructor, which would be code that the file names.
        return tuple.__new__(_named_tuple_class(node["module"], node["name"], fields), children)

    return build(structure)


def leaf_structures(structure):
    """The leaves of a structure with their paths, in order.

    Returns:
        list of pairs: "/"-joined path, and the leaf as ``{"shape": ..., "dtype": ...}``.

    Example:
        >>> [path for path, _ in leaf_structures(describe({"a": [1, 2]})[0])]
        ['a/0', 'a/1']
    """
    return [(path, node) for path, node in _nodes(structure) if node["type"] == "leaf"]


def first_difference(structure, other):
    """The first place where two structures differ, or None.

    The module of a NamedTuple does not count, nor does the order in which dicts were filled.

    Returns:
        None or a triple of text: "/"-joined path, what is there in ``structure``, and in ``other``.

    Example:
        >>> a, b = {"w": np.zeros(3, np.float32)}, {"w": np.zeros(4, np.float32)}
        >>> first_difference(describe(a)[0], describe(b)[0])
        ('w', 'float32[3]', 'float32[4]')
    """
    if structure == other:
        return None
    ours = {path: _text(node) for path, node in _nodes(structure)}
    theirs = {path: _text(node) for path, node in _nodes(other)}
    for path in ours | theirs:
        here, there = ours.get(path, "nothing"), theirs.get(path, "nothing")
        if here != there:
            return path or "the whole tree", here, there
    return None


def _nodes(structure, path=""):
    """Every node of a structure with its "/"-joined path, parents before children."""
    yield path, structure
    items = structure.get("items", [])
    if structure["type"] == "namedtuple":
        items = zip(structure["fields"], items)
    elif structure["type"] != "dict":
        items = enumerate(items)
    for key, child in items:
        yield from _nodes(child, f"{path}/{key}" if path else str(key))


def _text(node):
    if node["type"] == "leaf":
        return f"{node['dtype']}[{','.join(map(str, node['shape']))}]"
    if node["type"] == "namedtuple":
        return f"{node['name'].split('.')[-1]}({', '.join(node['fields'])})"
    return node["type"]


def _checked_keys(node, path):
    kinds = {type(key) for key in node}
    if not (kinds <= {str} or kinds <= {int}):
        where = "/".join(map(str, path)) or "the whole tree"
        raise TypeError(f"{where}: the keys of a dict must be all str or all int")
    return node


def _checked_leaf(leaf, path):
    """Shape and dtype of a leaf that can be stored."""
    where = "/".join(map(str, path)) or "the whole tree"
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(f"{where}: a PRNG key array: pass jax.random.key_data of it")
    if dtype is None or not hasattr(leaf, "shape"):
        if not isinstance(leaf, (bool, int, float, complex)):
            raise TypeError(
                f"{where}: {type(leaf).__qualname__} can be neither stored nor looked into:"
                " trees are made of dict, list, tuple, NamedTuple, None, arrays and numbers"
            )
        leaf = np.asarray(leaf)
        dtype = leaf.dtype
    if dtype != np.bool_ and not jnp.issubdtype(dtype, np.number):
        raise TypeError(f"{where}: an array of dtype {dtype}: only booleans and numbers are stored")
    return leaf.shape, np.dtype(dtype)


def _named_tuple_class(module, name, fields):
    found = sys.modules.get(module)
    for part in name.split("."):
        # vars() rather than getattr(), which may call a module's own __getattr__.
        found = vars(found).get(part) if isinstance(found, (types.ModuleType, type)) else None
    if isinstance(found, type) and issubclass(found, tuple):
        if getattr(found, "_fields", None) == fields:
            return found
    return _stand_in(name.split(".")[-1], fields)


@functools.lru_cache(maxsize=None)
def _stand_in(name, fields):
    """One class per name and fields: else two trees would differ for ``jax.tree.map``."""
    return collections.namedtuple(name, fields)
