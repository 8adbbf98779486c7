r"""Offline (vertical) averages over time, as pure functions (init, update, value).

All three hold their state in float32 under bf16 or fp16 parameters (float64 stays float64): an
exponential average in bf16 stalls, since (1 - decay) · (p - a) rounds to zero against a. `value`
answers in that state's dtype. Leaves that are not floating take the newest value. A state shares no
buffer with the parameters, so either may be donated.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hwa_jax.replica_mean import accumulator, is_averaged


class Average(NamedTuple):
    """An average over time as three pure functions that can be jitted, vmapped and sharded.

    Attributes:
        init: params -> state; the value before the first update is `params`.
        update: (state, params) -> state.
        value: state -> the average, a tree of the structure and shapes of `params`; floating leaves
            in float32 or wider.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any], Any]
    value: Callable[[Any], Any]


class MeanState(NamedTuple):
    """State of `uniform_average` and `exponential_average`.

    Attributes:
        count: int32 scalar, number of updates.
        mean: the average so far; floating leaves in float32 or wider.
    """

    count: jax.Array
    mean: Any


class SlidingWindowState(NamedTuple):
    """State of `sliding_window`.

    Attributes:
        count: int32 scalar, number of updates.
        members: the newest I parameter trees, stacked along axis 0 ([I, ...], the parameters' dtypes).
    """

    count: jax.Array
    members: Any


def uniform_average() -> Average:
    """The mean of everything seen: a_n = a_{n-1} + (p_n - a_{n-1}) / n, as in stochastic weight averaging.

    References:
        Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, arXiv 1803.05407.

    Example:
        >>> import jax.numpy as jnp
        >>> average = uniform_average()
        >>> state = average.init(jnp.array(9.0))
        >>> for p in (1.0, 2.0, 6.0):
        ...     state = average.update(state, jnp.array(p))
        >>> float(average.value(state))
        3.0
    """
    return _running_mean(lambda count: 1.0 / count)


def exponential_average(decay: float) -> Average:
    """The exponential average a_n = decay · a_{n-1} + (1 - decay) · p_n, with a_0 the initial parameters.

    Args:
        decay: in [0, 1); 1 / (1 - decay) updates is roughly the memory.

    Raises:
        ValueError: `decay` outside [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> average = exponential_average(0.5)
        >>> state = average.update(average.init(jnp.array(0.0)), jnp.array(4.0))
        >>> float(average.value(state))
        2.0
    """
    if not 0 <= decay < 1:
        raise ValueError(f"exponential_average: decay={decay!r} must be at least 0 and below 1")
    return _running_mean(lambda count: 1.0 - decay)


def sliding_window(size: int) -> Average:
    """The mean of the newest I parameter trees: W̿_e = (1/min(I, e+1)) Σ_{i=max(0,e-I+1)..e} W̄_i.

    The offline average of HWA, held in memory: its state is I copies of the parameters, and that is
    its price. `hwa_jax.WindowStore` holds the same window on disk.

    Args:
        size: I, the window length in updates, at least 1.

    Raises:
        ValueError: `size` < 1.

    References:
        Gu et al., Hierarchical Weight Averaging for Deep Neural Networks, 2023, arXiv 2304.11519.

    Example:
        >>> import jax.numpy as jnp
        >>> average = sliding_window(2)
        >>> state = average.init(jnp.array(9.0))
        >>> for p in (1.0, 2.0, 6.0):
        ...     state = average.update(state, jnp.array(p))
        >>> float(average.value(state))
        4.0
    """
    if not hasattr(size, "__index__") or isinstance(size, bool) or size < 1:
        raise ValueError(f"sliding_window: size={size!r} must be a whole number of updates, at least 1")

    def init(params):
        # The initial parameters wait in slot 0, where the first update replaces them.
        def first(p):
            return jnp.zeros((size, *jnp.shape(p)), jnp.result_type(p)).at[0].set(p) if is_averaged(p) else jnp.array(p)

        return SlidingWindowState(jnp.zeros([], jnp.int32), jax.tree.map(first, params))

    def update(state, params):
        slot = state.count % size
        members = jax.tree.map(
            lambda held, p: held.at[slot].set(jnp.asarray(p, held.dtype)) if is_averaged(p) else jnp.array(p),
            state.members, params,
        )
        return SlidingWindowState(state.count + 1, members)

    def value(state):
        filled = jnp.clip(state.count, 1, size)

        def mean(held):
            if not is_averaged(held):
                return held
            present = (jnp.arange(size) < filled).reshape((size,) + (1,) * (held.ndim - 1))
            return jnp.where(present, held, 0).sum(0, dtype=accumulator(held)) / filled.astype(accumulator(held))

        return jax.tree.map(mean, state.members)

    return Average(init, update, value)


def _running_mean(weight):
    """An `Average` that moves by weight(count) of the way to the newest parameters."""

    def init(params):
        mean = jax.tree.map(lambda p: jnp.array(p, accumulator(p) if is_averaged(p) else None), params)
        return MeanState(jnp.zeros([], jnp.int32), mean)

    def update(state, params):
        count = state.count + 1

        def move(mean, p):
            if not is_averaged(p):
                return jnp.array(p)
            p, share = jnp.asarray(p, mean.dtype), jnp.asarray(weight(count), mean.dtype)
            # With weight 1 nothing is left of what was there before, be it NaN.
            return jnp.where(share == 1, p, mean + (p - mean) * share)

        return MeanState(count, jax.tree.map(move, state.mean, params))

    return Average(init, update, lambda state: state.mean)
