"""Optimizers and learning-rate schedules from a configuration."""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax import contrib

from hwa_jax.errors import UserError
from hwa_jax.paths import matching
from hwa_jax.replica_mean import AxisName
from hwa_jax.training.duration import Duration

SCHEDULES = ("constant", "cosine", "step")
WRAPPERS = ("none", "lookahead", "sam")


def make_schedule(config: Any, learning_rate: float, steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    Args:
        config: `config.schedule`: name ("constant", "cosine" or "step"), warmup (a duration, linear
            from zero), milestones (durations at which "step" multiplies by factor), factor, and
            final_fraction (the share of the rate at which "cosine" ends).
        learning_rate: the peak rate.
        steps_per_epoch: of one particle.
        total_steps: of the whole training.

    Raises:
        UserError: an unknown name, a warm-up that leaves nothing.
    """
    if config.name not in SCHEDULES:
        raise UserError(f"schedule.name={config.name!r}: give one of {', '.join(SCHEDULES)}")
    warmup = Duration.parse(config.warmup, "schedule.warmup").steps(steps_per_epoch, total_steps)
    if warmup >= total_steps:
        raise UserError(f"schedule.warmup={config.warmup!r} is {warmup} steps of {total_steps}: give less than the whole training")
    if config.name == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, total_steps - warmup, config.final_fraction)
    elif config.name == "step":
        boundaries = [
            Duration.parse(text, "schedule.milestones").steps(steps_per_epoch, total_steps) - warmup
            for text in config.milestones
        ]
        # Two milestones may round to one step.
        factors = {b: config.factor ** boundaries.count(b) for b in boundaries}
        main = optax.piecewise_constant_schedule(learning_rate, factors)
    else:
        main = optax.constant_schedule(learning_rate)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), main], [warmup])


def make_optimizer(config: Any, schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """The inner optimizer.

    Args:
        config: `config.optimizer`: name ("sgd", or any optimizer of optax or optax.contrib by its
            name), momentum and nesterov (SGD), weight_decay with decoupled ("sgd": False adds
            weight_decay · w to the gradient, True subtracts rate · weight_decay · w; others take
            weight_decay as their own argument), decay_pattern (a regular expression searched in the
            "/"-joined path; matching leaves decay), options (further arguments of that optimizer),
            wrapper ("none", "lookahead", "sam") with lookahead_period, lookahead_rate and sam_radius.
        schedule: step -> learning rate.

    Returns:
        A transformation whose update takes `grad_fn(params, i)` as an extra argument (SAM calls it).

    Raises:
        UserError: an unknown name or argument.
    """
    optimizer = _base_optimizer(config, schedule, "optimizer")
    if config.wrapper == "lookahead":
        optimizer = lookahead(optimizer, config.lookahead_period, config.lookahead_rate)
    elif config.wrapper == "sam":
        adversary = optax.chain(contrib.normalize(), optax.sgd(config.sam_radius))
        optimizer = contrib.sam(optimizer, adversary, sync_period=2, opaque_mode=True)
    elif config.wrapper != "none":
        raise UserError(f"optimizer.wrapper={config.wrapper!r}: give one of {', '.join(WRAPPERS)}")
    return optax.with_extra_args_support(optimizer)


def make_outer_optimizer(config: Any) -> optax.GradientTransformation | None:
    """The optimizer of the averaged movement, at a constant rate, or None.

    Args:
        config: `config.hwa.outer_optimizer`: name ("" for none), learning_rate, momentum, nesterov and options as those of
            `make_optimizer`. It decays no weights.

    Raises:
        UserError: an unknown name or argument.

    Example:
        >>> from hwa_jax.training.config import default_config
        >>> print(make_outer_optimizer(default_config().hwa.outer_optimizer))
        None
    """
    if not config.name:
        return None
    complete = ConfigDict({**config, "weight_decay": 0.0, "decoupled": False, "decay_pattern": ""})
    return _base_optimizer(complete, config.learning_rate, "hwa.outer_optimizer")


def with_replica_weights(
    optimizer: optax.GradientTransformationExtraArgs, weights: Sequence[float], axis_name: AxisName
) -> optax.GradientTransformationExtraArgs:
    """An optimizer with an online average whose replicas count as these weights say.

    Args:
        optimizer: as `hwa_jax.with_online_average` returns it.
        weights: one number per replica, in the order of `jax.lax.axis_index(axis_name)`; none at all: all the same.
            Weights that the update is given multiply them.
        axis_name: over which the replicas lie.
    """
    if not weights:
        return optimizer

    def update(updates, state, params=None, **extra_args):
        weight = jnp.asarray(weights, jnp.float32)[jax.lax.axis_index(axis_name)]
        extra_args["weights"] = weight * extra_args.get("weights", 1.0)
        return optimizer.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


class LookaheadState(NamedTuple):
    """State of `lookahead`.

    Attributes:
        slow: the slow weights, structure, shapes and dtypes of the parameters.
        inner_state: optax's own state.
    """

    slow: Any
    inner_state: Any


def lookahead(inner: optax.GradientTransformation, sync_period: int, slow_step_size: float) -> optax.GradientTransformation:
    """optax.lookahead for loops that hold one set of weights: the slow ones live in the state.

    The parameters of the loop are the fast weights φ; every `sync_period` steps the slow ones move,
    θ ← θ + slow_step_size · (φ - θ), and φ restarts from θ.

    References:
        Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, 2019, arXiv 1907.08610.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = lookahead(optax.sgd(1.0), 2, 0.5)
        >>> params = jnp.array(0.0); state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(jnp.array(1.0), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> float(params), float(state.slow)
        (-1.0, -1.0)
    """
    pair = optax.lookahead(inner, sync_period, slow_step_size)

    def init(params):
        return LookaheadState(params, pair.init(optax.LookaheadParams(params, params)))

    def update(updates, state, params):
        both, inner_state = pair.update(updates, state.inner_state, optax.LookaheadParams(params, state.slow))
        return both.fast, LookaheadState(optax.apply_updates(state.slow, both.slow), inner_state)

    return optax.GradientTransformation(init, update)


def _base_optimizer(config, schedule, field):
    def mask(params):
        return matching(config.decay_pattern, params, f"{field}.decay_pattern")

    if config.name == "sgd":
        decay = optax.add_decayed_weights(config.weight_decay, mask=mask) if config.weight_decay else optax.identity()
        momentum = optax.trace(config.momentum, nesterov=config.nesterov) if config.momentum else optax.identity()
        parts = (momentum, decay) if config.decoupled else (decay, momentum)
        return optax.chain(*parts, optax.scale_by_learning_rate(schedule))
    factory = getattr(optax, config.name, None) or getattr(contrib, config.name, None)
    if not callable(factory):
        close = difflib.get_close_matches(config.name, [*dir(optax), *dir(contrib)], 3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(f"{field}.name={config.name!r}: optax has no optimizer of this name{hint}")
    # Passed even when zero: optax's own default decays every leaf.
    accepted = inspect.signature(factory).parameters
    decay = {"weight_decay": config.weight_decay, "mask": mask}
    options = dict(config.options) | {name: decay[name] for name in decay if config.weight_decay or name in accepted}
    try:
        optimizer = factory(schedule, **options)
    except TypeError as error:
        raise UserError(f"{field}.name={config.name!r} does not take these arguments: {error}; see {field}.options") from error
    if not isinstance(optimizer, optax.GradientTransformation):
        raise UserError(f"{field}.name={config.name!r}: is no optimizer of optax; give one, adamw for example")
    return optimizer
