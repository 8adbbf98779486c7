"""Exact selection of the smallest weights under one threshold for all leaves, without sorting them.

Magnitudes are compared as bit patterns: without its sign, an IEEE number read as an integer grows with
its magnitude. So denormals, which some hardware flushes to zero, keep their places, and ties are ties.
Two implementations answer alike: NumPy for concrete arrays in host memory (`host_selection`), XLA for
the rest.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hwa_jax.errors import UserError
from hwa_jax.sparsity import host_selection

_INDEX_BITS = 32


def num_removed(fraction: float, kept: Sequence[Any]) -> Any:
    """k = round(fraction · remaining): Python's round (halves to even) of a float64 product.

    Args:
        fraction: a Python float.
        kept: bool leaves; the weights that remain.

    Returns:
        An int, or an int32 scalar where a leaf is traced. TPUs only emulate float64: there, inside jit,
        k may differ by one where the product is within rounding of a half.

    Example:
        >>> num_removed(0.1, [np.ones(5, bool)]), num_removed(0.5, [np.ones(3, bool)])
        (0, 2)
    """
    if not _is_traced(kept):
        return round(fraction * num_true(kept))
    remaining = sum((jnp.sum(leaf, dtype=jnp.int32) for leaf in kept), jnp.int32(0))
    with jax.enable_x64(True):
        product = lax.convert_element_type(remaining, jnp.float64) * np.float64(fraction)
        return lax.convert_element_type(lax.round(product, lax.RoundingMethod.TO_NEAREST_EVEN), jnp.int32)


def num_true(kept: Sequence[Any]) -> int:
    """The number of True in concrete bool leaves.

    Example:
        >>> num_true([np.array([True, False]), jnp.ones((2, 3), bool)])
        7
    """
    return sum(int(np.count_nonzero(leaf) if _is_on_host(leaf) else leaf.sum()) for leaf in kept)


def remove_smallest(values: Sequence[Any], kept: Sequence[Any], number: Any, names: Sequence[str]) -> list[jax.Array]:
    """Removes the `number` smallest magnitudes among what is kept.

    Args:
        values: floating leaves of any shapes and dtypes, compared exactly across dtypes.
        kept: bool leaves of the same shapes.
        number: how many go; all, where fewer are kept. Among equal magnitudes those go first that have
            the lower index in the concatenation of the row-major leaves.
        names: of the leaves, for the message.

    Returns:
        Bool leaves, laid out as those of `kept`. With nothing traced, NaN among the kept values raises;
        inside jit it counts as larger than infinity.

    Raises:
        UserError: NaN among the kept values.

    Example:
        >>> [new] = remove_smallest([np.array([3.0, -1.0, 1.0])], [np.ones(3, bool)], 1, ["kernel"])
        >>> print(new)
        [ True False  True]
    """
    if _is_traced([*values, *kept, number]):
        return _remove_smallest(values, kept, number)
    if all(map(_is_on_host, [*values, *kept])):
        new = host_selection.remove_smallest(list(map(np.asarray, values)), list(map(np.asarray, kept)), number, names)
    else:
        refuse_nan(values, kept, names)
        new = _remove_smallest_jit(values, kept, number)
    return [_placed_like(old, leaf) for old, leaf in zip(kept, new)]


def refuse_nan(values: Sequence[Any], kept: Sequence[Any], names: Sequence[str]) -> None:
    """Raises where a kept value is NaN; does nothing where a leaf is traced.

    Raises:
        UserError: it names the leaf.

    Example:
        >>> refuse_nan([np.array([np.nan, 1.0])], [np.array([False, True])], ["kernel"])
    """
    if _is_traced([*values, *kept]):
        return
    for name, value, keep in zip(names, values, kept):
        if _has_nan(value, keep):
            raise host_selection.nan_error(name)


def magnitude_bits(value: Any, dtype: Any) -> jax.Array:
    """Magnitudes of a floating array as unsigned integers of the same order.

    Args:
        value: [...], floating.
        dtype: float32 or float64, at least as wide as `value`: numbers are compared as this.

    Returns:
        uint32 or uint64, [...].

    Example:
        >>> print(magnitude_bits(jnp.array([-1e-45, 0.0, -0.0]), jnp.float32))
        [1 0 0]
    """
    value = jnp.asarray(value)
    unsigned = jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
    if value.dtype != jnp.float64:
        value = value.astype(jnp.float32)
    wide = value.astype(dtype)
    if wide.dtype != value.dtype:
        # XLA reads float32 denormals as zero when it widens them: m · 2^-149 for a mantissa m is exact.
        bits = lax.bitcast_convert_type(value, jnp.uint32) & 0x7FFFFFFF
        wide = jnp.where(bits < 1 << 23, bits.astype(dtype) * 2.0**-149, wide)
    return lax.bitcast_convert_type(wide, unsigned) & unsigned.type(jnp.iinfo(unsigned).max >> 1)


def _remove_smallest(values, kept, number):
    """Bisection, bit by bit, for the threshold and then for the last tie that goes: no sort, no copy but the bits."""
    sizes = [leaf.size for leaf in kept]
    if sum(sizes) >= 1 << 31:
        raise UserError(f"{sum(sizes)} prunable weights: selection inside jit counts to {2**31 - 1}; select outside of jit")
    bits = [magnitude_bits(value, host_selection.common_dtype(values)) for value in values]

    def count(predicate):
        chosen = [predicate(*leaf) & keep for *leaf, keep in zip(bits, positions, kept)]
        return sum((jnp.sum(leaf, dtype=jnp.int32) for leaf in chosen), jnp.int32(0))

    offsets = np.cumsum([0, *sizes])
    positions = [
        (lax.iota(jnp.uint32, size) + jnp.uint32(offset)).reshape(leaf.shape)
        for leaf, size, offset in zip(kept, sizes, offsets)
    ]
    key_dtype = bits[0].dtype if bits else jnp.uint32
    # The number-th smallest is the largest v that fewer than `number` lie below.
    threshold = _largest(lambda v: count(lambda key, _: key < v) < number, key_dtype)
    num_ties = number - count(lambda key, _: key < threshold)
    end = _largest(lambda v: count(lambda key, position: (key == threshold) & (position < v)) <= num_ties, jnp.uint32)
    return [
        keep & (key >= threshold) & ~((key == threshold) & (position < end))
        for key, position, keep in zip(bits, positions, kept)
    ]


_remove_smallest_jit = jax.jit(_remove_smallest)


def _largest(holds, dtype):
    """The largest unsigned v for which `holds`, true of 0 and false from some v on; 0 where it never holds."""
    num_bits = 8 * jnp.dtype(dtype).itemsize

    def decide(i, value):
        candidate = value | (jnp.ones([], dtype) << (num_bits - 1 - i).astype(dtype))
        return jnp.where(holds(candidate), candidate, value)

    return lax.fori_loop(0, num_bits, decide, jnp.zeros([], dtype))


@jax.jit
def _has_nan(value, keep):
    return jnp.any(jnp.isnan(value) & keep)


def _is_traced(leaves):
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def _is_on_host(leaf):
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


def _placed_like(old, new):
    # A mask that moves to other devices, or is pinned to its device, would make a jitted step compile again.
    if isinstance(old, jax.Array) and old.committed:
        return jax.device_put(new, old.sharding, may_alias=False)
    return jnp.array(new)
