"""NNX image classifiers by name: MLP, CNN-S, ResNet, WRN, VGG."""

from hwa_jax.models.registry import NAMES
from hwa_jax.models.registry import create

__all__ = ["NAMES", "create"]
