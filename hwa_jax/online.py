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

Three options change how W̄ comes about: what is communicated (`sync_dtype`), how much each replica counts (`weights`),
and an optimizer that acts on the averaged movement (`outer_optimizer`); see `hwa_jax.outer`.
"""

from typing import Any, Literal

import jax.numpy as jnp
import optax

from hwa_jax.online_state import (
    OnlineAverageOuterState,
    OnlineAverageState,
    WithOnlineAverageOuterState,
    WithOnlineAverageState,
)
from hwa_jax.optimizer_state import reset_state
from hwa_jax.outer import OuterStep
from hwa_jax.replica_mean import AxisName, count_replicas, normalize_axis_name
from hwa_jax.replica_weights import checked_weights
from hwa_jax.synchronization import average_if, distance, promote, shared, updates_to_mean
from hwa_jax.synchronization import synchronize as synchronize

OptimizerStatePolicy = Literal["local", "average", "reset"]

_POLICIES = ("local", "average", "reset")


def online_average(
    every: int,
    axis_name: AxisName,
    *,
    start_step: int = 0,
    sync_dtype: Any = None,
    outer_optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
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
        sync_dtype: None, or jnp.bfloat16: what is communicated is each replica's movement since the last average,
            rounded to bf16, and added to the last outer weights in float32. Half the bytes for one more copy of
            the weights (float32) in the state. The error is a few 2^-9 of the movement. XLA:CPU has no bf16
            all-reduce and widens it again, after the same rounding.
        outer_optimizer: None, or any optax optimizer: it takes the last outer weights minus the mean of the
            replicas as a gradient, and its step leads to the next outer weights. optax.sgd(0.7, momentum=0.9,
            nesterov=True) is DiLoCo; optax.sgd(1.0) is the plain average, to the last bit where no weight has more
            than doubled or halved since the last average, elsewhere to two units in the last place of the larger
            value. It acts at every average, also with one replica (where optax.sgd(α) is Lookahead), and keeps one
            copy of the weights besides its own state.

    Returns:
        A `optax.GradientTransformationExtraArgs` whose `update` needs `params` and takes `weights`: how much this
        replica counts in the average (with `axis_name=None` one number for each), the samples it has seen, say.
        Equal weights give the plain average, up to the order in which XLA sums; a replica of weight 0 may hold NaN
        without harming the others. Inside jit weights that are all zero count as equal, and a negative one gives NaN;
        outside, both raise.
        With `sync_dtype` or `outer_optimizer` replicas must start from equal weights, which `init` takes as the
        first outer weights: `synchronize` them before, where they may differ.

    Raises:
        ValueError: `every` < 1, `start_step` < 0, `axis_name`, `sync_dtype` or `outer_optimizer` of another type; at
            update, `params` missing, weights that are no weights, an axis that is not bound (the message says which
            are), or stacked leaves that disagree about K.

    References:
        Gu et al., Hierarchical Weight Averaging for Deep Neural Networks, 2023, arXiv 2304.11519.
        Douillard et al., DiLoCo: Distributed Low-Communication Training of Language Models, 2023, arXiv 2311.08105.

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
    rule = OuterStep.of("online_average", outer_optimizer, sync_dtype)

    def init(params):
        count = jnp.zeros([], jnp.int32)
        return OnlineAverageOuterState(count, rule.init(params)) if rule.keeps_weights else OnlineAverageState(count)

    def update(updates, state, params=None, *, weights=None, **extra_args):
        del extra_args
        _require_params("online_average", params)
        weights = checked_weights("online_average", weights, axis_name)

        def synchronized(kept):
            updates, _, _, outer = updates_to_mean(
                kept[0], params, (), kept[1], rule=rule, axis_name=axis_name, weights=weights
            )
            return updates, outer

        count = optax.safe_increment(state.count)
        due = is_synchronization_step(shared(count), every, start_step)
        updates, outer = average_if(due, synchronized, (promote(updates, params), getattr(state, "outer", None)))
        return updates, _next_state(state, outer, count=count)

    return optax.GradientTransformationExtraArgs(init, update)


def with_online_average(
    inner: optax.GradientTransformation,
    every: int,
    axis_name: AxisName,
    *,
    optimizer_state: OptimizerStatePolicy = "local",
    start_step: int = 0,
    sync_dtype: Any = None,
    outer_optimizer: optax.GradientTransformation | None = None,
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
        start_step, sync_dtype, outer_optimizer: as in `online_average`. The inner optimizer's state is communicated
            in its own dtype.

    Returns:
        A `optax.GradientTransformationExtraArgs`; extra arguments go to `inner`, except for `weights`, as in
        `online_average`, by which the state is averaged too.

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
    rule = OuterStep.of("with_online_average", outer_optimizer, sync_dtype)

    def init(params):
        state = WithOnlineAverageState(jnp.zeros([], jnp.int32), jnp.zeros([], jnp.float32), inner.init(params))
        return WithOnlineAverageOuterState(*state, rule.init(params)) if rule.keeps_weights else state

    def synchronized(kept, params, weights):
        local_updates, _, inner_state, outer = kept
        if count_replicas(params, axis_name) == 1 and outer_optimizer is None:
            return local_updates, jnp.zeros([], jnp.float32), inner_state, outer
        averaged = inner_state if optimizer_state == "average" else ()
        updates, to_mean, averaged, outer = updates_to_mean(
            local_updates, params, averaged, outer, rule=rule, axis_name=axis_name, weights=weights
        )
        if optimizer_state == "average":
            inner_state = averaged
        elif optimizer_state == "reset":
            inner_state = reset_state(inner_state, inner.init(optax.apply_updates(params, updates)))
        return updates, distance(local_updates, to_mean, axis_name), inner_state, outer

    def update(updates, state, params=None, *, weights=None, **extra_args):
        _require_params("with_online_average", params)
        weights = checked_weights("with_online_average", weights, axis_name)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        count = optax.safe_increment(state.count)
        updates, moved, inner_state, outer = average_if(
            is_synchronization_step(shared(count), every, start_step),
            lambda kept: synchronized(kept, params, weights),
            (promote(updates, params), state.distance, inner_state, getattr(state, "outer", None)),
        )
        return updates, _next_state(state, outer, count=count, distance=moved, inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def is_synchronization_step(step: Any, every: int, start_step: int = 0) -> Any:
    """Whether replicas are averaged after `step` completed steps; for ints and for arrays.

    Example:
        >>> [t for t in range(1, 9) if is_synchronization_step(t, every=3, start_step=2)]
        [1, 2, 5, 8]
    """
    return (step <= start_step) | ((step - start_step) % every == 0)


def _validate(function, every, axis_name, start_step):
    if not _is_int(every) or every < 1:
        raise ValueError(f"{function}: every={every!r} must be a whole number of steps, at least 1")
    if not _is_int(start_step) or start_step < 0:
        raise ValueError(f"{function}: start_step={start_step!r} must be a whole number of steps, at least 0")
    return normalize_axis_name(function, axis_name)


def _next_state(state, outer, **fields):
    return state._replace(**fields) if outer is None else state._replace(**fields, outer=outer)


def _is_int(value):
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _require_params(function, params):
    if params is None:
        raise ValueError(f"{function}: params=None; call update(updates, state, params)")
