"""The mean of many trees' leaves, summed in float64 on the host."""

import jax.numpy as jnp
import numpy as np


class Float64Mean:
    """Mean of lists of NumPy arrays, of equal shapes and dtypes, added one by one.

    Sums are float64 (complex128 for complex leaves) and rounded to the leaves' dtype once,
    at the end: after 10,000 float32 members the relative error is that of one rounding.
    A leaf that is neither float nor complex, a counter or a mask, has no mean: the last
    one added is returned. Weights, where given, make it a weighted mean.

    Example:
        >>> mean = Float64Mean()
        >>> for value in (1, 2):
        ...     mean.add([np.full(2, value, np.float32), np.int32(value)])
        >>> mean.value()
        [array([1.5, 1.5], dtype=float32), array(2, dtype=int32)]
    """

    def __init__(self):
        self._weight = 0.0
        self._sums = []
        self._last = []
        self._dtypes = []

    def add(self, leaves, weight=1.0):
        """Adds one member, a list of NumPy arrays, with a weight of at least 0."""
        if not self._dtypes:
            self._dtypes = [leaf.dtype for leaf in leaves]
            self._sums = [np.zeros(leaf.shape, _sum_dtype(leaf.dtype)) for leaf in leaves]
        # inf - inf is a property of the members, NaN the right answer.
        with np.errstate(invalid="ignore"):
            for total, leaf in zip(self._sums, leaves, strict=True):
                if _is_averaged(leaf.dtype):
                    added = leaf.astype(total.dtype)
                    # Also because a complex infinity times 1 is NaN.
                    if weight != 1.0:
                        added *= weight
                    total += added
        self._weight += weight
        # Not the averaged ones: a member may be as large as memory allows.
        self._last = [None if _is_averaged(leaf.dtype) else leaf for leaf in leaves]

    def value(self):
        """The means, as new NumPy arrays in the dtypes of the members; the weights are not all 0."""
        return [
            np.array(total / self._weight if last is None else last, dtype)
            for total, last, dtype in zip(self._sums, self._last, self._dtypes)
        ]


def _is_averaged(dtype):
    return jnp.issubdtype(dtype, np.inexact)


def _sum_dtype(dtype):
    return np.complex128 if jnp.issubdtype(dtype, np.complexfloating) else np.float64
