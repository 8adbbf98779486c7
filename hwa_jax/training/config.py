"""The configuration of a training run: every field, its default, and what is allowed."""

import math
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict, FieldReference

from hwa_jax.data.batches import DATA_MODES
from hwa_jax.data.sources import SOURCES
from hwa_jax.errors import UserError
from hwa_jax.sparsity.masks import PRUNERS
from hwa_jax.training.duration import Duration

# `hwa.window_size` that is chosen on the validation split.
AUTO = "auto"

# The fields that may differ when a run is resumed; any other difference is refused.
_MAY_CHANGE = ("num_devices", "evaluation.batch_size", "logging.every", "logging.tensorboard", "data.data_dir")
MAY_CHANGE_ON_RESUME = (
    "training.duration", "evaluation.every", "evaluation.averaging_health", "hwa.num_replicas", "hwa.replica_weights", "hwa.replica_batch_sizes",
    "hwa.data_parallel", "hwa.nan_policy", *_MAY_CHANGE,
)
SWAMP_MAY_CHANGE_ON_RESUME = ("swamp.target_sparsity", "checkpoint.every", "checkpoint.keep", *_MAY_CHANGE)


def default_config() -> ConfigDict:
    """All fields of HWA with their defaults. Durations read "500 steps", "20 epochs" or "30%".

    Example:
        >>> config = default_config()
        >>> config.hwa.num_replicas, config.hwa.sync_period
        (2, '1 epoch')
    """
    config = _shared_config()
    config.data.streamed = False  # images are read while training goes on, for a data set that does not fit
    config.data.random_resized_crop = False  # of streamed images: trains on a random part of each, resized to image_size
    config.training.ema_decay = 0.0
    config.hwa = ConfigDict({
        "num_replicas": 2,  # K
        "data_parallel": 1,  # devices that share each batch of a replica
        "sync_period": "1 epoch",  # H
        # I, in pushes; "auto": chosen on the validation split, at evaluations and at the end
        "window_size": FieldReference(10, field_type=object),
        "push_every": "",  # a multiple of sync_period; "": sync_period
        "sync_start": "0 steps",  # until then replicas are averaged after every step
        "offline_start": "0 steps",  # no outer weights are pushed before
        "keep_pushes": 0,  # how many members stay on disk for re-sweeps; 0: what resuming needs, or all to choose I from
        "data_mode": "shared", "optimizer_state": "local",
        "sync_dtype": "",  # "bfloat16": weights are synchronized by their movements, in half the bytes
        "nan_policy": "stop",  # or "drop": a replica whose loss or gradient is not finite restarts from the mean of the others
        "replica_weights": (),  # how much each replica counts in averages, K numbers; (): all the same
        # Images in each replica's batch, K divisors of training.batch_size; a smaller batch is filled up with copies of its
        # own, each augmented anew, and costs as much as a full one. (): all are full.
        "replica_batch_sizes": (),
        # Acts on the averaged movement; "": none. With sgd, 0.7, 0.9 and Nesterov it is DiLoCo.
        "outer_optimizer": ConfigDict({"name": "", "learning_rate": 0.7, "momentum": 0.9, "nesterov": True, "options": ConfigDict()}),
        # Training images on which every network that is evaluated runs forward first, for BatchNorm statistics of its own.
        "recalibration_examples": 2000,
    })
    config.evaluation.every = "1 epoch"
    config.evaluation.averaging_health = False  # whether every push looks after its average, and warns where it is worse
    return config.lock()


def default_swamp_config() -> ConfigDict:
    """All fields of SWAMP, and of IMP, with their defaults; `training.duration` is T, the length of a cycle.

    Example:
        >>> config = default_swamp_config()
        >>> config.swamp.num_particles, config.swamp.fraction
        (4, 0.2)
        >>> config.swamp.num_particles = (1, 1, 4)
    """
    config = _shared_config()
    config.swamp = ConfigDict({
        # N; or a tuple: of the first cycles one by one, the last one for all later cycles (SWAMP+).
        "num_particles": FieldReference(4, field_type=object),
        "prunable": "kernel$",  # a regular expression over paths; "": every leaf of two or more dimensions
        "pruner": "magnitude",
        "fraction": 0.2,  # of the remaining weights, pruned after every cycle
        "keep_one_per_output": False,  # the largest remaining weight of each output unit stays
        "target_sparsity": 0.9,  # the first cycle at or above it is the last
        "ticket_duration": "2 epochs",  # T0
        "swa": True,  # otherwise a particle is its last weights
        "swa_start": "75%",  # of a cycle
        "swa_learning_rate": 0.05,
        "swa_period": "1 epoch",
        "averaging": "always",
        "gate_fraction": 0.05,  # of the training images, held out of training to compare average and particles
        "rewind": "ticket",
        "recalibration_examples": 2000,
    })
    return config.lock()


def _shared_config():
    config = ConfigDict()
    config.seed = 0
    config.num_devices = 0  # 0: all
    config.init_from = ""  # a file of `experiments/evaluate.py export` to start from
    config.data = ConfigDict({
        "name": "digits",  # or, with another source, what reports call the data
        "source": "name",  # "folder" or "numpy": your own images, see `hwa_jax.data.load`
        "data_dir": "",
        "image_size": 0,  # pixels, of a folder's or streamed images; 0: as they are
        "num_train": 0, "validation_fraction": 0.1, "label_noise": 0.0, "seed": 0, "crop_padding": 0, "flip": False,
    })
    config.model = ConfigDict({"name": "cnn_s", "norm": "", "dtype": "float32"})
    config.optimizer = ConfigDict({
        "name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "decoupled": False,
        "decay_pattern": "kernel$", "options": ConfigDict(), "wrapper": "none", "lookahead_period": 5, "lookahead_rate": 0.5,
        "sam_radius": 0.05,
    })
    config.schedule = ConfigDict({
        "name": "constant", "warmup": "0 steps", "milestones": ("50%", "75%"), "factor": 0.1, "final_fraction": 0.0,
    })
    config.training = ConfigDict({
        "batch_size": 100, "duration": "20 epochs", "label_smoothing": 0.0,
        # Optimizer steps that the device makes in one call, where nothing is due between them. 0: one on a CPU, where
        # convolutions are slow in a loop, elsewhere what gives the fewest calls. Convolutions may round differently.
        "steps_per_call": 0,
    })
    config.evaluation = ConfigDict({"batch_size": 500, "train_examples": 1000})
    config.checkpoint = ConfigDict({"every": "1 epoch", "keep": 2})
    config.logging = ConfigDict({"every": "50 steps", "tensorboard": True})
    return config


def validate(config: ConfigDict, begin: Callable[[], ConfigDict] = default_config) -> None:
    """Checks what can be checked without data and devices.

    Args:
        config: of a training.
        begin: makes the configuration whose fields it must have, `default_config` or `default_swamp_config`.

    Raises:
        UserError: a field that is missing or out of range; the message names the field, the value and
            what is allowed.

    Example:
        >>> config = default_config(); config.hwa.window_size = 0
        >>> validate(config)
        Traceback (most recent call last):
        ...
        hwa_jax.errors.UserError: hwa.window_size=0: must be an int of at least 1, or 'auto'
    """
    known = _flatten(begin().to_dict())
    missing = known.keys() - _flatten(dict(config)).keys()
    if missing:
        raise UserError(f"{min(missing)} is missing in the configuration: get_config() begins with {begin.__name__}()")
    for field in _fields(_LEAST, known):
        # A comparison with NaN is false.
        if not _LEAST[field] <= _get(config, field) < math.inf:
            raise UserError(f"{field}={_get(config, field)!r}: must be at least {_LEAST[field]}")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed={config.seed!r}: must be at least 0 and below 2**32")
    for field in _fields(_CHOICES, known):
        if _get(config, field) not in _CHOICES[field]:
            raise UserError(f"{field}={_get(config, field)!r}: give one of {', '.join(map(repr, _CHOICES[field]))}")
    for field in _fields(_FRACTIONS, known):
        if not 0 <= _get(config, field) < 1:
            raise UserError(f"{field}={_get(config, field)!r}: must be at least 0 and below 1")
    for field in _fields(_POSITIVE_FRACTIONS, known):
        if not 0 < _get(config, field) < 1:
            raise UserError(f"{field}={_get(config, field)!r}: must be above 0 and below 1")
    for field in _fields(_DURATIONS, known):
        Duration.parse(_get(config, field), field)
    if "data.streamed" in known:
        _validate_streaming(config)
    if "hwa.replica_weights" in known:
        _validate_replica_weights(config.hwa)
        _validate_replica_batch_sizes(config)
        _validate_window_size(config.hwa.window_size)


def differences(stored: dict[str, Any], config: ConfigDict) -> list[tuple[str, Any, Any]]:
    """The fields in which a stored configuration and this one differ: (field, stored, new).

    A field that a stored configuration of an earlier version does not have counts as its default.

    Example:
        >>> stored = default_config().to_dict(); stored["seed"] = 1
        >>> differences(stored, default_config())
        [('seed', 1, 0)]
    """
    old, new = _completed(stored), _flatten(config.to_dict())
    return [(field, old.get(field), new.get(field)) for field in sorted({*old, *new}) if old.get(field) != new.get(field)]


_LEAST = {
    "num_devices": 0, "hwa.num_replicas": 1, "hwa.data_parallel": 1, "hwa.keep_pushes": 0, "hwa.recalibration_examples": 1,
    "training.batch_size": 1, "training.steps_per_call": 0, "evaluation.batch_size": 1, "evaluation.train_examples": 1,
    "checkpoint.keep": 1, "data.num_train": 0, "data.image_size": 0, "data.crop_padding": 0, "optimizer.weight_decay": 0.0, "optimizer.lookahead_period": 1,
    "optimizer.learning_rate": 0.0, "optimizer.sam_radius": 0.0, "optimizer.lookahead_rate": 0.0, "schedule.factor": 0.0,
    "schedule.final_fraction": 0.0, "hwa.outer_optimizer.learning_rate": 0.0, "swamp.swa_learning_rate": 0.0, "swamp.recalibration_examples": 1,
}
_CHOICES = {
    "data.source": SOURCES,
    "model.norm": ("", "batch", "group", "none"), "model.dtype": ("float32", "bfloat16"),
    "hwa.data_mode": DATA_MODES, "hwa.nan_policy": ("stop", "drop"), "hwa.sync_dtype": ("", "bfloat16"), "hwa.optimizer_state": ("local", "average", "reset"),
    "swamp.pruner": PRUNERS, "swamp.averaging": ("always", "when_safe"), "swamp.rewind": ("ticket", "previous"),
}
_FRACTIONS = (
    "data.validation_fraction", "data.label_noise", "training.label_smoothing", "training.ema_decay", "optimizer.momentum",
    "swamp.gate_fraction", "hwa.outer_optimizer.momentum",
)
_POSITIVE_FRACTIONS = ("swamp.fraction", "swamp.target_sparsity")
_DURATIONS = (
    "training.duration", "hwa.sync_period", "hwa.sync_start", "hwa.offline_start", "evaluation.every", "checkpoint.every",
    "logging.every", "schedule.warmup", "swamp.ticket_duration", "swamp.swa_start", "swamp.swa_period",
)


def _validate_window_size(size):
    if size != AUTO and not (type(size) is int and size >= 1):
        raise UserError(f"hwa.window_size={size!r}: must be an int of at least 1, or {AUTO!r}")


def _validate_streaming(config):
    fields = config.data
    if fields.random_resized_crop and not (fields.streamed and fields.image_size):
        raise UserError("data.random_resized_crop=True: needs data.streamed=True and data.image_size, 224 for example; set them, or give False")
    if not fields.streamed:
        return
    for field, allowed in {"data.source": ("name",), "data.label_noise": (0,), "training.steps_per_call": (0, 1), "hwa.replica_batch_sizes": ((),)}.items():
        if _get(config, field) not in allowed:
            raise UserError(f"{field}={_get(config, field)!r}: with data.streamed=True give {allowed[0]!r}")


def _validate_replica_weights(hwa):
    weights = tuple(hwa.replica_weights)
    # A comparison with NaN is false.
    if weights and not (len(weights) == hwa.num_replicas and all(0 <= w < math.inf for w in weights) and any(weights)):
        raise UserError(f"hwa.replica_weights={weights}: give hwa.num_replicas={hwa.num_replicas} numbers, at least 0 and not all 0, or none")


def _validate_replica_batch_sizes(config):
    sizes, full = tuple(config.hwa.replica_batch_sizes), config.training.batch_size
    if sizes and not (len(sizes) == config.hwa.num_replicas and all(type(b) is int and b >= 1 and full % b == 0 for b in sizes)):
        raise UserError(
            f"hwa.replica_batch_sizes={sizes}: give hwa.num_replicas={config.hwa.num_replicas} divisors of training.batch_size={full}, or none"
        )


def _completed(stored):
    """Flat, with the defaults of what a training's configuration lacks; a comparison has one under "base"."""
    if "base" in stored:
        base = {f"base.{field}": value for field, value in _completed(stored["base"]).items()}
        return _flatten({name: value for name, value in stored.items() if name != "base"}) | base
    default = default_swamp_config if "swamp" in stored else default_config
    return _flatten(default().to_dict()) | _flatten(stored)


def _fields(table, known):
    return [field for field in table if field in known]


def _get(config, field):
    for name in field.split("."):
        config = config[name]
    return config


def _flatten(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        if isinstance(value, (dict, ConfigDict)):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            # JSON knows lists only.
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat
