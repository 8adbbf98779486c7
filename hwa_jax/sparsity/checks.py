"""What has to hold between a mask and a tree of weights, and between masks: errors that name the leaf."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hwa_jax.errors import UserError
from hwa_jax.paths import leaf_name


def is_masked_node(node: Any) -> bool:
    """Whether a node of a mask stands for a leaf that is not prunable.

    Example:
        >>> is_masked_node(optax.MaskedNode())
        True
    """
    return isinstance(node, optax.MaskedNode)


def check(mask: Any, params: Any, *, stacked: bool = False) -> None:
    """Raises unless the mask fits the weights; costs no look at a value.

    Args:
        mask: bool leaves, `optax.MaskedNode()` where a leaf of `params` is not prunable.
        params: a tree of weights.
        stacked: whether leaves [N, ...] of N particles under a mask of leaves [...] are allowed too.

    Raises:
        UserError: a leaf that only one of the two has, of another shape, or a mask that is not
            boolean; it names the leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> check({"kernel": jnp.ones((2, 3), bool)}, {"kernel": jnp.zeros((2, 2))})
        Traceback (most recent call last):
        ...
        hwa_jax.errors.UserError: mask of kernel has shape (2, 3), the weights (2, 2): make a mask of these weights
    """
    for name, kept, weights in _aligned(mask, params, ("the mask", "the weights")):
        if is_masked_node(kept):
            continue
        if jnp.result_type(kept) != bool:
            raise UserError(f"mask of {name} has dtype {jnp.result_type(kept)}: must be bool")
        shape = jnp.shape(weights)
        if jnp.shape(kept) != shape and not (stacked and jnp.shape(kept) == shape[1:]):
            raise UserError(f"mask of {name} has shape {jnp.shape(kept)}, the weights {shape}: make a mask of these weights")


def check_equal(*masks: Any) -> None:
    """Raises unless all masks are equal: weights under different masks have no meaningful mean.

    Args:
        masks: concrete masks, at least one.

    Raises:
        UserError: a mask with another structure or other values than the first; it names the leaf,
            and how many weights only one of the two keeps.

    Example:
        >>> import jax.numpy as jnp
        >>> check_equal({"kernel": jnp.array([True, True])}, {"kernel": jnp.array([True, False])})
        Traceback (most recent call last):
        ...
        hwa_jax.errors.UserError: masks 0 and 1 differ in 1 of 2 weights of kernel: particles that are averaged share one mask
    """
    advice = "particles that are averaged share one mask"
    for index, mask in enumerate(masks[1:], 1):
        for name, first, other in _aligned(masks[0], mask, ("mask 0", f"mask {index}")):
            if is_masked_node(first) and is_masked_node(other):
                continue
            if is_masked_node(first) or is_masked_node(other):
                raise UserError(f"{name} is prunable in only one of masks 0 and {index}: {advice}")
            if jnp.shape(first) != jnp.shape(other):
                raise UserError(f"{name} has shape {jnp.shape(first)} in mask 0, {jnp.shape(other)} in mask {index}: {advice}")
            differing = np.count_nonzero(np.asarray(first) != np.asarray(other))
            if differing:
                raise UserError(f"masks 0 and {index} differ in {differing} of {np.size(first)} weights of {name}: {advice}")


def _aligned(first, second, titles):
    """(name, leaf of the first tree, leaf of the second) for all leaves, those that are not prunable included."""
    leaves = [
        {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_masked_node)}
        for tree in (first, second)
    ]
    for there, elsewhere, names in ((0, 1, titles), (1, 0, titles[::-1])):
        for name in leaves[there].keys() - leaves[elsewhere].keys():
            raise UserError(f"leaf {name} is in {names[0]} but not in {names[1]}: make a mask of these weights")
    structures = [jax.tree.structure(tree, is_leaf=is_masked_node) for tree in (first, second)]
    if structures[0] != structures[1]:
        raise UserError(f"{titles[0]} and {titles[1]} are nested in other containers: {structures[0]} against {structures[1]}")
    return [(name, leaf, leaves[1][name]) for name, leaf in leaves[0].items()]
