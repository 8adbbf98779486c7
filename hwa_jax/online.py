r"""The online (horizontal) average: K replicas, averaged every H steps.

The paper nests two loops, with cycle index e and inner step t = 0..H-1:

    inner    W^k_{e,t+1} = optimizer_step(W^k_{e,t}, batch_k)
    outer    W̄_e         = (1/K) Σ_k W^k_{e,H}
    restart  W^k_{e+1,0} = W̄_e

An optax transform sees one step at a time and answers with an update that is added. Let p be a
replica's weights, u its update, and t = eH + i + 1 the number of steps completed after it. Where H
does not divide t, the inner loop goes on: the update is u. Where it does, outer and restart together
ask for weights W̄ = (1/K) Σ_k (p_k + u_k), so the update is W̄ - p_k. Nothing else is needed: the
cycle index is t // H, and the restart weights are the very weights the next step begins from.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.custom_batching import custom_vmap

from hwa_jax.optimizer_state import reset_state
from hwa_jax.replica_mean import (
    AxisName,
    accumulator,
    count_replicas,
    is_averaged,
    mean_over_replicas,
    normalize_axis_name,
    vary_like,
)

OptimizerStatePolicy = Literal["local", "average", "reset"]

_POLICIES = ("local", "average", "reset")


class OnlineAverageState(NamedTuple):
    """State of `online_average`.

    Attributes:
        count: int32 scalar, completed steps; under vmap it may carry the replica axis, and all
            replicas hold the same value.
    """

    count: jax.Array


class WithOnlineAverageState(NamedTuple):
    """State of `with_online_average`.

    Attributes:
        count: int32 scalar, completed steps; may carry the replica axis, equal on all replicas.
        distance: float32 scalar, ‖(p_k + u_k) - W̄‖ at the last average, just before the weights became
            W̄; this replica's, whose root mean square over replicas is their spread. It costs no communication.
            For stacked trees it is that root mean square, a second small all-reduce where they are sharded.
        inner_state: state of the inner optimizer, with or without the replica axis as its own.
    """

    count: jax.Array
    distance: jax.Array
    inner_state: optax.OptState


def online_average(
    every: int, axis_name: AxisName, *, start_step: int = 0
) -> optax.GradientTransformation:
    """Averages the weights of all replicas after every H-th step.

    Put it last in a chain: it sees the final update u and replaces it, where an average is due, by
    W̄ - p with W̄ = (1/K) Σ_k (p_k + u_k) (the online average of HWA; local SGD's average). With t
    completed steps it averages after each step while t <= start_step, and afterwards when
    (t - start_step) % every == 0. K = number of replicas along the axis, H = `every`.

    An update is added to the weights, and p + (W̄ - p) is not bit-equal to W̄: replicas agree to a few
    units in the last place of the largest weight among them. Where they must be bit-identical, use
    `synchronize` on the weights. With K = 1 updates are left as they are, to the last bit.

    Low-precision leaves (bf16, fp16) are averaged in float32; updates come out in the wider dtype of
    update and weight. Integer and PRNG-key leaves pass through. Between two averages nothing is
    communicated: the all-reduce sits in a conditional that stays one even where vmap has batched the
    step counter.

    Do not wrap it in a transform that skips steps depending on data (`optax.apply_if_finite`,
    `optax.MultiSteps(should_skip_update_fn=...)`): replicas would disagree about when to meet, and
    hang or abort. Averaging goes outside: `optax.chain(optax.MultiSteps(inner, k), online_average(k * H, axis))`.

    Args:
        every: H, the synchronization period in optimizer steps, at least 1.
        axis_name: the name of a vmap, pmap or mesh axis over which replicas lie, or a tuple of names
            (`("device", "particle")`). None means that there is no named axis: every leaf of the
            parameters is stacked, with the replicas along its axis 0, and `init` and `update` are
            called on the stacked trees in plain jit. For arrays sharded over devices without
            shard_map this is the way: under vmap the step counter would be sharded too, and every
            step would fetch it.
        start_step: steps at the start during which replicas are averaged after every step.

    Returns:
        A `optax.GradientTransformation` whose `update` needs `params`.

    Raises:
        ValueError: `every` < 1, `start_step` < 0, `axis_name` of another type; at update, `params`
            missing, an axis that is not bound (the message says which are), or stacked leaves that
            disagree about K.

    References:
        Gu et al., Hierarchical Weight Averaging for Deep Neural Networks, 2023, arXiv 2304.11519.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> tx = optax.chain(optax.sgd(1.0), online_average(2, "particle"))
        >>> def step(params, state, gradient):
        ...     updates, state = tx.update(gradient, state, params)
        ...     return optax.apply_updates(params, updates), state
        >>> step = jax.jit(jax.vmap(step, axis_name="particle"))
        >>> params, gradients = jnp.zeros(2), jnp.array([1.0, 3.0])
        >>> state = jax.vmap(tx.init)(params)
        >>> params, state = step(params, state, gradients); print(params)
        [-1. -3.]
        >>> params, state = step(params, state, gradients); print(params)
        [-4. -4.]
    """
    axis_name = _validate("online_average", every, axis_name, start_step)

    def init(params):
        del params
        return OnlineAverageState(count=jnp.zeros([], jnp.int32))

    def update(updates, state, params=None):
        _require_params("online_average", params)
        count = optax.safe_increment(state.count)
        updates = _average_if(
            is_synchronization_step(_shared(count), every, start_step),
            lambda updates: _update_to_mean(updates, params, (), axis_name)[0],
            _promote(updates, params),
        )
        return updates, OnlineAverageState(count=count)

    return optax.GradientTransformation(init, update)


def with_online_average(
    inner: optax.GradientTransformation,
    every: int,
    axis_name: AxisName,
    *,
    optimizer_state: OptimizerStatePolicy = "local",
    start_step: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer: `online_average`, and a policy for the optimizer's state at an average.

    Args:
        inner: any optax optimizer.
        every: H, the synchronization period in optimizer steps, at least 1.
        axis_name: as in `online_average`.
        optimizer_state: what happens to the inner state when the weights are averaged.
            "local" keeps every replica's own (as local SGD does). "average" averages its floating
            leaves over the replicas. "reset" starts it again by `inner.init` and keeps only where the
            run is: counts of schedules, injected hyperparameters, keys of gradient noise, gradients
            that `optax.MultiSteps` has yet to apply. Adam's own count starts again with its moments,
            since zero moments under an old count make steps of several times the rate.
        start_step: as in `online_average`.

    Returns:
        A `optax.GradientTransformationExtraArgs`; extra arguments go to `inner`.

    Raises:
        ValueError: as `online_average`, or a policy of another name.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> tx = with_online_average(optax.adam(0.1), 10, "particle", optimizer_state="average")
        >>> state = jax.vmap(tx.init)({"w": jnp.zeros((4, 3))})
        >>> state.inner_state[0].mu["w"].shape
        (4, 3)
    """
    axis_name = _validate("with_online_average", every, axis_name, start_step)
    if optimizer_state not in _POLICIES:
        raise ValueError(
            f"with_online_average: optimizer_state={optimizer_state!r} must be one of {', '.join(_POLICIES)}"
        )
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return WithOnlineAverageState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32), inner.init(params))

    def synchronized(local_updates, inner_state, params):
        if count_replicas(params, axis_name) == 1:
            return local_updates, jnp.zeros([], jnp.float32), inner_state
        averaged = inner_state if optimizer_state == "average" else ()
        updates, averaged = _update_to_mean(local_updates, params, averaged, axis_name)
        distance = _distance(local_updates, updates, axis_name)
        if optimizer_state == "average":
            inner_state = averaged
        elif optimizer_state == "reset":
            inner_state = reset_state(inner_state, inner.init(optax.apply_updates(params, updates)))
        return updates, distance, inner_state

    def update(updates, state, params=None, **extra_args):
        _require_params("with_online_average", params)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        count = optax.safe_increment(state.count)
        updates, distance, inner_state = _average_if(
            is_synchronization_step(_shared(count), every, start_step),
            lambda kept: synchronized(kept[0], kept[2], params),
            (_promote(updates, params), state.distance, inner_state),
        )
        return updates, WithOnlineAverageState(count, distance, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def is_synchronization_step(step: Any, every: int, start_step: int = 0) -> Any:
    """Whether replicas are averaged after `step` completed steps; for ints and for arrays.

    Example:
        >>> [t for t in range(1, 9) if is_synchronization_step(t, every=3, start_step=2)]
        [1, 2, 5, 8]
    """
    return (step <= start_step) | ((step - start_step) % every == 0)


def synchronize(tree: Any, axis_name: AxisName) -> Any:
    """The mean over all replicas, bit-identical on each of them.

    For what must agree to the last bit: the start of training, a resume with another K, recovery
    from a fault, the end. It works on the weights, not on an update.

    Args:
        tree: a pytree, one replica's under a named axis, or stacked (`axis_name=None`).
        axis_name: as in `online_average`.

    Returns:
        A tree of the same structure, shapes and dtypes; bf16 and fp16 are averaged in float32.
        Integer and PRNG-key leaves are returned as they came.

    Raises:
        ValueError: an axis that is not bound, or stacked leaves that disagree about K.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> print(jax.vmap(lambda w: synchronize(w, "particle"), axis_name="particle")(jnp.array([1.0, 2.0])))
        [1.5 1.5]
    """
    return mean_over_replicas(tree, normalize_axis_name("synchronize", axis_name))


@custom_vmap
def _shared(count):
    """Identity on a counter that all replicas share.

    vmap would batch the counter, turn `lax.cond` into a select and run the all-reduce on every step.
    The rule below takes the first member's value and declares it unbatched, so the conditional stays.
    """
    return count


@_shared.def_vmap
def _shared_batched(axis_size, in_batched, count):
    del axis_size
    # The result goes through the identity again, for a vmap around this one.
    return _shared(count[0] if in_batched[0] else count), False


def _average_if(due, average, kept):
    """`average(kept)` where an average is due, else `kept`; only there anything is communicated."""
    # Under shard_map(check_vma=True) both branches have to vary over the same mesh axes.
    kept = jax.tree.map(vary_like, kept, jax.eval_shape(average, kept))
    return lax.cond(due, lambda kept: jax.tree.map(vary_like, average(kept), kept), lambda kept: kept, kept)


def _promote(updates, params):
    # A bf16 update of float32 weights could not lead all replicas to one float32 mean.
    def promote(u, p):
        return jnp.asarray(u, jnp.promote_types(jnp.result_type(u), jnp.result_type(p))) if _moves(u, p) else u

    return jax.tree.map(promote, updates, params, is_leaf=_is_none)


def _update_to_mean(updates, params, state, axis_name):
    """Updates that lead every replica to the mean of (params + updates), and the mean of `state`.

    One call for both trees, so that one all-reduce carries them.
    """
    averaged = jax.tree.map(
        lambda u, p: (p + u).astype(jnp.result_type(p)) if _moves(u, p) else None, updates, params, is_leaf=_is_none
    )
    num_replicas = count_replicas(averaged, axis_name)
    if num_replicas == 1:
        return updates, state
    upcast = jax.tree.map(lambda leaf: leaf.astype(accumulator(leaf)), averaged)
    means, state = mean_over_replicas((upcast, state), axis_name, num_replicas)
    updates = jax.tree.map(
        lambda u, p, mean: u if mean is None else (mean - p).astype(u.dtype),
        updates, params, means, is_leaf=_is_none,
    )
    return updates, state


def _moves(u, p):
    return u is not None and is_averaged(p)


def _is_none(leaf):
    return leaf is None


def _distance(local_updates, updates, axis_name):
    leaves = zip(jax.tree.leaves(local_updates), jax.tree.leaves(updates))
    moves = [(u - v).astype(accumulator(u)) for u, v in leaves if is_averaged(u)]
    squares = [jnp.sum(jnp.abs(move) ** 2) for move in moves]
    num_stacked = count_replicas(moves, None) if axis_name is None else 1
    return jnp.sqrt(sum(squares, jnp.float32(0)) / num_stacked).astype(jnp.float32)


def _validate(function, every, axis_name, start_step):
    if not _is_int(every) or every < 1:
        raise ValueError(f"{function}: every={every!r} must be a whole number of steps, at least 1")
    if not _is_int(start_step) or start_step < 0:
        raise ValueError(f"{function}: start_step={start_step!r} must be a whole number of steps, at least 0")
    return normalize_axis_name(function, axis_name)


def _is_int(value):
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _require_params(function, params):
    if params is None:
        raise ValueError(f"{function}: params=None; call update(updates, state, params)")
