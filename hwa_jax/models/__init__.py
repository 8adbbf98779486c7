"""NNX image classifiers by name (MLP, CNN-S, ResNet, WRN, VGG) and a table of parameters."""

from hwa_jax.models.overview import overview
from hwa_jax.models.registry import NAMES
from hwa_jax.models.registry import create

__all__ = ["NAMES", "create", "overview"]
