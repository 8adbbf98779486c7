"""Forward passes against a second, functional writing of the papers; work against known figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from hwa_jax import models
from hwa_jax.models import layers

INPUT_SHAPE = (9, 6, 3)


def random_model(name, norm):
    """Model in evaluation mode whose scales, biases and statistics are not their initial values."""
    model = nnx.eval_shape(
        lambda: models.create(
            name, num_classes=4, input_shape=INPUT_SHAPE, norm=norm, rngs=nnx.Rngs(0)
        )
    )
    model.eval()
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 4
        values = generator.normal(size=leaf.shape) * np.sqrt(2 / fan_in)
        positive = path[-1].key in ("scale", "var")
        return jnp.asarray(np.abs(values) + 0.5 if positive else values, jnp.float32)

    graphdef, state = nnx.split(model)
    tree = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
    return nnx.merge(graphdef, nnx.State(tree)), tree


def conv(x, p, stride=1, padding=1):
    pads = padding if isinstance(padding, str) else ((padding, padding),) * 2
    y = lax.conv_general_dilated(
        x, p["kernel"], (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + p.get("bias", 0.0)


def norm(x, p):
    return (x - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def cnn_s(x, p):
    for index in (1, 2, 3):
        x = jax.nn.relu(conv(x, p["features"][f"block{index}"]["conv"], 2, "SAME"))
    return dense(x.reshape(x.shape[0], -1), p["classifier"])


def resnet8(x, p):
    x = jax.nn.relu(norm(conv(x, p["stem"]["conv"]), p["stem"]["norm"]))
    for group, stride in ((1, 1), (2, 2), (3, 2)):
        branch = p["blocks"][f"group{group}_block1"]["branch"]
        first, second = branch["layer1"], branch["layer2"]
        y = jax.nn.relu(norm(conv(x, first["conv"], stride), first["norm"]))
        y = norm(conv(y, second["conv"]), second["norm"])
        x = x[:, ::stride, ::stride]
        x = jax.nn.relu(y + jnp.concatenate([x, jnp.zeros_like(y[..., x.shape[-1] :])], -1))
    return dense(x.mean((1, 2)), p["classifier"])


def wrn_10_2(x, p):
    x = conv(x, p["stem"])
    for group, stride in ((1, 1), (2, 2), (3, 2)):
        block = p["blocks"][f"group{group}_block1"]
        activated = jax.nn.relu(norm(x, block["norm1"]))
        y = conv(activated, block["conv1"], stride)
        y = conv(jax.nn.relu(norm(y, block["norm2"])), block["conv2"])
        x = y + conv(activated, block["shortcut"], stride, 0)
    return dense(jax.nn.relu(norm(x, p["norm"])).mean((1, 2)), p["classifier"])


@pytest.mark.parametrize(
    ("name", "norm_name", "reference"),
    [("cnn_s", "none", cnn_s), ("resnet8", "batch", resnet8), ("wrn-10-2", "batch", wrn_10_2)],
)
def test_forward_pass_equals_the_reference(name, norm_name, reference):
    model, tree = random_model(name, norm_name)
    x = jax.random.normal(jax.random.key(0), (2, *INPUT_SHAPE))
    expected = jax.jit(reference)(x, tree)
    assert jnp.std(expected) > 0.1
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(model, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "num_classes", "millions"),
    [
        # 28x28x1: 14*14*16*9 + 7*7*32*144 + 4*4*64*288 = 28,224 + 225,792 + 294,912.
        ("cnn_s", 28, 10, 0.548928),
        # 16*27*1024 + 6*9*16*16*1024 + (9*16*32 + 5*9*32*32)*256 + (9*32*64 + 5*9*64*64)*64.
        ("resnet20", 32, 10, 40.550400),
        # The others are the figures commonly reported for these networks, convolutions only;
        # 4,087 is ResNet-50 with the stride on the 3x3 convolution (3,858 with it on the 1x1).
        ("resnet18", 32, 10, 555.4),
        ("resnet50", 224, 1000, 4087.0),
        ("wrn-28-10", 32, 10, 5243.0),
        ("vgg16", 32, 10, 313.2),
    ],
)
def test_multiplications_of_the_convolutions(monkeypatch, name, size, num_classes, millions):
    # Strides and pooling change no parameter count; the work shows them.
    total = 0

    def counting(lhs, rhs, *args, out_sharding=None, **kwargs):
        nonlocal total
        out = lax.conv_general_dilated(lhs, rhs, *args, **kwargs)
        total += out.size * rhs.size // rhs.shape[-1]
        return out

    monkeypatch.setattr(layers, "conv_general_dilated", counting)
    input_shape = (size, size, 1 if name == "cnn_s" else 3)

    def run():
        settings = {"num_classes": num_classes, "input_shape": input_shape}
        return models.create(name, rngs=nnx.Rngs(0), **settings)(jnp.zeros((1, *input_shape)))

    nnx.eval_shape(run)
    assert total / 1e6 == pytest.approx(millions, rel=1e-3)
