"""A convolution that stays fast when its weights carry a particle axis.

``jax.vmap`` over the weights of a convolution makes a grouped convolution, and the
gradients of grouped convolutions are several times slower than the same convolutions one
after another. Here ``vmap`` only records that an operand carries an axis, and the
choice is made where the program is lowered, for the platform it is lowered for, from a table
that ``benchmarks/conv_lowerings.py`` measured.

A convolution and its two gradients are one trilinear form T(lhs, rhs, out) with one argument left
out: the convolution itself leaves out ``out``, the input gradient leaves out ``lhs`` and the weight
gradient leaves out ``rhs``. The derivative of any of the three is again one of the three, so one
JAX primitive, closed under transposition, serves every order of both modes of differentiation.
A ``custom_vjp`` would exclude forward mode, and ``custom_vmap`` has no transposition.
"""

import dataclasses
import functools
import importlib.resources
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

_ROLES = ("lhs", "rhs", "out")


class _Axis(NamedTuple):
    """A vmapped axis: its size and which of the two operands carry it."""

    size: int
    left: bool
    right: bool


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """Shapes and dtypes without vmapped axes, and lax's options."""

    lhs: jax.ShapeDtypeStruct
    rhs: jax.ShapeDtypeStruct
    out: jax.ShapeDtypeStruct
    dimension_numbers: lax.ConvDimensionNumbers
    options: tuple[tuple[str, object], ...]

    def __call__(self, lhs, rhs):
        return lax.conv_general_dilated(
            lhs, rhs, dimension_numbers=self.dimension_numbers, **dict(self.options)
        )

    def batch_dimension(self, role):
        return getattr(self.dimension_numbers, f"{role}_spec")[0]

    def with_batches(self, count):
        """The same convolution over ``count`` times as many examples."""

        def enlarged(role):
            struct, dimension = getattr(self, role), self.batch_dimension(role)
            shape = list(struct.shape)
            shape[dimension] *= count
            return jax.ShapeDtypeStruct(tuple(shape), struct.dtype)

        return dataclasses.replace(self, lhs=enlarged("lhs"), out=enlarged("out"))


def conv_general_dilated(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    batch_group_count=1,
    precision=None,
    preferred_element_type=None,
    **kwargs,
):
    """``jax.lax.conv_general_dilated`` whose weights may be vmapped at no extra cost.

    Same arguments, shapes, dtypes, errors and numbers as lax's. It differs under ``jax.vmap`` when input and
    weights both carry the axis (particles, seeds, or both in nested vmaps): on a platform for which the committed
    table says ``"unrolled"`` the program holds one ordinary convolution per member, in the
    gradients too. Compilation time grows with the number of members. Measured so far: CPU.
    Platforms without a row keep lax's grouped convolution. Axes that only one operand carries
    are folded into an ordinary convolution everywhere, as lax does.

    Works under jit, vmap, grad, jvp, Hessian-vector products by either mode, ``jax.checkpoint`` and
    ``jax.shard_map``. In a mesh with Explicit axes, and with an ``out_sharding``, it is lax's function.

    Args:
        lhs: input, rank n + 2.
        rhs: weights, rank n + 2, same dtype as ``lhs``.
        window_strides: n integers, in pixels.
        padding: ``"SAME"``, ``"SAME_LOWER"``, ``"VALID"`` or n pairs (low, high), in pixels.
        lhs_dilation: n integers or None for ones.
        rhs_dilation: n integers or None for ones.
        dimension_numbers: as for lax; None means NCHW, OIHW, NCHW.
        feature_group_count: number of feature groups.
        batch_group_count: number of batch groups.
        precision: as for lax; None is the default precision at the time of the call.
        preferred_element_type: dtype of accumulation and result, or None for the operands' dtype.
        **kwargs: what lax takes beyond these (``out_sharding``); None counts as absent.

    Returns:
        An array, what lax returns.

    Raises:
        TypeError, ValueError: as lax's, on operands that do not fit.

    Example:
        Four particles, each with its own 3x3 weights and its own eight images.

        >>> import functools, jax, jax.numpy as jnp
        >>> conv = functools.partial(conv_general_dilated, window_strides=(2, 2), padding="SAME")
        >>> jax.vmap(conv)(jnp.ones((4, 8, 3, 28, 28)), jnp.ones((4, 16, 3, 3, 3))).shape
        (4, 8, 16, 14, 14)

        As the hook of a Flax layer: ``nnx.Conv(..., conv_general_dilated=hwa_jax.conv_general_dilated)``.
    """
    options = dict(
        window_strides=tuple(window_strides),
        padding=padding if isinstance(padding, str) else tuple(map(tuple, padding)),
        lhs_dilation=None if lhs_dilation is None else tuple(lhs_dilation),
        rhs_dilation=None if rhs_dilation is None else tuple(rhs_dilation),
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        # Lowering happens after a default_matmul_precision context has closed.
        precision=jax.config.jax_default_matmul_precision if precision is None else precision,
        preferred_element_type=preferred_element_type,
    )
    given = {name: value for name, value in kwargs.items() if value is not None}
    if given or jax.sharding.get_abstract_mesh().explicit_axes:
        return lax.conv_general_dilated(
            lhs, rhs, dimension_numbers=dimension_numbers, **options, **given
        )
    numbers = lax.conv_dimension_numbers(jnp.shape(lhs), jnp.shape(rhs), dimension_numbers)
    structs = [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in (lhs, rhs)]
    convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=numbers, **options)
    out = jax.eval_shape(convolve, *structs)
    convolution = _Convolution(*structs, out, numbers, tuple(options.items()))
    lhs, rhs = _vary_alike(lhs, rhs)
    return _contract_p.bind(lhs, rhs, result="out", convolution=convolution, axes=())


def _vary_alike(*operands):
    """Inside a checked shard_map, an operand shared by devices must say so to meet a sharded one."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in operands]
    missing = [tuple(frozenset.union(*varying) - mine) for mine in varying]
    return [
        lax.pcast(x, names, to="varying") if names else x for x, names in zip(operands, missing)
    ]


@functools.cache
def _table():
    """The committed measurement: platform -> "unrolled" or "grouped"."""
    text = importlib.resources.files("hwa_jax").joinpath("conv_lowerings.json").read_text()
    return json.loads(text)["lowering"]


def _operand_roles(result):
    return [role for role in _ROLES if role != result]


def _contract_once(left, right, *, result, convolution):
    """The member without vmapped axes: lax's convolution or lax's transposition of it."""
    if result == "out":
        return convolution(left, right)
    known_role, _ = _operand_roles(result)
    if known_role == "rhs":  # the input gradient; its operands are (rhs, out)
        linear, cotangent = (lambda lhs: convolution(lhs, left)), right
    else:
        linear, cotangent = (lambda rhs: convolution(left, rhs)), right
    argument = _abstract(jax.typeof(left), jax.typeof(right), result=result, convolution=convolution, axes=())
    return jax.linear_transpose(linear, argument)(cotangent)[0]


def _contract(left, right, *, result, convolution, axes, platform):
    """The whole contraction in lax operations, the first of ``axes`` outermost."""
    function = functools.partial(_contract_once, result=result, convolution=convolution)
    for axis in reversed(axes):
        if axis.left and axis.right and _table().get(platform) == "unrolled":
            function = functools.partial(_unrolled, function)
        else:
            in_axes = (0 if axis.left else None, 0 if axis.right else None)
            function = jax.vmap(function, in_axes=in_axes)
    return function(left, right)


def _unrolled(function, left, right):
    members = [
        function(
            lax.index_in_dim(left, index, keepdims=False),
            lax.index_in_dim(right, index, keepdims=False),
        )
        for index in range(left.shape[0])
    ]
    return jnp.stack(members)


def _abstract(left, right, *, result, convolution, axes):
    struct = getattr(convolution, result)
    return left.update(
        shape=tuple(axis.size for axis in axes) + struct.shape,
        dtype=struct.dtype,
        weak_type=False,
        sharding=NamedSharding(left.sharding.mesh, PartitionSpec()),
    )


def _batch(operands, dimensions, *, result, convolution, axes):
    """vmap: fold the axis into the examples if the weights lack it, else add it to ``axes``."""
    carried = [dimension is not None for dimension in dimensions]
    size = next(
        x.shape[dimension] for x, dimension in zip(operands, dimensions) if dimension is not None
    )
    roles = _operand_roles(result)
    grouped_batches = dict(convolution.options)["batch_group_count"] > 1
    if result != "rhs" and not carried[roles.index("rhs")] and not grouped_batches:
        position = carried.index(True)
        role = roles[position]
        own_axes = sum(axis[1 + position] for axis in axes)
        target = own_axes + convolution.batch_dimension(role)
        operand = jnp.moveaxis(operands[position], dimensions[position], target)
        merged = operand.shape[:target] + (size * operand.shape[target + 1],) + operand.shape[target + 2 :]
        operands = list(operands)
        operands[position] = operand.reshape(merged)
        folded = _contract_p.bind(
            *operands, result=result, convolution=convolution.with_batches(size), axes=axes
        )
        target = len(axes) + convolution.batch_dimension(result)
        split = folded.shape[:target] + (size, folded.shape[target] // size) + folded.shape[target + 1 :]
        return folded.reshape(split), target
    operands = [
        x if dimension is None else jnp.moveaxis(x, dimension, 0)
        for x, dimension in zip(operands, dimensions)
    ]
    axes = (_Axis(size, *carried), *axes)
    return _contract_p.bind(*operands, result=result, convolution=convolution, axes=axes), 0


def _transpose(position, cotangent, left, right, *, result, convolution, axes):
    """The cotangent of one operand: the same form with that operand left out instead."""
    roles = _operand_roles(result)
    wanted, known = roles[position], roles[1 - position]
    carries = {known: [axis[2 - position] for axis in axes], result: [True] * len(axes)}
    values = {known: (left, right)[1 - position], result: cotangent}
    first, second = _operand_roles(wanted)
    new_axes = tuple(
        _Axis(axis.size, *flags) for axis, *flags in zip(axes, carries[first], carries[second])
    )
    full = _contract_p.bind(
        values[first], values[second], result=wanted, convolution=convolution, axes=new_axes
    )
    shared = tuple(index for index, axis in enumerate(axes) if not axis[1 + position])
    return full.sum(shared, dtype=full.dtype) if shared else full


_contract_p = Primitive("particle_convolution")


@_contract_p.def_impl
@functools.partial(jax.jit, static_argnames=("result", "convolution", "axes"))
def _compiled(left, right, *, result, convolution, axes):
    return _contract_p.bind(left, right, result=result, convolution=convolution, axes=axes)


_contract_p.def_abstract_eval(_abstract)
batching.primitive_batchers[_contract_p] = _batch
ad.defbilinear(
    _contract_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1)
)
for _platform in ("cpu", "cuda", "rocm", "tpu"):
    mlir.register_lowering(
        _contract_p,
        mlir.lower_fun(
            functools.partial(_contract, platform=_platform), multiple_results=False
        ),
        platform=_platform,
    )
