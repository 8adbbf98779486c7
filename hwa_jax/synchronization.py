"""One synchronization: of weights, and inside an optax update as the update that leads to the mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.custom_batching import custom_vmap

from hwa_jax.outer import OuterState, OuterStep
from hwa_jax.replica_mean import (
    AxisName,
    accumulator,
    count_replicas,
    is_averaged,
    mean_over_replicas,
    normalize_axis_name,
    vary_like,
)
from hwa_jax.replica_weights import checked_weights, weight_factors


def synchronize(tree: Any, axis_name: AxisName, *, weights: Any = None) -> Any:
    """The mean over all replicas, bit-identical on each of them.

    For what must agree to the last bit: the start of training, a resume with another K, recovery
    from a fault, the end. It works on the weights, not on an update.

    Args:
        tree: a pytree, one replica's under a named axis, or stacked (`axis_name=None`).
        axis_name: as in `online_average`.
        weights: how much each replica counts, as for the update of `online_average`; None: all the same.

    Returns:
        A tree of the same structure, shapes and dtypes; bf16 and fp16 are averaged in float32.
        Integer and PRNG-key leaves are returned as they came.

    Raises:
        ValueError: an axis that is not bound, stacked leaves that disagree about K, or weights that are no weights.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> print(jax.vmap(lambda w: synchronize(w, "particle"), axis_name="particle")(jnp.array([1.0, 2.0])))
        [1.5 1.5]
        >>> print(synchronize(jnp.array([1.0, 2.0]), None, weights=[3, 1]))
        [1.25 1.25]
    """
    axis_name = normalize_axis_name("synchronize", axis_name)
    weights = checked_weights("synchronize", weights, axis_name)
    if weights is None:
        return mean_over_replicas(tree, axis_name)
    num_replicas = count_replicas([leaf for leaf in jax.tree.leaves(tree) if is_averaged(leaf)], axis_name)
    return mean_over_replicas(tree, axis_name, num_replicas, factors=weight_factors(weights, axis_name, num_replicas))


@custom_vmap
def shared(count):
    """Identity on a counter that all replicas share.

    vmap would batch the counter, turn `lax.cond` into a select and run the all-reduce on every step.
    The rule below takes the first member's value and declares it unbatched, so the conditional stays.

    Example:
        >>> import jax.numpy as jnp
        >>> print(jax.vmap(shared, out_axes=None)(jnp.array([4, 4])))
        4
    """
    return count


@shared.def_vmap
def _shared_batched(axis_size, in_batched, count):
    del axis_size
    # The result goes through the identity again, for a vmap around this one.
    return shared(count[0] if in_batched[0] else count), False


def average_if(due: Any, average: Callable[[Any], Any], kept: Any) -> Any:
    """`average(kept)` where an average is due, else `kept`; only there anything is communicated.

    Example:
        >>> float(average_if(True, lambda x: x / 2, 1.0))
        0.5
    """
    # Under shard_map(check_vma=True) both branches have to vary over the same mesh axes.
    kept = jax.tree.map(vary_like, kept, jax.eval_shape(average, kept))
    return lax.cond(due, lambda kept: jax.tree.map(vary_like, average(kept), kept), lambda kept: kept, kept)


def promote(updates: Any, params: Any) -> Any:
    """Updates in the wider dtype of update and weight.

    A bf16 update of float32 weights could not lead all replicas to one float32 mean.

    Example:
        >>> import jax.numpy as jnp
        >>> print(promote(jnp.ones(2, jnp.bfloat16), jnp.ones(2)).dtype)
        float32
    """

    def widen(u, p):
        return jnp.asarray(u, jnp.promote_types(jnp.result_type(u), jnp.result_type(p))) if _moves(u, p) else u

    return jax.tree.map(widen, updates, params, is_leaf=_is_none)


def updates_to_mean(
    updates: Any, params: Any, also: Any, outer: OuterState | None, *, rule: OuterStep, axis_name: AxisName, weights: Any = None
) -> tuple[Any, Any, Any, OuterState | None]:
    """Updates that lead every replica to the next outer weights.

    Args:
        updates: of the inner optimizer, promoted.
        params: the weights that they are added to.
        also: another tree to average, or ().
        outer: what is kept since the last synchronization, None if nothing.
        rule: how outer weights follow from the replicas'.
        axis_name: as in `mean_over_replicas`.
        weights: of the replicas, or None.

    Returns:
        Updates to the outer weights; updates to the mean of (params + updates), the same unless there is an outer
        optimizer; the mean of `also`; and what is kept for the next synchronization. All-reduces of one dtype travel
        together.
    """
    local = jax.tree.map(
        lambda u, p: (p + u).astype(jnp.result_type(p)) if _moves(u, p) else None, updates, params, is_leaf=_is_none
    )
    num_replicas = count_replicas(local, axis_name)
    if num_replicas == 1 and rule.optimizer is None:
        return updates, updates, also, outer
    factors = weight_factors(weights, axis_name, num_replicas) if num_replicas > 1 else None
    upcast = jax.tree.map(lambda leaf: leaf.astype(accumulator(leaf)), local)
    mean = rule.mean(upcast, outer, axis_name, num_replicas, factors)
    also = mean_over_replicas(also, axis_name, num_replicas, factors=factors)
    to_mean = _updates_to(mean, updates, params)
    if outer is None:
        return to_mean, to_mean, also, None
    outer = rule.step(mean, outer)
    return _updates_to(outer.weights, updates, params), to_mean, also, outer


def distance(local_updates: Any, updates: Any, axis_name: AxisName) -> jax.Array:
    """The norm of the difference of two updates, float32; for stacked trees its root mean square over replicas.

    Example:
        >>> import jax.numpy as jnp
        >>> float(distance(jnp.array([3.0, 4.0]), jnp.zeros(2), "particle"))
        5.0
    """
    leaves = zip(jax.tree.leaves(local_updates), jax.tree.leaves(updates))
    moves = [(u - v).astype(accumulator(u)) for u, v in leaves if is_averaged(u)]
    squares = [jnp.sum(jnp.abs(move) ** 2) for move in moves]
    num_stacked = count_replicas(moves, None) if axis_name is None else 1
    return jnp.sqrt(sum(squares, jnp.float32(0)) / num_stacked).astype(jnp.float32)


def _updates_to(target, updates, params):
    return jax.tree.map(
        lambda u, p, goal: (goal - p).astype(u.dtype) if _moves(u, p) else u, updates, params, target, is_leaf=_is_none
    )


def _moves(u, p):
    return u is not None and is_averaged(p)


def _is_none(leaf):
    return leaf is None
