"""The mean over replicas, which lie along a named axis or, in stacked trees, along axis 0."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hwa_jax.collectives import together

AxisName = str | Sequence[str] | None


def mean_over_replicas(
    tree: Any, axis_name: AxisName, num_replicas: int | None = None, *, factors: Any = None, dtype: Any = None
) -> Any:
    """The mean of every floating leaf over all replicas, the same on each of them.

    Args:
        tree: one replica's tree under a named axis, or a stacked one (`axis_name=None`).
        axis_name: a bound axis, a tuple of bound axes, or None.
        num_replicas: K, for stacked trees. A floating leaf that is not stacked (an injected learning
            rate) has nothing to average; without K every floating leaf has to be stacked.
        factors: what every replica's leaves are multiplied with first, as `replica_weights.weight_factors` returns it.
        dtype: in which real leaves are communicated and summed over devices; None: their own, at least
            float32. Each is rounded to it, and the sum is divided by K in the leaf's own.

    Returns:
        A tree of the same structure, shapes and dtypes; bf16 and fp16 are summed in float32. Other
        leaves are returned as they came.

    Raises:
        ValueError: an axis that is not bound, or stacked leaves that disagree about K.

    Example:
        >>> import jax.numpy as jnp
        >>> print(mean_over_replicas(jnp.array([1.0, 2.0]), None))
        [1.5 1.5]
    """
    leaves, treedef = jax.tree.flatten(tree)
    if axis_name is None and num_replicas is None:
        num_replicas = count_replicas([leaf for leaf in leaves if is_averaged(leaf)], None)
    chosen = [
        i for i, leaf in enumerate(leaves)
        if is_averaged(leaf) and (axis_name is not None or jnp.shape(leaf)[:1] == (num_replicas,))
    ]
    if chosen:
        wide = [jnp.asarray(leaves[i], accumulator(leaves[i])) for i in chosen]
        wide = wide if factors is None else [weighted(factors, leaf) for leaf in wide]
        means = _collective_mean(wide, axis_name) if dtype is None else _narrow_mean(wide, axis_name, dtype)
        for i, mean in zip(chosen, means):
            leaves[i] = mean.astype(jnp.result_type(leaves[i]))
    return jax.tree.unflatten(treedef, leaves)


def count_replicas(tree: Any, axis_name: AxisName) -> int:
    """K, the number of replicas: the size of the named axes, or of axis 0 of every leaf; 1 without leaves.

    Raises:
        ValueError: an axis that is not bound, or stacked leaves that disagree about K.

    Example:
        >>> import jax.numpy as jnp
        >>> count_replicas({"w": jnp.zeros((4, 2))}, None)
        4
    """
    if axis_name is not None:
        _require_bound(axis_name)
        return lax.axis_size(axis_name)
    shapes = sorted({jnp.shape(leaf) for leaf in jax.tree.leaves(tree)})
    if len({shape[:1] for shape in shapes}) > 1 or () in shapes:
        raise ValueError(
            f"axis_name=None: every leaf must be stacked with the replicas along axis 0, got shapes {shapes}; "
            "see hwa_jax.particles.replicate"
        )
    return shapes[0][0] if shapes else 1


def normalize_axis_name(function: str, axis_name: AxisName) -> str | tuple[str, ...] | None:
    """`axis_name` with a sequence made a tuple.

    Raises:
        ValueError: neither a name, nor a sequence of names, nor None; the message begins with `function`.

    Example:
        >>> normalize_axis_name("synchronize", ["device", "particle"])
        ('device', 'particle')
    """
    if axis_name is None or isinstance(axis_name, str):
        return axis_name
    if isinstance(axis_name, Sequence) and axis_name and all(isinstance(name, str) for name in axis_name):
        return tuple(axis_name)
    raise ValueError(f"{function}: axis_name={axis_name!r} must be a name, a tuple of names, or None")


def is_averaged(leaf: Any) -> bool:
    """Whether a leaf has a mean: floating and complex leaves have, integers and PRNG keys have not.

    Example:
        >>> is_averaged(1.0), is_averaged(1)
        (True, False)
    """
    # PRNG keys have an extended dtype, which is no subtype of inexact.
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def accumulator(leaf: Any) -> Any:
    """The dtype in which a leaf is summed: its own, at least float32.

    Example:
        >>> import jax.numpy as jnp
        >>> print(accumulator(jnp.zeros(2, jnp.bfloat16)))
        float32
    """
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def weighted(factors: Any, leaf: Any) -> Any:
    """One replica's leaf times its factor, or stacked leaves times one each; exactly zero where the factor is.

    Example:
        >>> import jax.numpy as jnp
        >>> print(weighted(jnp.array([0.0, 2.0]), jnp.array([jnp.nan, 3.0])))
        [0. 6.]
    """
    factors = factors.astype(jnp.finfo(leaf.dtype).dtype)
    factors = factors.reshape(factors.shape + (1,) * (leaf.ndim - factors.ndim))
    # A replica that counts nothing may hold NaN.
    return jnp.where(factors == 0, 0, factors * leaf)


def vary_like(value: Any, other: Any) -> Any:
    """`value`, typed to vary over every mesh axis that `other` varies over.

    Under shard_map(check_vma=True) a mean is typed as equal on all devices, and both branches of a
    conditional must have one type: forget that it is equal. Anywhere else it is the identity.

    Example:
        >>> vary_like(1.0, 2.0)
        1.0
    """
    missing = _varying_axes(other) - _varying_axes(value)
    return lax.pcast(value, tuple(missing), to="varying") if missing else value


def _varying_axes(value):
    abstract = value if isinstance(value, jax.ShapeDtypeStruct) else jax.typeof(value)
    return abstract.manual_axis_type.varying if abstract.manual_axis_type else frozenset()


def _collective_mean(leaves, axis_name):
    if axis_name is None:
        return [jnp.broadcast_to(jnp.mean(leaf, axis=0, keepdims=True), leaf.shape) for leaf in leaves]
    means = _collective(lax.pmean, leaves, axis_name)
    return [vary_like(mean, leaf) for mean, leaf in zip(means, leaves)]


def _collective(operation, leaves, axis_name):
    _require_bound(axis_name)
    try:
        return together(operation, leaves, axis_name)
    except (AssertionError, ValueError) as error:
        # JAX fails an assertion without words where only the vmap axis is named.
        if isinstance(error, ValueError) and "varying" not in str(error):
            raise
        raise ValueError(
            f"averaging over axis_name={axis_name!r}: a vmap axis inside jax.shard_map needs "
            "jax.shard_map(..., check_vma=False)"
        ) from error


def _narrow_mean(leaves, axis_name, dtype):
    """The mean of real leaves, summed over devices in a narrower dtype."""
    info, num_replicas = jnp.finfo(dtype), count_replicas(leaves, axis_name)
    # XLA may leave out a rounding to and fro, but not reduce_precision.
    narrow = [
        leaf if jnp.iscomplexobj(leaf) else lax.reduce_precision(leaf, info.nexp, info.nmant).astype(dtype) for leaf in leaves
    ]
    if axis_name is None:
        # jnp.sum would widen before the devices' sums meet.
        sums = [lax.expand_dims(lax.reduce(leaf, leaf.dtype.type(0), lax.add, (0,)), (0,)) for leaf in narrow]
    else:
        sums = _collective(lax.psum, narrow, axis_name)
    means = [total.astype(leaf.dtype) / num_replicas for total, leaf in zip(sums, leaves)]
    return [vary_like(jnp.broadcast_to(mean, leaf.shape), leaf) for mean, leaf in zip(means, leaves)]


def _require_bound(axis_name):
    for name in (axis_name,) if isinstance(axis_name, str) else axis_name:
        try:
            lax.axis_size(name)
        except NameError as error:
            raise ValueError(
                f"axis_name={name!r} is not bound here; bound axes: {_bound_axes()}. Call the update inside "
                f"jax.vmap(..., axis_name={name!r}) or jax.shard_map, or use axis_name=None with stacked trees"
            ) from error


def _bound_axes():
    try:
        from jax._src.core import get_axis_env  # JAX has no public list of bound names.

        return ", ".join(map(str, get_axis_env().axis_names())) or "none"
    except (ImportError, AttributeError):
        return "unknown"
