"""Weight averaging for JAX: across replicas, across time, and across sparse particles.

Importing the package loads JAX and optax alone; what needs Flax, Orbax or a data library loads at
first use.
"""

import importlib

from hwa_jax import particles as particles
from hwa_jax.batch_stats import pool_across as pool_across
from hwa_jax.batch_stats import recalibrate_batch_stats as recalibrate_batch_stats
from hwa_jax.conv import conv_general_dilated as conv_general_dilated
from hwa_jax.errors import UserError as UserError
from hwa_jax.offline import exponential_average as exponential_average
from hwa_jax.offline import sliding_window as sliding_window
from hwa_jax.offline import uniform_average as uniform_average
from hwa_jax.online import online_average as online_average
from hwa_jax.online import synchronize as synchronize
from hwa_jax.online import with_online_average as with_online_average
from hwa_jax.sparsity import masks as masks
from hwa_jax.sparsity.update import sparse_update as sparse_update

__version__ = "0.1.0"

_LAZY = {
    "WindowStore": "hwa_jax.storage.window_store",
    "load_predictor": "hwa_jax.training.predictor",
    "load_sparse_predictor": "hwa_jax.training.sparse_predictor",
    "load_weights": "hwa_jax.storage.safetensors",
}


def __getattr__(name):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hwa_jax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_LAZY])
