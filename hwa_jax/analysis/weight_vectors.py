"""Weight trees as vectors: which of them span a space together, and the points of it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hwa_jax import particles
from hwa_jax.errors import UserError
from hwa_jax.paths import leaf_name

# A weight that is trained is hardly ever exactly zero, a pruned one always is.
_ACCIDENTAL_ZEROS = 0.01


@jax.jit
def combine(stacked: Any, coefficients: jax.Array) -> Any:
    """The points Σ_v c_pv W_v of the space that V weight trees span.

    Args:
        stacked: V trees, leaves [V, ...]. Floating leaves are combined in float32 at least and keep
            their dtype; of other leaves, which have to agree, the first tree's are taken.
        coefficients: float [P, V], a row per point.

    Returns:
        A stacked tree, leaves [P, ...]. What is zero in every tree is exactly zero in every point.

    Example:
        >>> print(combine({"w": jnp.array([[1.0, 0.0], [3.0, 0.0]])}, jnp.array([[0.5, 0.5], [-1.0, 1.0]]))["w"])
        [[2. 0.]
         [2. 0.]]
    """

    def points(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.broadcast_to(leaf[0], (len(coefficients), *leaf.shape[1:]))
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        factors = coefficients.reshape(*coefficients.shape, *(1 for _ in leaf.shape[1:])).astype(wide.dtype)
        return (factors * wide).sum(1).astype(leaf.dtype)

    return jax.tree.map(points, jax.tree.map(jnp.asarray, stacked))


def stack(trees: Mapping[str, Any], *, one_mask: bool = True) -> Any:
    """Weight trees that span a space, as one stacked tree with leaves [V, ...].

    Args:
        trees, one_mask: as `check`.

    Raises:
        UserError: as `check`.

    Example:
        >>> stack({"a": {"w": jnp.ones(2)}, "b": {"w": jnp.zeros(2)}})["w"].shape
        (2, 2)
    """
    check(trees, one_mask=one_mask)
    return particles.stack(trees.values())


def check(trees: Mapping[str, Any], *, one_mask: bool = True) -> None:
    """Raises unless weight trees span a space of networks.

    Args:
        trees: name -> concrete weights, at least one.
        one_mask: whether weights that are pruned (exactly zero) in one tree only are refused. Between a
            sparse and a dense network, or under two masks, no point has the mask of both; ask for it
            where just this is of interest, as between the successive cycles of a pruning.

    Raises:
        UserError: no trees; a leaf that only one of two trees has, or of another shape or dtype; weights
            that are not finite; whole numbers that differ; trees of different masks. It names tree and leaf.

    Example:
        >>> check({"a": {"w": jnp.ones(2)}, "b": {"w": jnp.array([1.0, jnp.nan])}})
        Traceback (most recent call last):
        ...
        hwa_jax.errors.UserError: leaf w of b holds 1 value that is not finite: the training has diverged, give other weights
    """
    if not trees:
        raise UserError("no weights were given: give at least one set, a window that is empty has none")
    leaves = {name: {leaf_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
              for name, tree in trees.items()}
    first, *others = trees
    for name in others:
        _require_alike(first, leaves[first], name, leaves[name])
    for name in trees:
        _require_finite(name, leaves[name])
    for name in others if one_mask else ():
        _require_one_mask(first, leaves[first], name, leaves[name])


def _require_alike(first, ours, name, theirs):
    for leaf in sorted(ours.keys() ^ theirs.keys()):
        there, elsewhere = (first, name) if leaf in ours else (name, first)
        raise UserError(f"leaf {leaf} is in {there} but not in {elsewhere}: give weights of one network")
    for leaf, mine in ours.items():
        other = theirs[leaf]
        if (mine.shape, mine.dtype) != (other.shape, other.dtype):
            raise UserError(f"leaf {leaf} is {mine.dtype}{list(mine.shape)} in {first} and {other.dtype}{list(other.shape)} "
                            f"in {name}: give weights of one network")
        if not _is_floating(mine) and (mine != other).any():
            raise UserError(f"leaf {leaf} holds whole numbers that differ between {first} and {name}: nothing lies between them")


def _require_finite(name, leaves):
    for leaf, values in leaves.items():
        number = np.count_nonzero(~np.isfinite(values.astype(np.float32))) if _is_floating(values) else 0
        if number:
            what = "1 value that is" if number == 1 else f"{number} values that are"
            raise UserError(f"leaf {leaf} of {name} holds {what} not finite: the training has diverged, give other weights")


def _require_one_mask(first, ours, name, theirs):
    for leaf, mine in ours.items():
        # Biases and normalization start at zero, and are not pruned.
        if mine.ndim < 2 or not _is_floating(mine):
            continue
        gone, gone_there = mine == 0, theirs[leaf] == 0
        if np.mean(gone != gone_there) > _ACCIDENTAL_ZEROS:
            raise UserError(f"leaf {leaf} is pruned by {gone.mean():.1%} in {first} and by {gone_there.mean():.1%} in {name}, and not in "
                            "the same places: give weights under one mask")


def _is_floating(values):
    return jnp.issubdtype(values.dtype, jnp.inexact)
