"""Models that cannot be built: one line that names the field and the value."""

import re

import pytest
from flax import nnx

from hwa_jax import models
from hwa_jax.errors import UserError


@pytest.mark.parametrize(
    ("name", "closest"),
    [
        ("resnet-20", "resnet20"),
        ("vgg_16", "vgg16"),
        ("wrn28-10", "wrn-28-10"),
        ("cnns", "cnn_s"),
        ("wrn-28-10\n", "wrn-28-10"),
        ("wrn-D-k", "wrn-"),
        ("", ""),
    ],
)
def test_unknown_name_gets_one_line_with_the_closest(name, closest):
    with pytest.raises(UserError, match=re.escape(repr(name))) as caught:
        models.create(name, num_classes=10, input_shape=(8, 8, 1), rngs=nnx.Rngs(0))
    message = str(caught.value)
    assert f"closest is '{closest}" in message
    assert "\n" not in message
    assert all(known in message for known in models.NAMES)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"norm": "layer"}, "norm='layer'"),
        ({"norm": "Batch"}, "norm='Batch'"),
        ({"norm": ""}, "norm=''"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"input_shape": (0, 8, 1)}, "input_shape=(0, 8, 1)"),
        ({"input_shape": (8, 8)}, "input_shape=(8, 8)"),
        ({"input_shape": (8, 8, -1)}, "input_shape=(8, 8, -1)"),
        ({"name": "wrn-27-10"}, "wrn-27-10"),
        ({"name": "wrn-4-1"}, "wrn-4-1"),
        ({"name": "wrn-2-1"}, "wrn-2-1"),
        ({"name": "wrn-0-1"}, "wrn-0-1"),
        ({"name": "wrn-16-0"}, "wrn-16-0"),
    ],
)
def test_impossible_settings_name_the_field_and_the_value(settings, field):
    arguments = {"name": "mlp", "num_classes": 10, "input_shape": (8, 8, 1)} | settings
    with pytest.raises(UserError, match=re.escape(field)) as caught:
        models.create(**arguments, rngs=nnx.Rngs(0))
    assert "\n" not in str(caught.value)
