"""The trainings of a comparison with SWAMP: each a configuration and the algorithm that runs it.

    imp              iterative magnitude pruning: one particle, its last weights
    imp_own_rate     the same at a learning rate from a grid of its own
    imp_long         as imp, with N times the epochs in every cycle, which costs what SWAMP does
    imp_swa          one particle with SWA
    particles        N particles without SWA, averaged
    swamp            N particles with SWA, averaged
    swamp_few        as swamp, with fewer particles
    particles_many   as particles, with more of them
    swamp_plus       SWAMP+: one particle in the first cycles, then N
    swamp_gated      swamp behind the gate averaging="when_safe"
    swamp_mask       the masks of swamp, trained as imp trains its own
    one_shot         masks by the magnitudes of imp's dense network, pruned at once; trained as imp's
    random           imp with random masks
    imp_early, swamp_early, swamp_early_gated     with a ticket from an earlier step
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from hwa_jax import masks
from hwa_jax.algorithms import given_masks, imp, swamp
from hwa_jax.algorithms.cycle_files import cycle_directory
from hwa_jax.storage.sparse_weights import load_sparse_weights
from hwa_jax.training.config import default_swamp_config
from hwa_jax.training.duration import Duration
from hwa_jax.training.interruption import finished
from hwa_jax.training.sparse_setup import SparseSetup, prepare
from hwa_jax.training.together import Algorithm
from hwa_jax.training.weights import Weights

_GIVEN = ("swamp_mask", "one_shot")


class PrunedRun(NamedTuple):
    """A finished training of all cycles.

    Attributes:
        setup: its pieces.
        directory: its work directory, see `hwa_jax.algorithms.pruning_run`.
        cycles: what metrics.json says of each.
        mask_makers: of each cycle, the cycles whose training led to its mask.
    """

    setup: SparseSetup
    directory: pathlib.Path
    cycles: list[dict[str, Any]]
    mask_makers: list[list[dict[str, Any]]]

    def weights(self, cycle: int, name: str) -> tuple[Weights, Any]:
        """Stored weights, "average" or "particle_0" ..., and their mask; NumPy arrays."""
        params, batch_stats, mask = load_sparse_weights(cycle_directory(self.directory, cycle) / f"{name}.safetensors")
        return Weights(params, batch_stats), mask


def fields_of(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Method -> the fields of `swamp` in which it differs from the comparison's `base`."""
    early = {"ticket_duration": config.early_ticket}
    return {
        "imp": imp.FIELDS, "imp_own_rate": imp.FIELDS, "imp_long": imp.FIELDS, "imp_swa": {"num_particles": 1},
        "particles": {"swa": False}, "swamp": {},
        "swamp_few": {"num_particles": config.few_particles},
        "particles_many": {"num_particles": config.many_particles, "swa": False},
        "swamp_plus": {"num_particles": (*[1] * config.plus_cycles, config.base.swamp.num_particles)},
        "swamp_gated": {"averaging": "when_safe"}, "swamp_mask": imp.FIELDS, "one_shot": imp.FIELDS,
        "random": imp.FIELDS | {"pruner": "random"}, "imp_early": imp.FIELDS | early, "swamp_early": early,
        "swamp_early_gated": early | {"averaging": "when_safe"},
    }


def training_of(config: ConfigDict, method: str, seed: int, rates: dict[str, float]) -> ConfigDict:
    """The configuration of one training.

    Args:
        config: of the comparison.
        method: a key of `fields_of`.
        seed: of initial weights, batch order and augmentation.
        rates: "learning_rate", "swa_learning_rate", and for imp_own_rate "own_learning_rate".
    """
    one = default_swamp_config()
    one.update(config.base.to_dict())
    one.seed, one.optimizer.learning_rate = seed, rates["own_learning_rate" if method == "imp_own_rate" else "learning_rate"]
    one.swamp.update({"swa_learning_rate": rates["swa_learning_rate"], **fields_of(config)[method]})
    if method == "imp_long":
        one.training.duration = Duration.parse(one.training.duration).times(config.base.swamp.num_particles)
    return one


def algorithm(config: ConfigDict, method: str, seed: int, rates: dict[str, float], scratch: pathlib.Path) -> Algorithm[PrunedRun]:
    """Trains what is missing of a run, and of those that its masks come from.

    Args:
        config, method, seed, rates: as in `training_of`.
        scratch: holds the work directories.

    Raises:
        UserError: as `swamp.train`.
        Interrupted: a signal stopped it; the same call continues.
    """
    setup = prepare(training_of(config, method, seed, rates))
    directory = scratch / f"{method}-seed{seed}"
    if method in _GIVEN:
        source = yield from algorithm(config, "swamp" if method == "swamp_mask" else "imp", seed, rates, scratch)
        given, makers = _masks_of(source) if method == "swamp_mask" else _one_shot_masks(source)
        cycles = finished((yield from given_masks.algorithm(setup, directory, given)))["cycles"]
        return PrunedRun(setup, directory, cycles, makers)
    is_imp = all(setup.config.swamp[name] == value for name, value in imp.FIELDS.items())
    cycles = finished((yield from (imp if is_imp else swamp).algorithm(setup, directory)))["cycles"]
    return PrunedRun(setup, directory, cycles, [cycles[:number] for number in range(len(cycles))])


def _masks_of(source):
    return [source.weights(number, "average")[1] for number in range(len(source.cycles))], source.mask_makers


def _one_shot_masks(source: PrunedRun) -> tuple[Sequence[Any], list[list[dict[str, Any]]]]:
    """By one dense network's magnitudes, as many weights in each as `source` has in its cycles."""
    weights, dense = source.weights(0, "average")
    dense, total = jax.tree.map(jax.numpy.asarray, dense), source.cycles[0]["num_weights"]
    pruned = [
        masks.prune_by_magnitude(weights.params, dense, (total - cycle["num_weights"]) / total) for cycle in source.cycles[1:]
    ]
    return [dense, *pruned], [[], *[source.cycles[:1]] * len(pruned)]
