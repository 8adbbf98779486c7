r"""The outer weights as something that is kept: for movements in low precision and for outer optimizers.

The plain online average needs no memory of its own: the next outer weights are the mean of the replicas'. With
x the outer weights of the last synchronization, which every replica keeps, it can be said otherwise:

    movement   Δ_k = w_k - x                 of replica k since then
    mean       w̄   = x + (1/K) Σ_k Δ_k
    gradient   g   = x - w̄                   the outer gradient
    step       x'  = x + outer_update(g)     by any optax optimizer; x' = w̄ for SGD with rate 1

Movements are small, so they survive bf16, where weights lose them: rounding is relative, 2^-9 of the
size of Δ_k and not of w_k. An outer optimizer with Nesterov's momentum is DiLoCo.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hwa_jax.replica_mean import AxisName, accumulator, is_averaged, mean_over_replicas


class OuterState(NamedTuple):
    """What every replica keeps from one synchronization to the next; the same on all of them.

    Attributes:
        weights: x, the structure and shapes of the parameters, at least float32; None where a leaf has no mean.
        optimizer_state: of the outer optimizer, or ().
    """

    weights: Any
    optimizer_state: Any


@dataclasses.dataclass(frozen=True)
class OuterStep:
    """How the next outer weights follow from those of the replicas.

    Attributes:
        optimizer: an optax optimizer for the outer gradient, or None: the mean.
        dtype: in which movements are communicated, or None: weights are, in their own.
    """

    optimizer: optax.GradientTransformation | None
    dtype: Any

    @classmethod
    def of(cls, function: str, optimizer: Any, dtype: Any) -> "OuterStep":
        """Checks the arguments of `function`.

        Raises:
            ValueError: no optax optimizer, or a dtype other than bfloat16 and None.

        Example:
            >>> OuterStep.of("online_average", None, "bfloat16").keeps_weights
            True
        """
        if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
            raise ValueError(f"{function}: outer_optimizer={optimizer!r} must be an optax optimizer or None")
        # float16 has too few exponents for movements, and anything wider than bfloat16 saves nothing.
        if dtype is not None and not (isinstance(dtype, (str, type, jnp.dtype)) and dtype in _NAMES_OF_BFLOAT16):
            raise ValueError(f"{function}: sync_dtype={dtype!r} must be jnp.bfloat16 or None")
        return cls(optimizer, None if dtype is None else jnp.bfloat16)

    @property
    def keeps_weights(self) -> bool:
        """Whether there is an `OuterState` at all."""
        return self.optimizer is not None or self.dtype is not None

    def init(self, params: Any) -> OuterState:
        """The state of replicas that all start from `params`."""
        # A copy: a step that donates weights and state must not be given one buffer twice.
        weights = jax.tree.map(lambda p: jnp.array(p, accumulator(p)) if is_averaged(p) else None, params)
        return OuterState(weights, () if self.optimizer is None else self.optimizer.init(weights))

    def mean(self, local: Any, state: OuterState, axis_name: AxisName, num_replicas: int, factors: Any) -> Any:
        """w̄, in at least float32.

        Args:
            local: w_k in at least float32, None where nothing is averaged.
            state: x is used where movements are communicated.
            axis_name: as in `mean_over_replicas`, like the two that follow.
            num_replicas: K.
            factors: of weighted means, or None.
        """
        if self.dtype is None or num_replicas == 1:
            return mean_over_replicas(local, axis_name, num_replicas, factors=factors)
        movement = jax.tree.map(lambda w, x: None if w is None else w - x, local, state.weights, is_leaf=_is_none)
        movement = mean_over_replicas(movement, axis_name, num_replicas, factors=factors, dtype=self.dtype)
        return jax.tree.map(lambda d, x: None if d is None else x + d, movement, state.weights, is_leaf=_is_none)

    def step(self, mean: Any, state: OuterState) -> OuterState:
        """x' and the optimizer's next state, from w̄; a leaf that is None in `mean` has not moved."""
        mean = jax.tree.map(lambda w, x: x if w is None else w, mean, state.weights, is_leaf=_is_none)
        if self.optimizer is None:
            return OuterState(mean, ())
        gradient = jax.tree.map(jnp.subtract, state.weights, mean)
        updates, optimizer_state = self.optimizer.update(gradient, state.optimizer_state, state.weights)
        return OuterState(optax.apply_updates(state.weights, updates), optimizer_state)


_NAMES_OF_BFLOAT16 = ("bfloat16", jnp.bfloat16, jnp.dtype(jnp.bfloat16))


def _is_none(leaf):
    return leaf is None
