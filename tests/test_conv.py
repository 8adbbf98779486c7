"""The particle-aware convolution has lax's numbers under every transformation it promises."""

import re

import jax
import jax.numpy as jnp
import pytest
from conv_cases import (
    GEOMETRIES,
    NHWC,
    assert_same,
    assert_same_as_lax,
    nonlinear,
    random_pair,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from hwa_jax.conv import conv_general_dilated

@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("mapped", [False, True])
def test_value_and_gradients_of_every_geometry(name, mapped):
    lhs_shape, rhs_shape, options = GEOMETRIES[name]
    axes = (2, 2) if mapped else ()
    operands = random_pair(lhs_shape, rhs_shape, axes, axes)

    def program(convolve):
        function = jax.value_and_grad(nonlinear(convolve, options), (0, 1))
        return jax.vmap(jax.vmap(function)) if mapped else function

    assert_same_as_lax(program, *operands)


# Which operands carry each vmapped axis, outermost first, and the axis' place.
BATCHINGS = {
    "input only": [(0, None)],
    "weights only": [(None, 0)],
    "last axes": [(-1, 2)],
    "input, then both": [(1, None), (0, 0)],
    "both, then input": [(0, 0), (-1, None)],
    "input, then weights": [(0, None), (None, 0)],
    "weights, then input": [(None, -1), (2, None)],
    "three": [(0, 0), (None, 0), (0, 0)],
}


def batched_pair(lhs_shape, rhs_shape, batching):
    shapes = [list(lhs_shape), list(rhs_shape)]
    for size, in_axes in zip((2, 3, 2), reversed(batching)):
        for shape, axis in zip(shapes, in_axes):
            if axis is not None:
                shape.insert(axis if axis >= 0 else len(shape) + 1 + axis, size)
    return random_pair(*shapes)


@pytest.mark.parametrize("batching", BATCHINGS.values(), ids=BATCHINGS.keys())
@pytest.mark.parametrize(
    "name",
    [
        "strided",
        pytest.param("feature groups", marks=pytest.mark.slow),
        pytest.param("pointwise", marks=pytest.mark.slow),
    ],
)
def test_gradients_inside_and_outside_of_vmap(name, batching):
    lhs_shape, rhs_shape, options = GEOMETRIES[name]
    operands = batched_pair(lhs_shape, rhs_shape, batching)

    def program(convolve):
        inner = nonlinear(convolve, options)
        gradient, loss = jax.value_and_grad(inner, (0, 1)), inner
        for in_axes in reversed(batching):
            gradient, loss = jax.vmap(gradient, in_axes), jax.vmap(loss, in_axes)
        total = jax.grad(lambda *operands: loss(*operands).sum(), (0, 1))
        return lambda *operands: (gradient(*operands), total(*operands))

    assert_same_as_lax(program, *operands)


def test_batch_groups_under_shared_weights():
    lhs_shape, rhs_shape, options = GEOMETRIES["batch groups"]
    lhs, rhs = random_pair(lhs_shape, rhs_shape, (3,))

    def program(convolve):
        return jax.vmap(jax.grad(nonlinear(convolve, options), (0, 1)), (0, None))

    assert_same_as_lax(program, lhs, rhs)


@pytest.mark.parametrize("name", ["strided", "pointwise"])
def test_second_derivatives_in_both_modes(name):
    lhs_shape, rhs_shape, options = GEOMETRIES[name]
    operands = random_pair(lhs_shape, rhs_shape, (2,), (2,))
    direction = jax.tree.map(jnp.cos, operands)

    def program(convolve):
        loss = nonlinear(convolve, options)
        gradient = jax.grad(loss, (0, 1))

        def directional(lhs, rhs, *along):
            return sum(jnp.vdot(a, b) for a, b in zip(gradient(lhs, rhs), along))

        def products(lhs, rhs, *along):
            return (
                jax.jvp(loss, (lhs, rhs), along),
                jax.jvp(gradient, (lhs, rhs), along)[1],
                jax.grad(directional, (0, 1))(lhs, rhs, *along),
                jax.grad(lambda *x: jax.jvp(loss, x, along)[1], (0, 1))(lhs, rhs),
            )

        return jax.vmap(products)

    assert_same_as_lax(program, *operands, *direction)
    forward, reverse = jax.jit(program(conv_general_dilated))(*operands, *direction)[1:3]
    assert_same(forward, reverse)


def test_checkpoint_recomputes_the_same_gradients():
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    assert_same_as_lax(
        lambda convolve: jax.vmap(jax.grad(jax.checkpoint(nonlinear(convolve, options)), (0, 1))),
        *random_pair(lhs_shape, rhs_shape, (2,), (2,)),
    )


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_window_in_one_dimension(data):
    draw = lambda *bounds: data.draw(st.integers(*bounds))  # noqa: E731
    groups, window = draw(1, 2), draw(1, 3)
    options = dict(
        window_strides=(draw(1, 3),),
        padding=[(draw(0, 2), draw(0, 2))],
        lhs_dilation=(draw(1, 2),),
        rhs_dilation=(draw(1, 2),),
        feature_group_count=groups,
        dimension_numbers=("CWN", "IOW", "WNC"),
    )
    operands = random_pair((2 * groups, draw(5, 7), 2), (2, 3 * groups, window), (2,), (2,))
    assert_same_as_lax(
        lambda convolve: jax.vmap(jax.value_and_grad(nonlinear(convolve, options), (0, 1))),
        *operands,
    )


@pytest.mark.parametrize("name", ["strided", "pointwise"])
@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_bfloat16_to_its_rounding(name, preferred):
    lhs_shape, rhs_shape, options = GEOMETRIES[name]
    options = {**options, "preferred_element_type": preferred}
    # Half of the distance of neighbouring bfloat16 numbers is 2**-9 of them; the results round once
    # each, and each reference once.
    assert_same_as_lax(
        lambda convolve: jax.vmap(
            lambda lhs, rhs: (
                convolve(lhs, rhs, dimension_numbers=NHWC, **options),
                jax.grad(nonlinear(convolve, options), (0, 1))(lhs, rhs),
            )
        ),
        *random_pair(lhs_shape, rhs_shape, (2,), (2,), jnp.bfloat16),
        tolerance=2**-7,
    )


@pytest.mark.parametrize(
    "lhs_shape, rhs_shape, options",
    [
        ((2, 5, 5, 3), (3, 3, 4, 4), {}),
        ((2, 5, 5, 3), (3, 3, 3), {}),
        ((2, 5, 5, 3), (3, 3, 3, 4), {"window_strides": (1,)}),
        ((2, 5, 5, 3), (3, 3, 3, 4), {"lhs_dilation": (2, 2)}),
        ((2, 5, 5, 3), (3, 3, 3, 4), {"no_such_option": 1}),
    ],
)
def test_misuse_raises_what_lax_raises(lhs_shape, rhs_shape, options):
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC, **options}
    operands = jnp.ones(lhs_shape), jnp.ones(rhs_shape)
    with pytest.raises((ValueError, TypeError)) as theirs:
        lax.conv_general_dilated(*operands, **options)
    with pytest.raises(theirs.type, match=re.escape(str(theirs.value))):
        conv_general_dilated(*operands, **options)


def test_operands_of_different_dtypes_raise_as_in_lax():
    lhs, rhs = jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 4), jnp.bfloat16)
    for convolve in (lax.conv_general_dilated, conv_general_dilated):
        with pytest.raises(TypeError, match="same dtypes"):
            convolve(lhs, rhs, (1, 1), "SAME", dimension_numbers=NHWC)


