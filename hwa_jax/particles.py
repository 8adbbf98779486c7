"""Particles and replicas: N weight trees as one tree whose leaves carry a leading axis.

A stacked tree has the structure of one particle's tree and leaves of shape [N, ...].
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from hwa_jax.paths import leaf_name
from hwa_jax.replica_mean import weighted
from hwa_jax.replica_weights import checked_weights, weight_factors


def replicate(tree: Any, n: int) -> Any:
    """N equal copies of a tree: every leaf [...] becomes [n, ...], dtypes kept.

    Raises:
        ValueError: n < 1.

    Example:
        >>> import jax.numpy as jnp
        >>> replicate({"w": jnp.zeros(3)}, 2)["w"].shape
        (2, 3)
    """
    if n < 1:
        raise ValueError(f"replicate: n={n!r} must be at least 1")
    return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (n, *jnp.shape(leaf))), tree)


def stack(trees: Sequence[Any]) -> Any:
    """Stacks particles: N trees with leaves [...] become one with leaves [N, ...].

    Raises:
        ValueError: no trees, or trees whose structures, shapes or dtypes differ (the leaf is named).

    Example:
        >>> import jax.numpy as jnp
        >>> print(stack([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}])["w"])
        [[0. 0.]
         [1. 1.]]
    """
    trees = list(trees)
    if not trees:
        raise ValueError("stack: no trees were given")
    for index, tree in enumerate(trees[1:], 1):
        _require_same(trees[0], tree, index)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(stacked: Any) -> list[Any]:
    """The particles of a stacked tree, one by one; the inverse of `stack`.

    Raises:
        ValueError: leaves that disagree about N.

    Example:
        >>> import jax.numpy as jnp
        >>> [float(particle["w"]) for particle in unstack({"w": jnp.array([1.0, 2.0])})]
        [1.0, 2.0]
    """
    return [jax.tree.map(lambda leaf: leaf[index], stacked) for index in range(count(stacked))]


def count(stacked: Any) -> int:
    """N, the number of particles in a stacked tree.

    Raises:
        ValueError: no leaves, a leaf without a leading axis, or leaves that disagree about N.

    Example:
        >>> import jax.numpy as jnp
        >>> count({"w": jnp.zeros((4, 2))})
        4
    """
    leaves = jax.tree_util.tree_leaves_with_path(stacked)
    if not leaves:
        raise ValueError("a stacked tree needs at least one leaf")
    first = jnp.shape(leaves[0][1])[:1]
    for path, leaf in leaves:
        if not jnp.shape(leaf) or jnp.shape(leaf)[:1] != first:
            raise ValueError(
                f"leaf {leaf_name(path)} has shape {jnp.shape(leaf)}: every leaf of a stacked tree has the number of "
                f"particles in front, {leaf_name(leaves[0][0])} has shape {jnp.shape(leaves[0][1])}"
            )
    return first[0]


def mean(stacked: Any, weights: Any = None) -> Any:
    """The mean over particles: W̄ = (1/N) Σ_n W^n; leaves [N, ...] become [...], dtypes kept.

    bf16 and fp16 leaves are summed in float32.

    Args:
        stacked: leaves [N, ...].
        weights: N numbers, how much each particle counts; None: all the same, as equal ones are.

    Raises:
        ValueError: leaves that disagree about N, or weights that are no N weights.
        TypeError: a leaf that is not floating (the mean of integers or PRNG keys means nothing).

    Example:
        >>> import jax.numpy as jnp
        >>> print(mean({"w": jnp.array([[0.0, 1.0], [2.0, 3.0]])})["w"])
        [1. 2.]
    """
    factors = weight_factors(checked_weights("particles.mean", weights, None), None, count(stacked))

    def leaf_mean(path, leaf):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(f"particles.mean: leaf {leaf_name(path)} has dtype {dtype}; only floating leaves have a mean")
        wide = leaf.astype(jnp.promote_types(dtype, jnp.float32))
        return jnp.mean(wide if factors is None else weighted(factors, wide), axis=0).astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf_mean, stacked)


def spread(stacked: Any) -> jax.Array:
    """How far particles lie from their mean: sqrt((1/N) Σ_n ‖W^n - W̄‖²), a float32 scalar.

    The norm is Euclidean over all floating leaves together; other leaves do not count.

    Raises:
        ValueError: leaves that disagree about N.

    Example:
        >>> import jax.numpy as jnp
        >>> float(spread({"w": jnp.array([[0.0, 3.0], [0.0, 5.0]])}))
        1.0
    """
    count(stacked)
    total = jnp.zeros([], jnp.float32)
    for leaf in jax.tree.leaves(stacked):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            squares = jnp.abs(wide - wide.mean(axis=0, keepdims=True)) ** 2
            total += squares.sum().astype(jnp.float32) / leaf.shape[0]
    return jnp.sqrt(total)


def device_mesh(devices: Sequence[jax.Device] | None = None, axis_name: str = "device") -> Mesh:
    """A mesh of one axis over the given devices, all of JAX's by default.

    Example:
        >>> device_mesh().axis_names
        ('device',)
    """
    devices = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(devices),), (axis_name,), axis_types=(AxisType.Auto,), devices=devices)


def put(tree: Any, sharding: jax.sharding.Sharding | jax.Device | None) -> Any:
    """`jax.device_put`, also onto devices of other processes, each of which gives the whole of equal arrays.

    Onto those nothing is sent, and nothing is compared.

    Example:
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> put({"w": np.ones(2)}, NamedSharding(device_mesh(), PartitionSpec()))["w"].is_fully_replicated
        True
    """
    if not isinstance(sharding, jax.sharding.Sharding) or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put_leaf(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put_leaf, tree)


def vectorize(
    step: Callable[..., Any],
    in_axes: Any = 0,
    out_axes: Any = 0,
    *,
    mesh: Mesh | None = None,
    axis_names: tuple[str, str] = ("device", "particle"),
) -> Callable[..., Any]:
    """Turns a function of one particle into one of K stacked particles.

    The particles are cut evenly over the devices of the mesh (`jax.shard_map`) and run together on
    each of them (`jax.vmap`). Inside `step` both axis names are bound, on one device as on many, so
    `online_average(H, ("device", "particle"))` means the mean over all K, and
    `jax.lax.axis_index(("device", "particle"))` is the particle's number 0..K-1. Jit the result.

    Args:
        step: a function of one particle's arguments, positional only.
        in_axes: 0 (stacked) or None (shared by all particles) for all arguments, or a tuple with one
            entry per argument, each a prefix tree of 0 and None, as in `jax.vmap`. A PartitionSpec that begins
            with `axis_names[0]` is a 0 of which further axes are cut over the mesh too.
        out_axes: 0 and None likewise for the results; None demands a result equal on all particles.
        mesh: a mesh whose axis `axis_names[0]` the particles are cut over; all devices by default.
        axis_names: the mesh axis and the vmap axis.

    Returns:
        A function of stacked arguments.

    Raises:
        ValueError: an axis other than 0 or None, a mesh without the axis, K that is no multiple of
            the number of devices, arguments that disagree about K.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> halve = vectorize(lambda w, rate: w - rate * w, in_axes=(0, None), mesh=device_mesh(jax.devices()[:1]))
        >>> print(jax.jit(halve)(jnp.array([2.0, 4.0]), 0.5))
        [1. 2.]
    """
    device_axis, particle_axis = axis_names
    mesh = device_mesh(axis_name=device_axis) if mesh is None else mesh
    if device_axis not in mesh.shape:
        raise ValueError(f"vectorize: the mesh has axes {tuple(mesh.shape)}, none of them {device_axis!r}")
    # Averaging over a vmap axis inside shard_map needs check_vma=False (JAX 0.10 to 0.12).
    particle_axes = jax.tree.map(lambda axis: 0 if isinstance(axis, PartitionSpec) else axis, in_axes, is_leaf=_is_axis)
    mapped = jax.shard_map(
        jax.vmap(step, in_axes=particle_axes, out_axes=out_axes, axis_name=particle_axis),
        mesh=mesh,
        in_specs=_specs(in_axes, device_axis),
        out_specs=_specs(out_axes, device_axis),
        check_vma=False,
    )

    def over_particles(*args):
        stacked = _stacked_leaves(in_axes, args)
        if stacked:
            _require_multiple(count(stacked), mesh.shape[device_axis], device_axis)
        return mapped(*args)

    return over_particles


def _specs(axes, device_axis):
    def spec(axis):
        if isinstance(axis, PartitionSpec) and axis[:1] == (device_axis,):
            return axis
        if axis not in (0, None):
            raise ValueError(f"vectorize: axis {axis!r} must be 0 (stacked) or None (shared)")
        return PartitionSpec() if axis is None else PartitionSpec(device_axis)

    return jax.tree.map(spec, axes, is_leaf=_is_axis)


def _is_axis(node):
    return node is None or isinstance(node, PartitionSpec)


def _stacked_leaves(in_axes, args):
    if isinstance(in_axes, list):
        in_axes = tuple(in_axes)
    if not isinstance(in_axes, tuple):
        in_axes = (in_axes,) * len(args)
    chosen = jax.tree.map(
        lambda axis, arg: None if axis is None else arg, in_axes, tuple(args), is_leaf=_is_axis
    )
    return jax.tree.leaves(chosen)


def _require_multiple(num_particles, num_devices, device_axis):
    if num_particles % num_devices:
        below = num_particles - num_particles % num_devices
        choices = [n for n in (below, below + num_devices) if n]
        raise ValueError(
            f"{num_particles} particles cannot be cut evenly over the {num_devices} devices of mesh axis "
            f"{device_axis!r}: use {' or '.join(map(str, choices))} particles, or a mesh of fewer devices"
        )


def _require_same(first, other, index):
    if jax.tree.structure(first) != jax.tree.structure(other):
        raise ValueError(f"stack: tree {index} has another structure than tree 0: "
                         f"{jax.tree.structure(other)} against {jax.tree.structure(first)}")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(other)):
        a, b = jnp.asarray(a), jnp.asarray(b)
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(f"stack: leaf {leaf_name(path)} of tree {index} is {b.dtype}{list(b.shape)}, "
                             f"of tree 0 {a.dtype}{list(a.shape)}")
