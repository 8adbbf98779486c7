"""BatchNorm statistics of weights, computed anew on training images."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from hwa_jax import particles
from hwa_jax.batch_stats import RecalibrationReport, recalibrate_batch_stats
from hwa_jax.data import Dataset, Split, augmentation
from hwa_jax.data.streamed import StreamedSplit
from hwa_jax.training import processes
from hwa_jax.training.functional import FunctionalModel, as_pairs, from_pairs


class Recalibration:
    """A function of weights: the statistics that they have on the first training images.

    All processes call it in the same order. A forward pass over the images is all it costs, of every particle.

    Example:
        >>> from hwa_jax.training.config import default_config
        >>> from hwa_jax.training.setup import prepare
        >>> config = default_config(); config.model.update(name="mlp", norm="batch"); config.num_devices = 1
        >>> setup = prepare(config)
        >>> batch_stats, report = setup.recalibrate(*setup.model.init(jax.random.key(0)))
        >>> sorted(batch_stats), report.num_samples
        (['norm1', 'norm2'], 1167)
    """

    def __init__(
        self, model: FunctionalModel, dataset: Dataset, train: Split | StreamedSplit, *, batch_size: int, num_examples: int, mesh: jax.sharding.Mesh,
    ):
        """
        Args:
            model: the network.
            dataset: whose normalization constants the images are given.
            train: its training split on the devices, or streamed.
            batch_size: images per step; the last batch may be smaller.
            num_examples: images in all, or as many as there are.
            mesh: where stacked weights lie (see `particles.vectorize`).
        """
        self._train, self._batch_size, self._num_examples = train, batch_size, min(num_examples, train.num_examples)
        self._whole, self._cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("device"))

        def moments(params, batch_stats, images):
            return model.moments(params, batch_stats, augmentation.normalize(images, dataset.mean, dataset.std))

        self._moments = jax.jit(moments)
        # Whole on every device, so that every process pools those of all particles.
        self.stacked_moments = jax.jit(particles.vectorize(moments, in_axes=(0, 0, None), mesh=mesh), out_shardings=self._whole)

    def __call__(self, params: Any, batch_stats: Any, *, stacked: bool = False) -> tuple[Any, RecalibrationReport | None]:
        """Statistics of these weights, laid out as weights are, and how far they moved; what came in, without BatchNorm.

        Args:
            params: of one network, or stacked.
            batch_stats: its statistics so far.
            stacked: whether these are several networks, leaves [N, ...], which get statistics each of their own; the
                report is then that of the least settled.

        Raises:
            Diverged: statistics that are not finite.
        """
        if not jax.tree.leaves(batch_stats):
            return batch_stats, None
        moments = self.stacked_moments if stacked else self._moments
        pairs, report = recalibrate_batch_stats(
            lambda images: (moments(params, batch_stats, images), len(images)),
            self._train.image_batches(self._batch_size, self._num_examples), initial=as_pairs(processes.to_host(batch_stats)),
        )
        return particles.put(from_pairs(pairs), self._cut if stacked else self._whole), report
