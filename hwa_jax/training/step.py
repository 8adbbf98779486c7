"""One optimizer step of one particle, to be vectorized over particles."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hwa_jax.collectives import together
from hwa_jax.data import Split, augmentation, batches
from hwa_jax.offline import Average
from hwa_jax.training.functional import FunctionalModel

NEVER = jnp.iinfo(jnp.int32).max
PARTICLES = ("device", "particle")


class Progress(NamedTuple):
    """What the steps since the last log amounted to; per particle.

    Attributes:
        loss: float32, summed training loss, nats.
        correct: int32, correct predictions.
        steps: int32, number of steps summed.
        first_non_finite: int32, the first step (counted from 1) whose loss or gradient was not finite,
            else `NEVER`; never cleared.
    """

    loss: jax.Array
    correct: jax.Array
    steps: jax.Array
    first_non_finite: jax.Array

    @property
    def is_healthy(self) -> jax.Array:
        """Whether all steps were finite: the weight 1.0 or 0.0 that a particle then has in an average."""
        return (self.first_non_finite == NEVER).astype(jnp.float32)

    @classmethod
    def zero(cls, first_non_finite: Any = NEVER) -> "Progress":
        """No steps yet."""
        zero = jnp.int32(0)
        return cls(jnp.float32(0), zero, zero, jnp.int32(first_non_finite))


class TrainState(NamedTuple):
    """All that a training carries from step to step. Leaves but `step` have a leading axis K once stacked.

    Attributes:
        step: int32 scalar, completed steps, shared by all particles.
        params: float32 weights.
        batch_stats: BatchNorm running statistics, empty without BatchNorm.
        opt_state: the optimizer's state.
        ema: state of an average of the weights over time (exponential, or of SWAMP's particles uniform), or ().
        progress: sums for the log.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    progress: Progress


# Which parts of a TrainState carry the particle axis, for `particles.vectorize`.
STATE_AXES = TrainState(step=None, params=0, batch_stats=0, opt_state=0, ema=0, progress=0)


def make_step(
    model: FunctionalModel,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    mean: Any,
    std: Any,
    augment: dict[str, Any],
    label_smoothing: float = 0.0,
    ema: Average | None = None,
    data_axis: str | None = None,
    drop_lost: bool = False,
    steps_per_epoch: int,
) -> Callable[[TrainState, jax.Array | None, Split, jax.Array, dict[str, Any]], TrainState]:
    """The step of one particle: batch, augmentation, gradient, update, sums.

    Args:
        model: the network.
        optimizer: its update may use `grad_fn(params, i)`.
        mean, std: [c], normalization constants.
        augment: arguments of `augmentation.augment`.
        label_smoothing: in [0, 1), mass spread evenly over all classes.
        ema: an exponential average to keep.
        data_axis: a bound mesh axis whose devices share the particle's batch: each takes its rows, and loss and
            gradient are the means of all. The model pools its BatchNorm moments over it (`from_nnx(data_axis=...)`).
        drop_lost: whether the optimizer's update is given `weights`: 0 from a particle's first loss or gradient on
            that is not finite, else 1.
        steps_per_epoch: of this particle.

    Returns:
        step(state, indices [steps per epoch, batch], split on the device, key, extra) -> state; where batches are
        streamed indices is None and the split the batch itself. extra: more arguments of the optimizer's update. Inside `particles.vectorize` the key is folded with
        particle, epoch and step, so the numbers drawn depend on nothing else; but what the model draws within
        its layers, on the devices that share the batch too.
    """

    def losses(params, batch_stats, images, labels, key):
        logits, batch_stats = model.train(params, batch_stats, images, key)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        return loss, (batch_stats, (logits.argmax(-1) == labels).sum(dtype=jnp.int32))

    def step(state, indices, split, key, extra):
        epoch, position = state.step // steps_per_epoch, state.step % steps_per_epoch
        key = jax.random.fold_in(jax.random.fold_in(key, jax.lax.axis_index(PARTICLES)), epoch)
        augment_key, model_key = jax.random.split(jax.random.fold_in(key, position))
        images, labels, first, batch_size = batches.take(split, indices, position, data_axis)
        if data_axis is not None:
            model_key = jax.random.fold_in(model_key, first)
        images = augmentation.augment(augment_key, images, first=first, batch_size=batch_size, **augment)
        images = augmentation.normalize(images, mean, std)

        def of_batch(params):
            (loss, (batch_stats, correct)), gradients = jax.value_and_grad(losses, has_aux=True)(
                params, state.batch_stats, images, labels, model_key
            )
            if data_axis is not None:
                loss, gradients = together(jax.lax.pmean, (loss, gradients), data_axis)
                correct = jax.lax.psum(correct, data_axis)
            return gradients, loss, batch_stats, correct

        gradients, loss, batch_stats, correct = of_batch(state.params)
        done = state.step + 1
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradients))
        progress = Progress(
            loss=state.progress.loss + loss.astype(jnp.float32),
            correct=state.progress.correct + correct,
            steps=state.progress.steps + 1,
            first_non_finite=jnp.minimum(state.progress.first_non_finite, jnp.where(finite, NEVER, done)),
        )
        weights = {"weights": progress.is_healthy} if drop_lost else {}
        updates, opt_state = optimizer.update(
            gradients, state.opt_state, state.params, grad_fn=lambda params, _: of_batch(params)[0], **weights, **extra
        )
        params = optax.apply_updates(state.params, updates)
        averaged = ema.update(state.ema, params) if ema else state.ema
        return TrainState(done, params, batch_stats, opt_state, averaged, progress)

    return step
