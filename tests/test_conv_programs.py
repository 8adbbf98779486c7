"""What the particle-aware convolution compiles to, and how often."""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conv_cases import (
    GEOMETRIES,
    NHWC,
    assert_same,
    assert_same_as_lax,
    nonlinear,
    random_pair,
)
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from hwa_jax import conv as conv_module
from hwa_jax.conv import conv_general_dilated, lowering_table

def group_counts(compiled_text):
    counts = re.findall(r"(?:feature|batch)_group_count=(\d+)", compiled_text)
    return [int(count) for count in counts if int(count) > 1]


def compiled_text(function, *operands):
    return jax.jit(function).lower(*operands).compile().as_text()


def nested_gradient(convolve, options):
    return jax.vmap(jax.vmap(jax.grad(nonlinear(convolve, options), (0, 1))))


def test_nested_vmap_leaves_no_grouped_convolution():
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    operands = random_pair(lhs_shape, rhs_shape, (2, 3), (2, 3))
    ours = compiled_text(nested_gradient(conv_general_dilated, options), *operands)
    assert not group_counts(ours)
    assert " while(" not in ours
    # 2 x 3 members, each a convolution and two gradients
    assert len(re.findall(r" convolution\(", ours)) == 18
    theirs = compiled_text(nested_gradient(lax.conv_general_dilated, options), *operands)
    assert group_counts(theirs)


def test_second_derivatives_leave_no_grouped_convolution():
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    operands = random_pair(lhs_shape, rhs_shape, (3,), (3,))

    def curvature(lhs, rhs):
        gradient = jax.grad(nonlinear(conv_general_dilated, options), (0, 1))
        return jax.jvp(gradient, (lhs, rhs), (rhs.sum() * lhs, rhs))[1]

    text = compiled_text(jax.vmap(curvature), *operands)
    assert " convolution(" in text and not group_counts(text)


def test_an_axis_of_one_operand_costs_one_convolution():
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    lhs, rhs = random_pair(lhs_shape, rhs_shape, (5,), (5,))
    loss = nonlinear(conv_general_dilated, options)
    forward = compiled_text(jax.vmap(loss, (0, None)), lhs, rhs[0])
    assert len(re.findall(r" convolution\(", forward)) == 1
    shared_weights = jax.grad(lambda rhs: jax.vmap(loss, (0, None))(lhs, rhs).sum())
    assert len(re.findall(r" convolution\(", compiled_text(shared_weights, rhs[0]))) == 2
    shared_input = compiled_text(jax.vmap(jax.grad(loss, 1), (None, 0)), lhs[0], rhs)
    assert len(re.findall(r" convolution\(", shared_input)) == 2 and not group_counts(shared_input)


def test_pointwise_is_a_matrix_product_and_padded_pointwise_is_not():
    for name, convolutions in (("pointwise", False), ("padded pointwise", True)):
        lhs_shape, rhs_shape, options = GEOMETRIES[name]
        operands = random_pair(lhs_shape, rhs_shape, (2, 2), (2, 2))
        text = compiled_text(nested_gradient(conv_general_dilated, options), *operands)
        assert (" convolution(" in text) == convolutions


def test_a_platform_without_rows_keeps_grouped_convolutions():
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    operands = random_pair(lhs_shape, rhs_shape, (2, 3), (2, 3))
    with mock.patch.object(conv_module, "lowering_table", lambda: {}):
        program = nested_gradient(conv_general_dilated, options)
        assert group_counts(compiled_text(program, *operands))
        assert_same_as_lax(functools.partial(nested_gradient, options=options), *operands)


def test_the_committed_table_names_only_what_exists():
    assert "cpu" in lowering_table()
    for rows in lowering_table().values():
        assert set(rows) == {"pointwise", "window"}
        assert rows["pointwise"] in {"matmul", "unrolled", "grouped"}
        assert rows["window"] in {"unrolled", "grouped"}


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("shared_weights", [False, True])
def test_shard_map_around_vmap(check_vma, shared_weights):
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    lhs, rhs = random_pair(lhs_shape, rhs_shape, (8, 2), (2,) if shared_weights else (8, 2))
    mesh = jax.make_mesh((8,), ("device",), axis_types=(AxisType.Auto,))
    weights_spec = PartitionSpec() if shared_weights else PartitionSpec("device")

    def program(convolve):
        def loss(lhs, rhs):
            return jax.vmap(nonlinear(convolve, options))(lhs, rhs).sum()

        def step(lhs, rhs):
            if not shared_weights:
                return jax.vmap(jax.grad(loss, 1))(lhs, rhs)
            return lax.pmean(jax.grad(loss, 1)(lhs[0], rhs), "device")

        in_specs = (PartitionSpec("device"), weights_spec)
        return jax.shard_map(
            step, mesh=mesh, in_specs=in_specs, out_specs=weights_spec, check_vma=check_vma
        )

    assert_same_as_lax(program, lhs, rhs)
    assert not group_counts(compiled_text(program(conv_general_dilated), lhs, rhs))


def test_one_trace_serves_all_values():
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    lhs, rhs = random_pair(lhs_shape, rhs_shape, (3,), (3,))
    loss = nonlinear(conv_general_dilated, options)
    traces = []

    @jax.jit
    def step(lhs, rhs):
        traces.append(1)
        return jax.vmap(jax.grad(loss, 1))(lhs, rhs)

    for scale in range(3):
        step(lhs, scale * rhs)
    assert len(traces) == 1 and step._cache_size() == 1


def test_eager_calls_take_numpy_arrays_and_compile_once():
    lhs, rhs = (np.asarray(x) for x in random_pair((1, 9, 3), (2, 3, 4)))
    options = dict(window_strides=[2], padding="VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    call = functools.partial(conv_general_dilated, **options)
    # hand-computed: output position i sums x[2i + j, c] * w[j, c, o] over j and c
    expected = np.stack([np.einsum("jc,jco->o", lhs[0, i : i + 2], rhs) for i in (0, 2, 4, 6)])
    assert_same(call(lhs, rhs)[0], jnp.asarray(expected))
    before = conv_module._run_eagerly._cache_size()
    call(lhs + 1, rhs)
    assert conv_module._run_eagerly._cache_size() == before


def test_the_precision_context_reaches_the_lowered_program():
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]

    def gradient(lhs, rhs):
        with jax.default_matmul_precision("highest"):
            return jax.grad(nonlinear(conv_general_dilated, options), (0, 1))(lhs, rhs)

    text = jax.jit(gradient).lower(*random_pair(lhs_shape, rhs_shape)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 3 and all("HIGHEST" in line for line in lines)


def test_an_out_sharding_reaches_lax():
    mesh = jax.make_mesh((8,), ("device",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spec = PartitionSpec("device", None, None, None)
        lhs, rhs = random_pair((8, 4, 4, 3), (3, 3, 3, 4))
        sharded = jax.device_put(lhs, jax.sharding.NamedSharding(mesh, spec))
        numbers = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=NHWC)
        call = functools.partial(conv_general_dilated, **numbers)
        inferred = jax.jit(call)(sharded, rhs)
        given = jax.jit(functools.partial(call, out_sharding=spec))(lhs, rhs)
        assert jax.typeof(inferred).sharding.spec == jax.typeof(given).sharding.spec == spec
        np.testing.assert_allclose(np.asarray(inferred), np.asarray(given), rtol=0, atol=1e-5)


def test_hook_of_an_nnx_layer():
    nnx = pytest.importorskip("flax.nnx")
    images = jax.random.normal(jax.random.key(1), (3, 4, 8, 8, 2))

    def gradients(convolve):
        make = lambda seed: nnx.Conv(  # noqa: E731
            2, 4, (3, 3), strides=2, conv_general_dilated=convolve, rngs=nnx.Rngs(seed)
        )
        graph, _ = nnx.split(make(0))
        states = [nnx.split(make(seed))[1] for seed in range(3)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        loss = lambda state, images: jnp.sum(jnp.tanh(nnx.merge(graph, state)(images)))  # noqa: E731
        return jax.vmap(jax.grad(loss)), stacked

    ours, stacked = gradients(conv_general_dilated)
    theirs, _ = gradients(lax.conv_general_dilated)
    assert_same(jax.jit(ours)(stacked, images), jax.jit(theirs)(stacked, images))
    assert not group_counts(compiled_text(ours, stacked, images))
