"""Masks: which weights of a network remain.

A mask has the structure of the weights. A prunable leaf is a boolean array of the leaf's shape, True
where the weight remains; a leaf that is not prunable is `optax.MaskedNode()`, which holds no array, so
that a mask always knows what it speaks of. Masks are data: pass them to jitted functions as arguments.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hwa_jax import particles
from hwa_jax.errors import UserError
from hwa_jax.paths import leaf_name, matching
from hwa_jax.sparsity.checks import check as check
from hwa_jax.sparsity.checks import check_equal as check_equal
from hwa_jax.sparsity.checks import is_masked_node
from hwa_jax.sparsity.pruners import PRUNERS as PRUNERS
from hwa_jax.sparsity.pruners import planned_counts as planned_counts
from hwa_jax.sparsity.pruners import prune as prune
from hwa_jax.sparsity.pruners import prune_by_magnitude as prune_by_magnitude


def ones(params: Any, prunable: str | None = None) -> Any:
    """The mask under which all weights remain.

    Args:
        params: a tree of weights, or of their shapes and dtypes.
        prunable: a regular expression, searched in the "/"-joined path of a leaf: "kernel$". None
            means every floating leaf of two or more dimensions: no biases, no normalization.

    Returns:
        JAX arrays of True, and `optax.MaskedNode()` for leaves that are not prunable.

    Raises:
        UserError: nothing is prunable, or a leaf is that is not floating (real); it names the leaf.

    Example:
        >>> ones({"dense": {"bias": jnp.zeros(2), "kernel": jnp.zeros((1, 2))}})
        {'dense': {'bias': MaskedNode(), 'kernel': Array([[ True,  True]], dtype=bool)}}
    """
    shapes = jax.eval_shape(lambda tree: tree, params)
    if prunable is None:
        chosen = jax.tree.map(lambda leaf: leaf.ndim >= 2 and _is_real(leaf), shapes)
        if not any(jax.tree.leaves(chosen)):
            raise UserError("prunable=None: no floating leaf has two or more dimensions; give a regular expression over paths")
    else:
        chosen = matching(prunable, shapes, "prunable")

    def leaf_mask(path, leaf, is_prunable):
        if not is_prunable:
            return optax.MaskedNode()
        if not _is_real(leaf):
            raise UserError(
                f"prunable={prunable!r} matches {leaf_name(path)}, which is {leaf.dtype}: only real floating leaves can be pruned"
            )
        return jnp.ones(leaf.shape, bool)

    return jax.tree_util.tree_map_with_path(leaf_mask, shapes, chosen)


def apply(mask: Any, params: Any) -> Any:
    """The weights, exactly zero where the mask is False: θ∘m.

    Args:
        mask: as made by `ones`.
        params: a tree of weights; NaN and infinities go too where the mask is False.

    Returns:
        A tree of the structure, shapes and dtypes of `params`.

    Raises:
        UserError: the mask does not fit; it names the leaf.

    Example:
        >>> print(apply({"kernel": jnp.array([True, False])}, {"kernel": jnp.array([1.0, 2.0])})["kernel"])
        [1. 0.]
    """
    check(mask, params)
    return zero_outside(mask, params)


def zero_outside(mask: Any, tree: Any) -> Any:
    """`apply` without its check, for trees that only resemble the weights, as parts of an optimizer's state do.

    Arrays may have axes before the mask's, be missing (`optax.MaskedNode()`), or be several where the
    weights have one; those whose last axes are not the mask's are left alone.

    Example:
        >>> print(zero_outside({"kernel": jnp.array([True, False])}, {"kernel": jnp.ones((3, 2))})["kernel"])
        [[1. 0.]
         [1. 0.]
         [1. 0.]]
    """

    def array(keep, value):
        first = jnp.ndim(value) - jnp.ndim(keep)
        fits = first >= 0 and jnp.shape(value)[first:] == jnp.shape(keep)
        return jnp.where(keep, value, jnp.zeros_like(value)) if fits else value

    def below_mask(keep, subtree):
        return subtree if is_masked_node(keep) else jax.tree.map(lambda value: array(keep, value), subtree)

    return jax.tree.map(below_mask, mask, tree, is_leaf=is_masked_node)


def count(mask: Any) -> int:
    """The number of weights that remain, of a concrete mask or a part of one.

    Example:
        >>> count({"kernel": jnp.array([True, False, True]), "bias": optax.MaskedNode()})
        2
    """
    return sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(mask))


def density(mask: Any) -> float:
    """The share of the prunable weights that remain, of a concrete mask or a part of one, in [0, 1].

    Raises:
        ValueError: no weight is prunable there.

    Example:
        >>> density({"kernel": jnp.array([True, False, False, True]), "bias": optax.MaskedNode()})
        0.5
    """
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(mask))
    if not size:
        raise ValueError("density: the mask holds no prunable weight")
    return count(mask) / size


def mean(mask: Any, stacked: Any) -> Any:
    """The mean over particles that share one mask; exactly zero where it is False.

    Weights under different masks have no meaningful mean: a particle that has a weight where the mask
    is False is refused. Masks themselves are compared by `check_equal`.

    Args:
        mask: as made by `ones`, without a particle axis.
        stacked: concrete weights of N particles, leaves [N, ...].

    Returns:
        Leaves [...] of the same dtypes, as `hwa_jax.particles.mean`.

    Raises:
        UserError: the mask does not fit, or a particle has a weight outside it; it names leaf and particle.
        ValueError, TypeError: as `particles.mean`.

    Example:
        >>> mask = {"kernel": jnp.array([True, False])}
        >>> print(mean(mask, {"kernel": jnp.array([[1.0, 0.0], [2.0, 0.0]])})["kernel"])
        [1.5 0. ]
    """
    num_particles = particles.count(stacked)
    check(mask, jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), stacked))
    weights = dict(jax.tree_util.tree_leaves_with_path(stacked))
    for path, keep in jax.tree_util.tree_leaves_with_path(mask):
        outside = ((weights[path] != 0) & ~keep).reshape(num_particles, -1).sum(1)
        for particle, number in enumerate(np.asarray(outside)):
            if number:
                raise UserError(f"particle {particle} has {number} weights of {leaf_name(path)} where the mask has none: "
                                "particles that are averaged share one mask")
    return particles.mean(stacked)


def _is_real(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)
