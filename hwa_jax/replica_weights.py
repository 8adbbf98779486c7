"""How much each replica counts in a mean over replicas: by the samples it has seen, for example."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hwa_jax.replica_mean import AxisName


def checked_weights(function: str, weights: Any, axis_name: AxisName) -> Any:
    """The weights of a mean as a float array, or None.

    Args:
        function: whose argument it is.
        weights: None; or how much a replica counts, at least zero: a scalar under a named axis, one number for
            each of the K replicas with stacked trees.
        axis_name: as in `mean_over_replicas`.

    Raises:
        ValueError: another shape or no real number; and, where values can be seen (not inside jit or vmap), a
            negative or non-finite weight, or none above zero.

    Example:
        >>> print(checked_weights("synchronize", [30, 10], None))
        [30. 10.]
        >>> checked_weights("synchronize", [0, 0], None)
        Traceback (most recent call last):
        ...
        ValueError: synchronize: weights=[0.0, 0.0] must be finite, at least 0, and not all 0
    """
    if weights is None:
        return None
    wanted = "one number for each replica" if axis_name is None else "one number, this replica's"
    if not _is_real(weights) or np.ndim(weights) != (axis_name is None):
        raise ValueError(f"{function}: weights={weights!r} must be {wanted}")
    weights = jnp.asarray(weights, float)
    if not isinstance(weights, jax.core.Tracer):
        values = np.asarray(weights)
        if not (np.isfinite(values) & (values >= 0)).all() or not values.any():
            raise ValueError(f"{function}: weights={values.tolist()} must be finite, at least 0, and not all 0")
    return lax.stop_gradient(weights)


def weight_factors(weights: Any, axis_name: AxisName, num_replicas: int) -> Any:
    """Factors f_k = K ω_k / Σ ω, so that the plain mean of f_k w_k is the mean weighted by ω.

    Equal weights give factors of exactly 1. They take two all-reduces of one number. Weights that are all zero
    count as equal; a weight that is negative or not finite makes all factors NaN.

    Args:
        weights: ω as `checked_weights` returns it, or None: then None is returned.
        axis_name: as in `mean_over_replicas`.
        num_replicas: K.

    Raises:
        ValueError: the number of weights is not K.

    Example:
        >>> import jax.numpy as jnp
        >>> print(weight_factors(jnp.array([30.0, 10.0]), None, 2))
        [1.5 0.5]
    """
    if weights is None:
        return None
    if axis_name is None and weights.shape != (num_replicas,):
        raise ValueError(f"weights: {weights.size} numbers were given for {num_replicas} replicas")
    largest = weights.max() if axis_name is None else lax.pmax(weights, axis_name)
    # A quotient of 1 is exact, and so are sums of it: multiples of 0.1, say, would not add up to K times 0.1.
    shares = jnp.where(weights >= 0, jnp.where(largest > 0, weights / largest, 1), jnp.nan)
    return shares * (num_replicas / (shares.sum() if axis_name is None else lax.psum(shares, axis_name)))


def _is_real(value):
    dtype = getattr(value, "dtype", None) or np.asarray(value).dtype
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
