"""From a configuration to the pieces of a training: data, network, optimizer, compiled steps."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from hwa_jax import models, particles
from hwa_jax.data import Dataset, Split, batches, streaming
from hwa_jax.data.streamed import StreamedSplit
from hwa_jax.errors import UserError
from hwa_jax.offline import Average, exponential_average
from hwa_jax.online import with_online_average
from hwa_jax.storage.safetensors import load_weights
from hwa_jax.training.config import validate
from hwa_jax.training.datasets import load_dataset
from hwa_jax.training.devices import DATA, replica_mesh
from hwa_jax.training.evaluation import Evaluator
from hwa_jax.training.functional import FunctionalModel, from_nnx
from hwa_jax.training.lost_replicas import restart_lost
from hwa_jax.training.optimizers import make_optimizer, make_outer_optimizer, make_schedule, with_replica_weights
from hwa_jax.training.periods import Periods
from hwa_jax.training.recalibration import Recalibration
from hwa_jax.training.seed_programs import SeedPrograms
from hwa_jax.training.step import PARTICLES, STATE_AXES, Progress, TrainState, make_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """The pieces of a training.

    Attributes:
        config: the configuration.
        dataset: in host memory, or streamed.
        train, validation, test: splits on the devices, or streamed.
        train_sample: the first `evaluation.train_examples` training images, likewise.
        model: the network as pure functions.
        schedule: step -> learning rate.
        periods: all lengths in steps.
        mesh: the devices; replicas along its axis "device", batches along "data" if it has that one.
        evaluator: weights and a split -> metrics.
        recalibrate: weights -> BatchNorm statistics of their own.
        optimizer: the inner one wrapped in what the algorithm does at every step.
        num_replicas: K of HWA, N of SWAMP.
        data_mode: which examples a replica sees, see `batches.epoch_indices`.
        ema: the average of the weights that every step updates, or None.
    """

    config: ConfigDict
    dataset: Dataset
    train: Split | StreamedSplit
    validation: Split | StreamedSplit
    test: Split | StreamedSplit
    train_sample: Split | StreamedSplit
    model: FunctionalModel
    mesh: jax.sharding.Mesh
    evaluator: Evaluator
    recalibrate: Recalibration
    schedule: optax.Schedule
    periods: Periods
    optimizer: optax.GradientTransformationExtraArgs
    num_replicas: int
    data_mode: str
    ema: Average | None

    def initial_state(self) -> TrainState:
        """K equal replicas: at random from the seed, or from `init_from`."""
        key = jax.random.key(self.config.seed)
        params, batch_stats = self.model.init(jax.random.fold_in(key, 0))
        if self.config.init_from:
            params, batch_stats = load_weights(self.config.init_from, like=(params, batch_stats))
        ema = self.ema.init(params) if self.ema else ()
        one = TrainState(jnp.int32(0), params, batch_stats, self.optimizer.init(params), ema, Progress.zero())
        return self.place(particles.replicate(one, self.num_replicas)._replace(step=one.step))

    def evaluate(self, weights: tuple[Any, Any], splits: Sequence[str] = ("train", "validation", "test")) -> dict[str, dict[str, float]]:
        """Split -> metrics of (params, batch_stats) on the whole of it."""
        return {split: self.evaluator.one(*weights, getattr(self, split)) for split in splits}

    @functools.cached_property
    def place(self):
        """Stacked state -> the same laid out over the devices, in buffers of its own; jitted."""
        # A copy: the step donates its state, and must not be given a buffer that NumPy still owns.
        return jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=self._shardings)

    @functools.cached_property
    def zero_progress(self):
        """() -> progress of no steps, laid out likewise; jitted."""
        num_replicas = self.num_replicas
        return jax.jit(lambda: particles.replicate(Progress.zero(), num_replicas), out_shardings=self._shardings.progress)

    @property
    def _shardings(self):
        return TrainState(*(self.replicated if axis is None else self.stacked for axis in STATE_AXES))

    @functools.cached_property
    def step(self):
        """(state, indices, split, key, extra, count=1) -> state for all replicas after `count` steps; jitted.

        The state is donated. `indices` are those of one epoch, which the steps must not leave, and `split` is what they
        choose from, the next of `splits`. `extra`, further arguments of the optimizer's update, is shared by all
        replicas. `count` is static.
        """
        step = make_step(
            self.model, self.optimizer, mean=self.dataset.mean, std=self.dataset.std,
            augment={"crop_padding": self.config.data.crop_padding, "flip": self.config.data.flip},
            label_smoothing=self.config.training.label_smoothing, ema=self.ema, data_axis=_data_axis(self.mesh),
            drop_lost=self.drops_lost, steps_per_epoch=self.periods.epoch,
        )
        split_axis = self._batch_spec if self.is_streamed else None
        mapped = particles.vectorize(step, in_axes=(STATE_AXES, 0, split_axis, None, None), out_axes=STATE_AXES, mesh=self.mesh)

        def steps(state, *shared, count=1):
            # One step has no loop around it: on a CPU a convolution within a loop is many times slower.
            if count == 1:
                return mapped(state, *shared)
            return jax.lax.scan(lambda state, _: (mapped(state, *shared), None), state, length=count)[0]

        return jax.jit(steps, donate_argnums=0, static_argnames="count")

    @functools.cached_property
    def seed_programs(self) -> SeedPrograms:
        """The same for several seeds at once."""
        return SeedPrograms(self.step, self.mesh)

    def with_seed(self, seed: int) -> "Setup":
        """The pieces of the same training from another seed; data on the devices and the evaluator are shared."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        return dataclasses.replace(self, config=config)

    @property
    def steps_per_call(self) -> int:
        """Of the configuration; automatic is 1 on a CPU, elsewhere 0, `loop.run`'s own choice."""
        automatic = 1 if self.is_streamed or self.mesh.devices.flat[0].platform == "cpu" else 0
        return self.config.training.steps_per_call or automatic

    def require_same_epochs(self, num_replicas: int) -> None:
        """Refuses to go on with a run of another number of replicas if its epochs had another length.

        Raises:
            UserError: they had; partitioned data are shared among the replicas.
        """
        length = batches.steps_per_epoch(self.dataset.train.num_examples, self.config.training.batch_size, num_replicas, self.data_mode)
        if length != self.periods.epoch:
            raise UserError(
                f"hwa.num_replicas={self.num_replicas}: the run has {num_replicas}, and with hwa.data_mode={self.data_mode!r} an epoch would "
                f"have {self.periods.epoch} steps instead of {length}: give {num_replicas}, or choose another --workdir"
            )

    @functools.cached_property
    def epoch_indices(self):
        """(step, key) -> int32 [K, steps per epoch, batch], the batches of the epoch that holds `step`; None where they are streamed."""
        if self.is_streamed:
            return lambda step, key: None
        num_replicas = self.num_replicas
        distinct = self.config.hwa.replica_batch_sizes if "hwa" in self.config else ()

        def indices(particle, step, key):
            return batches.epoch_indices(
                key, particle, step // self.periods.epoch, num_examples=self.dataset.train.num_examples,
                batch_size=self.config.training.batch_size, num_particles=num_replicas, data_mode=self.data_mode,
                distinct=distinct,
            )

        mapped = particles.vectorize(indices, in_axes=(0, None, None), mesh=self.mesh)
        return jax.jit(lambda step, key: mapped(jnp.arange(num_replicas), step, key))

    @property
    def is_streamed(self) -> bool:
        """Whether images are read while training goes on, instead of lying on the devices."""
        return isinstance(self.train, StreamedSplit)

    @property
    def _batch_spec(self):
        return PartitionSpec("device", DATA) if _data_axis(self.mesh) else PartitionSpec("device")

    def splits(self, first: int, key: jax.Array) -> Iterator[Split]:
        """What each call of the step chooses its examples from, after `first` steps; the streamed batches themselves.

        Args:
            first: completed steps.
            key: of the batch order.
        """
        if not self.is_streamed:
            yield from itertools.repeat(self.train)
        config = self.config
        yield from streaming.training_batches(
            self.train, key, range(first, self.periods.total), num_replicas=self.num_replicas, batch_size=config.training.batch_size,
            data_mode=self.data_mode, random_crop=config.data.random_resized_crop, sharding=NamedSharding(self.mesh, self._batch_spec),
        )

    def keys(self, part: int | None = None) -> tuple[jax.Array, jax.Array]:
        """The streams of batch order, and of augmentation and dropout; every part of a run has its own."""
        return self._streams(part)

    @functools.cached_property
    def _streams(self):
        def streams(part):
            key = jax.random.key(self.config.seed)
            keys = [jax.random.fold_in(key, stream) for stream in (1, 2)]
            return tuple(keys if part is None else [jax.random.fold_in(key, part) for key in keys])

        return jax.jit(streams, out_shardings=self.replicated)

    @property
    def replicated(self) -> NamedSharding:
        """The layout of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def stacked(self) -> NamedSharding:
        """The layout of stacked leaves, which are cut over the devices."""
        return NamedSharding(self.mesh, PartitionSpec("device"))

    @functools.cached_property
    def mean_over_replicas(self):
        """Stacked tree -> its mean, weighted as the replicas are, whole on every device; jitted."""
        mean = functools.partial(particles.mean, weights=self.replica_weights)
        return jax.jit(mean, out_shardings=self.replicated)

    @property
    def replica_weights(self) -> tuple[float, ...] | None:
        """How much each replica counts; None: all the same."""
        return self.config.hwa.replica_weights or None if "hwa" in self.config else None

    @property
    def drops_lost(self) -> bool:
        """Whether a replica that is not finite is left out, and the training goes on."""
        return "hwa" in self.config and self.config.hwa.nan_policy == "drop"

    @functools.cached_property
    def restart_lost(self):
        """State -> the same with `lost_replicas.restart_lost`; jitted, the state is donated."""
        restart = functools.partial(restart_lost, weights=self.replica_weights)
        return jax.jit(particles.vectorize(restart, in_axes=(STATE_AXES,), out_axes=STATE_AXES, mesh=self.mesh), donate_argnums=0)


def prepare(config: ConfigDict) -> Setup:
    """Reads the data and builds everything that HWA needs; writes nothing.

    Raises:
        UserError: a field, data set or device count that does not fit; one line.
    """
    validate(config)
    dataset, hwa = load_dataset(config), config.hwa
    mesh = replica_mesh(config)
    steps_per_epoch = batches.steps_per_epoch(
        dataset.train.num_examples, config.training.batch_size, hwa.num_replicas, hwa.data_mode
    )
    periods = Periods.of(config, steps_per_epoch)
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps_per_epoch, periods.total)
    optimizer = with_online_average(
        make_optimizer(config.optimizer, schedule), periods.sync, PARTICLES,
        optimizer_state=hwa.optimizer_state, start_step=periods.sync_start,
        sync_dtype=hwa.sync_dtype or None, outer_optimizer=make_outer_optimizer(hwa.outer_optimizer),
    )
    optimizer = with_replica_weights(optimizer, hwa.replica_weights, PARTICLES)
    decay = config.training.ema_decay
    setup = Setup(
        **pieces(config, dataset, mesh, hwa.recalibration_examples), schedule=schedule, periods=periods, optimizer=optimizer,
        num_replicas=hwa.num_replicas, data_mode=hwa.data_mode, ema=exponential_average(decay) if decay else None,
    )
    # What does not fit the network (init_from, optimizer.decay_pattern) is said before anything is written.
    jax.eval_shape(setup.initial_state)
    return setup


def pieces(config: ConfigDict, dataset: Dataset, mesh: jax.sharding.Mesh, recalibration_examples: int) -> dict[str, Any]:
    """The attributes of a `Setup` that no algorithm has its own way with."""
    model = from_nnx(lambda rngs: models.create(
        config.model.name, num_classes=dataset.num_classes, input_shape=dataset.train.image_shape,
        norm=config.model.norm or None, dtype=jnp.dtype(config.model.dtype), rngs=rngs,
    ), data_axis=_data_axis(mesh))
    replicated = NamedSharding(mesh, PartitionSpec())
    sample = dataset.train.select(np.arange(min(config.evaluation.train_examples, dataset.train.num_examples)))
    splits = {
        name: dataclasses.replace(split, mesh=mesh) if isinstance(split, StreamedSplit) else batches.to_device(split, replicated)
        for name, split in {"train": dataset.train, "validation": dataset.validation, "test": dataset.test, "train_sample": sample}.items()
    }
    return {
        "config": config, "dataset": dataset, "model": model, "mesh": mesh, **splits,
        "evaluator": Evaluator(model, dataset.mean, dataset.std, batch_size=config.evaluation.batch_size, mesh=mesh),
        "recalibrate": Recalibration(
            model, dataset, splits["train"], batch_size=config.training.batch_size, num_examples=recalibration_examples, mesh=mesh
        ),
    }


def _data_axis(mesh):
    return DATA if DATA in mesh.shape else None
