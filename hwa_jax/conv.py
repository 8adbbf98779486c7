"""A convolution that stays fast when its weights carry a particle axis.

``jax.vmap`` over the weights of a convolution makes a grouped convolution, several times slower on
a CPU than the same convolutions one after another. Here vmap only records that operands carry an
axis; how to compute is chosen when the program is lowered, for the platform it is lowered for,
from the table that ``benchmarks/conv_lowerings.py`` measured.

A convolution and its two gradients are one trilinear form T(lhs, rhs, out) with one argument left
out: the convolution leaves out ``out``, the input gradient ``lhs``, the weight gradient ``rhs``.
The derivative of any of the three is again one of the three, so one primitive, closed under
transposition, serves every order of both modes of differentiation. A ``custom_vjp`` would exclude
forward mode, and ``custom_vmap`` has no transposition.
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

from hwa_jax import onednn


class _Axis(NamedTuple):
    """A vmapped axis: its size, and which of the two operands carry it."""

    size: int
    left: bool
    right: bool


@dataclasses.dataclass(frozen=True)
class _Convolution:
    """Shapes and dtypes without vmapped axes, and lax's options as (name, value) pairs."""

    lhs: jax.ShapeDtypeStruct
    rhs: jax.ShapeDtypeStruct
    out: jax.ShapeDtypeStruct
    dimension_numbers: lax.ConvDimensionNumbers
    options: tuple[tuple[str, object], ...]

    def option(self, name):
        return dict(self.options)[name]

    def batch_dimension(self, role):
        return getattr(self.dimension_numbers, f"{role}_spec")[0]

    def with_examples(self, factor):
        """The same convolution over ``factor`` times as many examples."""

        def enlarged(role):
            struct, shape = getattr(self, role), list(getattr(self, role).shape)
            shape[self.batch_dimension(role)] *= factor
            return jax.ShapeDtypeStruct(tuple(shape), struct.dtype)

        return dataclasses.replace(self, lhs=enlarged("lhs"), out=enlarged("out"))

    def shape_class(self):
        """``"pointwise"``: every window is one unpadded pixel; ``"window"``: all else."""
        padding = self.option("padding")
        pointwise = (
            all(self.rhs.shape[dimension] == 1 for dimension in self.dimension_numbers.rhs_spec[2:])
            # SAME and VALID pad a window of one pixel by nothing.
            and (isinstance(padding, str) or not any(map(any, padding)))
            and set(self.option("lhs_dilation") or [1]) == {1}
            and self.option("feature_group_count") == self.option("batch_group_count") == 1
        )
        return "pointwise" if pointwise else "window"


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
    """``jax.lax.conv_general_dilated`` for weights that carry a particle axis under ``jax.vmap``.

    Arguments, shapes, dtypes and errors are lax's; numbers agree to rounding. Where input and
    weights both carry a vmapped axis (particles, seeds, nested) lax makes a grouped convolution;
    here the committed table decides, for the gradients too. Measured so far: CPU (a matrix product
    for 1x1 windows, else one ordinary convolution per member, so compile time grows with the
    members), or oneDNN if switched on (``hwa_jax.onednn``). Other platforms keep lax's.

    Works under jit, grad, jvp, Hessian-vector products of either mode, checkpoint and shard_map.
    A mesh with Explicit axes, or an ``out_sharding``, gets lax's own function.

    Args:
        lhs: input, rank n + 2; rhs: weights, rank n + 2, same dtype.
        window_strides, padding, lhs_dilation, rhs_dilation: n values each, in pixels, as for lax.
        dimension_numbers to preferred_element_type: as for lax.
        **kwargs: what lax takes beyond these (``out_sharding``); None counts as absent.

    Example: four particles, each with its own 3x3 weights and its own eight images.
        >>> conv = functools.partial(conv_general_dilated, window_strides=(2, 2), padding="SAME")
        >>> jax.vmap(conv)(jnp.ones((4, 8, 3, 28, 28)), jnp.ones((4, 16, 3, 3, 3))).shape
        (4, 8, 16, 14, 14)
    """
    options = dict(
        window_strides=tuple(window_strides),
        padding=padding if isinstance(padding, str) else tuple(map(tuple, padding)),
        lhs_dilation=None if lhs_dilation is None else tuple(lhs_dilation),
        rhs_dilation=None if rhs_dilation is None else tuple(rhs_dilation),
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        # Read now: lowering comes after a default_matmul_precision context has closed.
        precision=jax.config.jax_default_matmul_precision if precision is None else precision,
        preferred_element_type=preferred_element_type,
    )
    given = {name: value for name, value in kwargs.items() if value is not None}
    if given or jax.sharding.get_abstract_mesh().explicit_axes:
        given["dimension_numbers"] = dimension_numbers
        return lax.conv_general_dilated(lhs, rhs, **options, **given)
    convolution = _describe(lhs, rhs, dimension_numbers, options)
    lhs, rhs = _vary_alike(lhs, rhs)
    return _contract_p.bind(lhs, rhs, result="out", convolution=convolution, axes=())


def _describe(lhs, rhs, dimension_numbers, options):
    numbers = lax.conv_dimension_numbers(jnp.shape(lhs), jnp.shape(rhs), dimension_numbers)
    lhs, rhs = (jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in (lhs, rhs))
    convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=numbers, **options)
    out = jax.eval_shape(convolve, lhs, rhs)
    return _Convolution(lhs, rhs, out, numbers, tuple(options.items()))


def _vary_alike(*operands):
    """In a shard_map with check_vma, weights shared by all devices must be cast to varying."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in operands]
    missing = [tuple(frozenset.union(*varying) - own) for own in varying]
    return [lax.pcast(x, m, to="varying") if m else x for x, m in zip(operands, missing)]


@functools.cache
def lowering_table():
    """The committed table: ``{platform: {shape class: lowering}}``.

    Shape classes: ``"pointwise"`` (1x1 windows, no padding, no groups) and ``"window"`` (the rest).
    Lowerings: ``"unrolled"`` (one convolution per member), ``"matmul"`` (pointwise only), and
    ``"grouped"``, lax's own batching, which is also what a missing row means.

    Example:
        >>> lowering_table()["cpu"]["window"]
        'unrolled'
    """
    text = importlib.resources.files("hwa_jax").joinpath("conv_lowerings.json").read_text("utf-8")
    return json.loads(text)["lowering"]


def _matmul(lhs, rhs, *, convolution):
    """A pointwise convolution as one matrix product over the feature dimension."""
    strides = [1] * lhs.ndim
    for dimension, stride in zip(
        convolution.dimension_numbers.lhs_spec[2:], convolution.option("window_strides")
    ):
        strides[dimension] = stride
    pixels = lax.slice(lhs, [0] * lhs.ndim, lhs.shape, strides)

    def labels(spec, first, second):
        order = dict(zip(spec, (first, second, *range(3, 1 + lhs.ndim))))
        return [order[dimension] for dimension in range(lhs.ndim)]

    example, feature_in, feature_out = range(3)
    lhs_spec, rhs_spec, out_spec = convolution.dimension_numbers
    weights = rhs.reshape([rhs.shape[d] for d in sorted(rhs_spec[:2])])
    return jnp.einsum(
        pixels,
        labels(lhs_spec, example, feature_in),
        weights,
        [feature_out, feature_in] if rhs_spec[0] < rhs_spec[1] else [feature_in, feature_out],
        labels(out_spec, example, feature_out),
        precision=convolution.option("precision"),
        preferred_element_type=convolution.out.dtype,
    )


def _operand_roles(result):
    """Which two arguments of the form are given, in the order of the primitive's operands."""
    return [role for role in ("lhs", "rhs", "out") if role != result]


def _contract_member(left, right, *, result, convolution, convolve):
    """The form without vmapped axes: a convolution, or its transposition in ``result``."""
    if result == "out":
        return convolve(left, right)
    linear = (lambda x: convolve(x, left)) if result == "lhs" else (lambda x: convolve(left, x))
    argument = _abstract(
        jax.typeof(left), jax.typeof(right), result=result, convolution=convolution, axes=()
    )
    return jax.linear_transpose(linear, argument)(right)[0]


def _contract(left, right, *, result, convolution, axes, platform):
    """The whole form in lax operations, the first of ``axes`` outermost."""
    lowering = lowering_table().get(platform, {}).get(convolution.shape_class(), "grouped")
    if lowering == "matmul":
        convolve = functools.partial(_matmul, convolution=convolution)
    else:
        options = {"dimension_numbers": convolution.dimension_numbers, **dict(convolution.options)}
        convolve = functools.partial(lax.conv_general_dilated, **options)
    function = functools.partial(
        _contract_member, result=result, convolution=convolution, convolve=convolve
    )
    for axis in reversed(axes):
        if lowering == "unrolled" and axis.left and axis.right:
            function = functools.partial(_unrolled, function)
        else:
            in_axes = (0 if axis.left else None, 0 if axis.right else None)
            function = jax.vmap(function, in_axes=in_axes)
    return function(left, right)


def _unrolled(function, left, right):
    member = functools.partial(lax.index_in_dim, keepdims=False)
    return jnp.stack([function(member(left, i), member(right, i)) for i in range(left.shape[0])])


def _abstract(left, right, *, result, convolution, axes):
    struct = getattr(convolution, result)
    return left.update(
        shape=tuple(axis.size for axis in axes) + struct.shape,
        dtype=struct.dtype,
        weak_type=False,
        sharding=NamedSharding(left.sharding.mesh, PartitionSpec()),
    )


def _batch(operands, dimensions, *, result, convolution, axes):
    """vmap: an axis that the weights lack is more examples; any other joins ``axes``."""
    carried = [dimension is not None for dimension in dimensions]
    position = carried.index(True)
    size = operands[position].shape[dimensions[position]]
    roles = _operand_roles(result)
    if (
        result != "rhs"
        and not carried[roles.index("rhs")]
        and convolution.option("batch_group_count") == 1
    ):
        own_axes = sum(axis[1 + position] for axis in axes)
        target = own_axes + convolution.batch_dimension(roles[position])
        operand = jnp.moveaxis(operands[position], dimensions[position], target)
        operands = list(operands)
        operands[position] = lax.collapse(operand, target, target + 2)
        convolution = convolution.with_examples(size)
        out = _contract_p.bind(*operands, result=result, convolution=convolution, axes=axes)
        target = len(axes) + convolution.batch_dimension(result)
        examples = out.shape[target] // size
        return out.reshape(*out.shape[:target], size, examples, *out.shape[target + 1 :]), target
    operands = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dimensions)]
    axes = (_Axis(size, *carried), *axes)
    return _contract_p.bind(*operands, result=result, convolution=convolution, axes=axes), 0


def _transpose(position, cotangent, left, right, *, result, convolution, axes):
    """The cotangent of one operand: the same form with that operand left out instead."""
    roles = _operand_roles(result)
    wanted, known = roles[position], roles[1 - position]
    values = {known: (left, right)[1 - position], result: cotangent}
    carries = {known: [axis[2 - position] for axis in axes], result: [True] * len(axes)}
    first, second = _operand_roles(wanted)
    full_axes = (
        _Axis(axis.size, *flags) for axis, *flags in zip(axes, carries[first], carries[second])
    )
    full = _contract_p.bind(
        values[first], values[second], result=wanted, convolution=convolution, axes=tuple(full_axes)
    )
    shared = tuple(index for index, axis in enumerate(axes) if not axis[1 + position])
    return full.sum(shared, dtype=full.dtype) if shared else full


_contract_p = Primitive("particle_convolution")


@_contract_p.def_impl
@functools.partial(jax.jit, static_argnames=("result", "convolution", "axes"))
def _run_eagerly(left, right, *, result, convolution, axes):
    return _contract_p.bind(left, right, result=result, convolution=convolution, axes=axes)


_contract_p.def_abstract_eval(_abstract)
batching.primitive_batchers[_contract_p] = _batch
ad.defbilinear(_contract_p, functools.partial(_transpose, 0), functools.partial(_transpose, 1))
for _platform in ("cpu", "gpu", "tpu"):
    _rule = mlir.lower_fun(functools.partial(_contract, platform=_platform), multiple_results=False)
    mlir.register_lowering(_contract_p, onednn.preferred(_rule, _platform), platform=_platform)
