"""Layers and blocks of the models, against cases worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hwa_jax.models.layers import BATCH_NORM_MOMENTUM, conv, normalization
from hwa_jax.models.resnet import PadShortcut, ResidualBlock, cifar_resnet
from hwa_jax.models.vgg import VGG
from hwa_jax.models.wide_resnet import PreactivationBlock


def images(shape, batch=4):
    return jax.random.normal(jax.random.key(1), (batch, *shape))


def test_normalization_under_bf16_uses_fp32_statistics():
    # In bf16 the running mean 100.2 would become 100, and (100.5 - mean) 0.5 in place of 0.3.
    layer = normalization("batch", 1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    layer.mean[...] = jnp.array([100.2])
    layer.var[...] = jnp.array([1.0 - 1e-5])
    layer.eval()
    result = layer(jnp.array([[100.5]], jnp.bfloat16))
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result, np.float64), [[0.3]], rtol=2**-8)


def test_option_a_shortcut_by_hand():
    # Pixels (0,0), (0,2), (2,0), (2,2) of a 3x3 map with values 0..8 are 0, 2, 6, 8; the second
    # channel is zeros.
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    result = PadShortcut(out_channels=2, stride=2)(x)
    assert result.tolist() == [[[[0.0, 0.0], [2.0, 0.0]], [[6.0, 0.0], [8.0, 0.0]]]]


def test_strided_branch_looks_at_the_pixels_of_the_shortcut():
    # A 3x3 kernel that is one in its centre must pick pixels 0, 2 of 4, as the shortcut does.
    layer = conv(1, 1, 3, stride=2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert jnp.array_equal(layer(x), PadShortcut(out_channels=1, stride=2)(x))


@pytest.mark.parametrize("block", ["residual", "preactivation"])
def test_blocks_without_normalization_start_as_their_shortcut(block):
    settings = {"norm": "none", "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    x = jax.nn.relu(images((4, 4, 8)))
    if block == "residual":
        module = ResidualBlock(8, ((3, 8, 1), (3, 8, 1)), project=False, **settings)
    else:
        module = PreactivationBlock(8, 8, stride=1, **settings)
    np.testing.assert_array_equal(module(x), x)
    gradients = nnx.grad(lambda m: jnp.sum(m(x) ** 2))(module)
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients))


def test_preactivation_block_projects_the_activated_input_where_shapes_differ():
    block = PreactivationBlock(2, 3, stride=2, norm="batch", dtype=jnp.float32, rngs=nnx.Rngs(0))
    block.conv2.kernel[...] = jnp.zeros_like(block.conv2.kernel[...])
    block.eval()
    x = images((4, 4, 2))
    # Fresh statistics: mean 0, variance 1, so the norm divides by sqrt(1 + 1e-5).
    activated = np.maximum(np.asarray(x) / np.sqrt(1 + 1e-5), 0)[:, ::2, ::2]
    expected = activated @ np.asarray(block.shortcut.kernel[0, 0])
    np.testing.assert_allclose(block(x), expected, rtol=1e-5, atol=1e-6)


def test_running_statistics_follow_the_stated_momentum():
    layer = normalization("batch", 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.array([[1.0, 4.0], [3.0, 8.0]])
    layer(x)
    # Batch mean (2, 6), variance (1, 4); running mean starts at 0 and variance at 1.
    assert BATCH_NORM_MOMENTUM == 0.9
    np.testing.assert_allclose(layer.mean[...], [0.2, 0.6], rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], [1.0, 0.9 + 0.4], rtol=1e-6)


@pytest.mark.parametrize(("features", "size"), [(16, 16), (640, 16), (300, 15), (100, 10), (7, 7)])
def test_group_norm_group_sizes_divide_the_channels(features, size):
    layer = normalization("group", features, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert (layer.num_groups * layer.group_size, layer.group_size) == (features, size)


def test_convolution_kernels_are_he_normal():
    layer = conv(64, 128, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    # 73,728 draws: the standard error of the deviation is 0.3 % of it.
    np.testing.assert_allclose(jnp.std(layer.kernel[...]), np.sqrt(2 / (9 * 64)), rtol=0.015)


@pytest.mark.parametrize(
    ("make", "depth"), [(cifar_resnet, 2), (cifar_resnet, 21), (cifar_resnet, 22), (VGG, 11)]
)
def test_depths_that_do_not_exist_are_refused(make, depth):
    with pytest.raises(ValueError, match=f"depth={depth}"):
        make(depth, num_classes=10, input_shape=(8, 8, 3), rngs=nnx.Rngs(0))
