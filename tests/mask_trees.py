"""Random trees of weights with their masks, and selection by a full sort in float64."""

from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import optax
from hypothesis import strategies as st

KINDS = ("normal", "ties", "denormal", "infinite", "bits")


class Layer(NamedTuple):
    """A container that is neither dict nor list."""

    kernel: Any
    bias: Any


def weights(rng, shape, dtype, kind):
    """An array without NaN whose magnitudes tie, vanish or overflow as `kind` says."""
    dtype = np.dtype(dtype)
    if kind == "normal":
        return rng.normal(size=shape).astype(dtype)
    if kind == "ties":
        return rng.choice([0.0, -0.0, 0.5, -0.5, 1.0, -1.0], size=shape).astype(dtype)
    if kind == "infinite":
        return rng.choice([0.0, 1.0, np.inf, -np.inf], size=shape).astype(dtype)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    if kind == "denormal":
        # Patterns next to zero, of either sign.
        return (rng.integers(0, 6, shape).astype(unsigned) | rng.integers(0, 2, shape).astype(unsigned) << (8 * dtype.itemsize - 1)).view(dtype)
    patterns = rng.integers(0, np.iinfo(unsigned).max, shape, unsigned, endpoint=True).view(dtype)
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(patterns), dtype.type(0), patterns)


@st.composite
def trees(draw, dtypes=(np.float32, np.float16, ml_dtypes.bfloat16)):
    """(weights, mask) of random structure: NumPy leaves; some are empty, one number, masked already or not prunable."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=2))
    dtype_pool = draw(st.lists(st.sampled_from(dtypes), min_size=1, max_size=3))

    def leaf():
        shape = tuple(rng.choice([0, 1, 1, 2, 3, 5, 8], size=rng.integers(0, 4)))
        value = weights(rng, shape, dtype_pool[rng.integers(len(dtype_pool))], kinds[rng.integers(len(kinds))])
        if rng.random() < 0.15:
            return value, optax.MaskedNode()
        return value, rng.random(shape) < rng.choice([0.0, 0.2, 0.7, 1.0, 1.0])

    def tree(depth):
        kind = rng.integers(4) if depth else 0
        if kind == 0:
            return leaf()
        children = [tree(depth - 1) for _ in range(2 if kind == 3 else rng.integers(1, 4))]
        # Names that sort against the order in which they are drawn.
        pack = {1: lambda c: {f"n{9 - i}": x for i, x in enumerate(c)}, 2: list, 3: lambda c: Layer(*c)}[kind]
        return pack([c[0] for c in children]), pack([c[1] for c in children])

    return tree(draw(st.integers(0, 3)))


def prunable(mask, tree):
    """The leaves of `tree` that have a mask, in order."""
    is_node = lambda node: isinstance(node, optax.MaskedNode)
    pairs = zip(jax.tree.leaves(mask, is_leaf=is_node), jax.tree.leaves(tree, is_leaf=is_node), strict=True)
    return [np.asarray(leaf) for keep, leaf in pairs if not is_node(keep)]


def remove_by_sorting(values, kept, number):
    """What selection has to give: a stable full sort by (magnitude, index)."""
    flat = np.concatenate([np.abs(np.asarray(v).astype(np.float64)).ravel() for v in values] or [[]])
    remains = np.concatenate([np.asarray(k).ravel() for k in kept] or [np.zeros(0, bool)])
    index = np.flatnonzero(remains)
    order = np.lexsort((index, flat[index]))
    remains = remains.copy()
    remains[index[order[:number]]] = False
    ends = np.cumsum([np.size(k) for k in kept])
    return [part.reshape(np.shape(k)) for part, k in zip(np.split(remains, ends[:-1]) if kept else [], kept)]
