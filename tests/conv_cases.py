"""Geometries, operands and comparisons shared by the convolution's tests."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hwa_jax.conv import conv_general_dilated

NHWC = ("NHWC", "HWIO", "NHWC")
QUICK = {"xla_backend_optimization_level": 0}  # numbers are compared here, not speed

# name: (lhs shape, rhs shape, options)
GEOMETRIES = {
    "strided": ((2, 7, 7, 3), (3, 3, 3, 4), dict(window_strides=(2, 2), padding="SAME")),
    "uneven": (
        (2, 8, 5, 3),
        (3, 2, 3, 4),
        dict(window_strides=(3, 1), padding=[(2, 0), (-1, 3)], rhs_dilation=(2, 1)),
    ),
    "transposed": (
        (2, 4, 4, 3),
        (3, 3, 3, 4),
        dict(window_strides=(1, 1), padding=[(1, 2), (2, 1)], lhs_dilation=(2, 2)),
    ),
    "feature groups": (
        (2, 5, 5, 4),
        (3, 3, 2, 6),
        dict(window_strides=(2, 1), padding="VALID", feature_group_count=2),
    ),
    "batch groups": (
        (4, 5, 5, 3),
        (3, 3, 3, 6),
        dict(window_strides=(1, 1), padding="SAME", batch_group_count=2),
    ),
    "pointwise": ((2, 5, 7, 3), (1, 1, 3, 4), dict(window_strides=(2, 3), padding="SAME")),
    "padded pointwise": (
        (2, 4, 4, 3),
        (1, 1, 3, 4),
        dict(window_strides=(1, 2), padding=[(0, 1), (2, 0)]),
    ),
}


def random_pair(lhs_shape, rhs_shape, lhs_axes=(), rhs_axes=(), dtype=jnp.float32):
    """Made by NumPy: JAX would compile a program per shape."""
    rng = np.random.default_rng(0)
    shapes = (*lhs_axes, *lhs_shape), (*rhs_axes, *rhs_shape)
    return tuple(jnp.asarray(rng.normal(size=shape).astype(dtype)) for shape in shapes)


def nonlinear(convolve, options):
    """A loss of one convolution in which every output and every derivative matters."""
    numbers = {"dimension_numbers": NHWC, **options}
    return lambda lhs, rhs: jnp.sum(jnp.tanh(convolve(lhs, rhs, **numbers) / 3))


def assert_same(ours, theirs, tolerance=1e-5):
    """Equal to ``tolerance`` of the largest entry, with the same dtypes and tree."""

    def compare(mine, reference):
        assert mine.dtype == reference.dtype
        reference = np.asarray(reference, np.float64)
        scale = np.abs(reference).max() + 1e-30
        np.testing.assert_allclose(np.asarray(mine, np.float64), reference, 0, tolerance * scale)

    jax.tree.map(compare, ours, theirs)


def assert_same_as_lax(program, *operands, tolerance=1e-5):
    programs = [program(f) for f in (conv_general_dilated, lax.conv_general_dilated)]
    both = jax.jit(lambda *operands: [f(*operands) for f in programs], compiler_options=QUICK)
    assert_same(*both(*operands), tolerance)
