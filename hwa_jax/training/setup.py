"""From a configuration to the pieces of a training: data, network, optimizer, compiled steps."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from hwa_jax import data, models, particles
from hwa_jax.batch_stats import RecalibrationReport, recalibrate_batch_stats
from hwa_jax.data import Dataset, Split, batches
from hwa_jax.errors import UserError
from hwa_jax.offline import exponential_average
from hwa_jax.online import with_online_average
from hwa_jax.storage.safetensors import load_weights
from hwa_jax.training.config import validate
from hwa_jax.training.duration import Duration
from hwa_jax.training.evaluation import Evaluator
from hwa_jax.training.functional import FunctionalModel, as_pairs, from_nnx, from_pairs
from hwa_jax.training.optimizers import make_optimizer, make_schedule
from hwa_jax.training.step import PARTICLES, STATE_AXES, Progress, TrainState, make_step


@dataclasses.dataclass(frozen=True)
class Periods:
    """The lengths of a training in optimizer steps; K, H and the rest as the configuration says."""

    epoch: int
    total: int
    sync: int
    push: int
    sync_start: int
    offline_start: int
    evaluation: int
    checkpoint: int
    log: int

    @classmethod
    def of(cls, config: ConfigDict, steps_per_epoch: int) -> "Periods":
        """Reads all durations.

        Raises:
            UserError: no steps at all, a period below one step, or pushes where no outer weights exist.
        """
        whole = Duration.parse(config.training.duration, "training.duration")
        if whole.unit == "percent":
            raise UserError(f"training.duration={config.training.duration!r}: percent of what? give steps or epochs")
        total = whole.steps(steps_per_epoch)

        def steps(field, least=1):
            group, name = field.split(".")
            length = Duration.parse(config[group][name], field).steps(steps_per_epoch, total)
            if length < least:
                raise UserError(f"{field}={config[group][name]!r} is {length} steps: must be at least {least}")
            return length

        if total < 1:
            raise UserError(f"training.duration={config.training.duration!r} is {total} steps: must be at least 1")
        sync = steps("hwa.sync_period")
        push = steps("hwa.push_every") if config.hwa.push_every else sync
        if push % sync:
            raise UserError(
                f"hwa.push_every={config.hwa.push_every!r} is {push} steps: must be a multiple of "
                f"hwa.sync_period, {sync} steps, since outer weights exist only there"
            )
        return cls(
            steps_per_epoch, total, sync, push, steps("hwa.sync_start", 0), steps("hwa.offline_start", 0),
            steps("evaluation.every"), steps("checkpoint.every"), steps("logging.every"),
        )

    def is_regular_push(self, done: int) -> bool:
        """Whether outer weights join the window after `done` steps, were training to go on."""
        return done > self.sync_start and (done - self.sync_start) % self.push == 0 and done >= self.offline_start

    def is_push(self, done: int) -> bool:
        """As `is_regular_push`; the last, perhaps partial, cycle is pushed too."""
        return self.is_regular_push(done) or done == self.total


@dataclasses.dataclass(frozen=True)
class Setup:
    """The pieces of a training.

    Attributes:
        config: the configuration.
        dataset: in host memory.
        train, validation, test: splits on the devices.
        train_sample: the first `evaluation.train_examples` training images, on the devices.
        model: the network as pure functions.
        schedule: step -> learning rate.
        periods: all lengths in steps.
        mesh: the devices.
        optimizer: the inner one wrapped in the online average.
        evaluator: weights and a split -> metrics.
    """

    config: ConfigDict
    dataset: Dataset
    train: Split
    validation: Split
    test: Split
    train_sample: Split
    model: FunctionalModel
    schedule: optax.Schedule
    periods: Periods
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformationExtraArgs
    evaluator: Evaluator

    @property
    def num_replicas(self) -> int:
        """K."""
        return self.config.hwa.num_replicas

    @property
    def ema(self):
        """The exponential average of the weights after each step, or None."""
        decay = self.config.training.ema_decay
        return exponential_average(decay) if decay else None

    def initial_state(self) -> TrainState:
        """K equal replicas: at random from the seed, or from `init_from`."""
        key = jax.random.key(self.config.seed)
        params, batch_stats = self.model.init(jax.random.fold_in(key, 0))
        if self.config.init_from:
            params, batch_stats = load_weights(self.config.init_from, like=(params, batch_stats))
        ema = self.ema.init(params) if self.ema else ()
        one = TrainState(jnp.int32(0), params, batch_stats, self.optimizer.init(params), ema, Progress.zero())
        return self.place(particles.replicate(one, self.num_replicas)._replace(step=one.step))

    def place(self, state: TrainState) -> TrainState:
        """Lays a stacked state out over the devices, in buffers of its own."""
        # Through a jitted copy: the step donates its state, and must not be given a buffer that NumPy still owns.
        return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=self._shardings)(state)

    @functools.cached_property
    def zero_progress(self):
        """() -> progress of no steps, laid out likewise; jitted."""
        num_replicas = self.num_replicas
        return jax.jit(lambda: particles.replicate(Progress.zero(), num_replicas), out_shardings=self._shardings.progress)

    @property
    def _shardings(self):
        return TrainState(*(
            NamedSharding(self.mesh, PartitionSpec() if axis is None else PartitionSpec("device")) for axis in STATE_AXES
        ))

    def make_step(self):
        """(state, indices, split, key) -> state for all K replicas; jitted, the state is donated."""
        step = make_step(
            self.model, self.optimizer, mean=self.dataset.mean, std=self.dataset.std,
            augment={"crop_padding": self.config.data.crop_padding, "flip": self.config.data.flip},
            label_smoothing=self.config.training.label_smoothing, ema=self.ema,
        )
        mapped = particles.vectorize(step, in_axes=(STATE_AXES, 0, None, None), out_axes=STATE_AXES, mesh=self.mesh)
        return jax.jit(mapped, donate_argnums=0)

    def make_epoch_indices(self):
        """(step, key) -> int32 [K, steps per epoch, batch], the batches of the epoch that holds `step`."""
        num_replicas, config = self.num_replicas, self.config

        def indices(particle, step, key):
            return batches.epoch_indices(
                key, particle, step // self.periods.epoch, num_examples=self.dataset.train.num_examples,
                batch_size=config.training.batch_size, num_particles=num_replicas, data_mode=config.hwa.data_mode,
            )

        mapped = particles.vectorize(indices, in_axes=(0, None, None), mesh=self.mesh)
        return jax.jit(lambda step, key: mapped(jnp.arange(num_replicas), step, key))

    def keys(self) -> tuple[jax.Array, jax.Array]:
        """The streams of batch order, and of augmentation and dropout."""
        key = jax.random.key(self.config.seed)
        return tuple(jax.device_put(jax.random.fold_in(key, stream), self.replicated) for stream in (1, 2))

    @property
    def replicated(self) -> NamedSharding:
        """The layout of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @functools.cached_property
    def mean_over_replicas(self):
        """Stacked tree -> its mean, whole on every device; jitted."""
        return jax.jit(particles.mean, out_shardings=self.replicated)

    def recalibrate(self, params: Any, batch_stats: Any) -> tuple[Any, RecalibrationReport | None]:
        """BatchNorm statistics of these weights on training images; what came in, without BatchNorm."""
        if not jax.tree.leaves(batch_stats):
            return batch_stats, None
        size = self.config.training.batch_size
        number = min(self.config.hwa.recalibration_examples, self.dataset.train.num_examples)
        chunks = [slice(start, min(start + size, number)) for start in range(0, number, size)]
        pairs, report = recalibrate_batch_stats(
            lambda chunk: (self._moments(params, batch_stats, self.train.images[chunk]), chunk.stop - chunk.start), chunks,
            initial=as_pairs(batch_stats),
        )
        return from_pairs(pairs), report

    @functools.cached_property
    def _moments(self):
        return jax.jit(lambda params, batch_stats, images: self.model.moments(
            params, batch_stats, data.augmentation.normalize(images, self.dataset.mean, self.dataset.std)
        ))


def prepare(config: ConfigDict) -> Setup:
    """Reads the data and builds everything; writes nothing.

    Raises:
        UserError: a field, data set or device count that does not fit; one line.
    """
    validate(config)
    dataset = data.load(
        config.data.name, data_dir=config.data.data_dir or None, num_train=config.data.num_train or None,
        validation_fraction=config.data.validation_fraction, label_noise=config.data.label_noise, seed=config.data.seed,
    )
    if not dataset.validation.num_examples:
        raise UserError(f"data.validation_fraction={config.data.validation_fraction}: curves need a validation split, give at least 0.01")
    mesh = _mesh(config)
    steps_per_epoch = batches.steps_per_epoch(
        dataset.train.num_examples, config.training.batch_size, config.hwa.num_replicas, config.hwa.data_mode
    )
    periods = Periods.of(config, steps_per_epoch)
    model = from_nnx(lambda rngs: models.create(
        config.model.name, num_classes=dataset.num_classes, input_shape=dataset.train.image_shape,
        norm=config.model.norm or None, dtype=jnp.dtype(config.model.dtype), rngs=rngs,
    ))
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps_per_epoch, periods.total)
    optimizer = with_online_average(
        make_optimizer(config.optimizer, schedule), periods.sync, PARTICLES,
        optimizer_state=config.hwa.optimizer_state, start_step=periods.sync_start,
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    sample = dataset.train.select(np.arange(min(config.evaluation.train_examples, dataset.train.num_examples)))
    splits = [batches.to_device(split, replicated) for split in (dataset.train, dataset.validation, dataset.test, sample)]
    evaluator = Evaluator(model, dataset.mean, dataset.std, batch_size=config.evaluation.batch_size, mesh=mesh)
    setup = Setup(config, dataset, *splits, model, schedule, periods, mesh, optimizer, evaluator)
    # What does not fit the network (init_from, optimizer.decay_pattern) is said before anything is written.
    jax.eval_shape(setup.initial_state)
    return setup


def _mesh(config):
    devices = jax.devices()
    wanted = config.num_devices or len(devices)
    if wanted > len(devices):
        raise UserError(f"num_devices={wanted}: JAX sees {len(devices)} devices, give at most {len(devices)}")
    if config.hwa.num_replicas % wanted:
        raise UserError(
            f"hwa.num_replicas={config.hwa.num_replicas}: must be a multiple of the {wanted} devices; set num_devices to a divisor"
        )
    return particles.device_mesh(devices[:wanted])
