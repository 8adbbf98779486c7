"""Which weights go: by magnitude under one threshold for all layers, or one per layer, or at random."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hwa_jax.errors import UserError
from hwa_jax.paths import leaf_name
from hwa_jax.sparsity import selection
from hwa_jax.sparsity.checks import check, is_masked_node
from hwa_jax.sparsity.host_selection import common_dtype

PRUNERS = ("magnitude", "layerwise", "random")


def prune_by_magnitude(params: Any, mask: Any, fraction: float, *, keep_one_per_output: bool = False) -> Any:
    """Removes the smallest weights among the remaining ones, under one threshold for all layers.

    Exactly k = round(fraction · remaining) weights go, Python's round of a float64 product; none at
    all where that is 0. Plain `|w|`, no normalization per layer. Among equal magnitudes the lower index
    in the concatenation of the row-major leaves, in `jax.tree.leaves` order, goes first. A weight once
    removed never returns. Dtypes may differ from leaf to leaf and are compared exactly.

    Concrete arrays in host memory are selected by NumPy, others by XLA, with one result. Inside jit
    `fraction` is static, NaN counts as larger than infinity and so goes last, and nothing is warned of;
    there, at most 2^31 - 1 weights can be prunable.

    Args:
        params: the weights; a leaf that is not prunable is not looked at.
        mask: bool leaves as made by `ones`; what is False is gone already.
        fraction: of the remaining weights, above 0 and below 1. One-shot pruning is a large one.
        keep_one_per_output: whether the largest remaining weight of each output unit (index along the
            last axis of a leaf) stays whatever its magnitude. Where too few others remain, fewer than k go.

    Returns:
        The new mask: JAX arrays, on the devices of the old one. A leaf left without any weight is
        warned of by name.

    Raises:
        UserError: a fraction out of range, NaN weights, a mask that does not fit; it names the leaf.

    References:
        Frankle & Carbin, The Lottery Ticket Hypothesis, 2019, arXiv 1803.03635.

    Example:
        >>> mask = {"kernel": jnp.ones((2, 2), bool)}
        >>> print(prune_by_magnitude({"kernel": jnp.array([[3.0, -1.0], [1.0, 2.0]])}, mask, 0.25)["kernel"])
        [[ True False]
         [ True  True]]
    """
    check(mask, params)
    return _pruned(params, mask, fraction, keep_one_per_output, layerwise=False)


def prune(
    params: Any,
    mask: Any,
    fraction: float,
    pruner: str = "magnitude",
    *,
    key: jax.Array | None = None,
    keep_one_per_output: bool = False,
) -> Any:
    """Removes a fraction of the remaining weights.

    Args:
        params, mask, fraction, keep_one_per_output: as in `prune_by_magnitude`.
        pruner: "magnitude": `prune_by_magnitude`. "layerwise": by magnitude, the same fraction of each
            leaf, rounded leaf by leaf. "random": as "magnitude", with uniform random numbers for weights.
        key: a PRNG key, which "random" needs. The numbers depend on it and on nothing of `params`.

    Returns:
        The new mask, as `prune_by_magnitude`.

    Raises:
        UserError: an unknown pruner, and as `prune_by_magnitude`.
        ValueError: "random" without a key.

    Example:
        >>> params = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[30.0, 40.0]])}
        >>> mask = jax.tree.map(lambda leaf: jnp.ones_like(leaf, bool), params)
        >>> new = prune(params, mask, 0.5, "layerwise")
        >>> print(new["a"], new["b"])
        [[False  True]] [[False  True]]
    """
    check(mask, params)
    if pruner not in PRUNERS:
        raise UserError(f"pruner={pruner!r}: give one of {', '.join(PRUNERS)}")
    if pruner == "random":
        if key is None:
            raise ValueError("prune: the random pruner needs key=jax.random.key(...)")
        params = _random_like(mask, key)
    return _pruned(params, mask, fraction, keep_one_per_output, layerwise=pruner == "layerwise")


def planned_counts(mask: Any, fraction: float, pruner: str = "magnitude", *, keep_one_per_output: bool = False) -> Iterator[int]:
    """How many weights remain before the first pruning of a dense mask, after it, after the second, ...

    With r weights remaining, round(fraction · r) go; whatever the weights are, since a mask is pruned to an
    exact count. Ends where none would go any more.

    Args:
        mask: under which all weights remain; arrays, or their shapes and dtypes.
        fraction, pruner, keep_one_per_output: as in `prune`.

    Example:
        >>> list(planned_counts({"kernel": jnp.ones((2, 5), bool)}, 0.4))
        [10, 6, 4, 2, 1]
    """
    leaves = jax.tree.leaves(mask)
    groups = [[leaf] for leaf in leaves] if pruner == "layerwise" else [leaves]
    counts = [sum(leaf.size for leaf in group) for group in groups]
    stay = [keep_one_per_output * sum(min(leaf.size, math.prod(leaf.shape[-1:])) for leaf in group) for group in groups]
    remaining = None
    while counts != remaining:
        yield sum(counts)
        remaining = counts
        counts = [max(count - round(fraction * count), least) for count, least in zip(counts, stay)]


def _pruned(values, mask, fraction, keep_one_per_output, layerwise):
    fraction = float(fraction)
    if not 0 < fraction < 1:
        raise UserError(f"fraction={fraction}: must be above 0 and below 1")
    named, treedef = jax.tree_util.tree_flatten_with_path(mask)
    names, kept = [leaf_name(path) for path, _ in named], [leaf for _, leaf in named]
    values = jax.tree.leaves(jax.tree.map(
        lambda keep, value: keep if is_masked_node(keep) else value, mask, values, is_leaf=is_masked_node
    ))
    new = []
    for group in [[i] for i in range(len(kept))] if layerwise else [range(len(kept))]:
        new += _remove(*([leaves[i] for i in group] for leaves in (values, kept, names)), fraction, keep_one_per_output)
    _warn_of_empty(names, kept, new)
    return jax.tree.unflatten(treedef, new)


def _remove(values, kept, names, fraction, keep_one_per_output):
    number = selection.num_removed(fraction, kept)
    if not keep_one_per_output:
        return selection.remove_smallest(values, kept, number, names)
    selection.refuse_nan(values, kept, names)
    stay = [_largest_per_output(value, keep) for value, keep in zip(values, kept)]
    others = [keep & ~largest for keep, largest in zip(kept, stay)]
    new = selection.remove_smallest(values, others, number, names)
    return [rest | largest for rest, largest in zip(new, stay)]


def _largest_per_output(value, kept):
    """True at the largest kept magnitude of each index along the last axis; of equal ones, at the last."""
    if not kept.size:
        return kept
    bits = selection.magnitude_bits(value, common_dtype([value]))
    scores = jnp.where(kept, bits + 1, 0).reshape(-1, *kept.shape[-1:])
    last = len(scores) - 1 - jnp.argmax(scores[::-1], axis=0)
    return (lax.broadcasted_iota(last.dtype, scores.shape, 0) == last).reshape(kept.shape) & kept


def _random_like(mask, key):
    leaves, treedef = jax.tree.flatten(mask)
    keys = [jax.random.fold_in(key, index) for index in range(len(leaves))]
    # A dtype of its own, so that the numbers do not depend on whether 64 bits are enabled.
    numbers = [jax.random.uniform(key, leaf.shape, jnp.float32) for key, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(treedef, numbers)


def _warn_of_empty(names, kept, new):
    for name, before, after in zip(names, kept, new):
        if isinstance(after, jax.core.Tracer) or selection.num_true([after]):
            continue
        if selection.num_true([before]):
            warnings.warn(f"pruning left no weight in {name}; keep_one_per_output=True keeps one per output unit", stacklevel=4)
