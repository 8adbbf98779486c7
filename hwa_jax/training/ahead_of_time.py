"""The programs of a training, compiled for devices that need not be there: what they hold in memory, and when they communicate."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from hwa_jax import masks, particles
from hwa_jax.errors import UserError
from hwa_jax.training import hlo
from hwa_jax.training.evaluation import Evaluator
from hwa_jax.training.loop import MOST_STEPS_PER_CALL
from hwa_jax.training.recalibration import Recalibration
from hwa_jax.training.setup import Setup
from hwa_jax.training.sparse_setup import SparseSetup, first_particle


class CompiledProgram(NamedTuple):
    """What a compiler said of a program.

    Attributes:
        name: what it does.
        argument_bytes: on each device, the training images among them.
        temporary_bytes: that it needs beside its arguments, on each device.
        always: instructions that communicate on every call, "all-reduce" for example.
        sometimes: those that only a condition leads to, as a synchronization is.
    """

    name: str
    argument_bytes: int
    temporary_bytes: int
    always: tuple[str, ...]
    sometimes: tuple[str, ...]


def compile_programs(setup: Setup, devices: Sequence[jax.Device]) -> Iterator[CompiledProgram]:
    """Compiles the programs of a run that are executed over all devices, one after the other.

    Args:
        setup: of the run, prepared on other devices, whose layout is taken over.
        devices: to compile for, at least as many; nothing is put on them.

    Raises:
        UserError: a program does not fit into their memory, as far as their compiler says.

    Example, for a CPU:
        >>> from hwa_jax.training.config import default_config
        >>> from hwa_jax.training.setup import prepare
        >>> config = default_config(); config.model.name = "mlp"; config.num_devices = 1
        >>> step = next(compile_programs(prepare(config), jax.devices()))
        >>> step.name, step.always
        ('step', ())
    """
    mesh = Mesh(np.reshape(devices[:setup.mesh.size], setup.mesh.devices.shape), setup.mesh.axis_names, axis_types=setup.mesh.axis_types)
    for name, lowered in _lowered(setup, mesh):
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
            raise UserError(
                f"training.batch_size={setup.config.training.batch_size}: does not fit into {devices[0].device_kind} ({name}: {reason}): give less, or more devices"
            ) from error
        memory = compiled.memory_analysis()
        always, sometimes = (tuple(map(hlo.operation, lines)) for lines in hlo.collectives(compiled.as_text()))
        yield CompiledProgram(name, memory.argument_size_in_bytes, memory.temp_size_in_bytes, always, sometimes)


def _lowered(setup: Setup, mesh: Mesh) -> Iterator[tuple[str, Any]]:
    there = functools.partial(_abstract, mesh=mesh)
    dataset, config = setup.dataset, setup.config
    absent = dataclasses.replace(
        setup, mesh=mesh,
        evaluator=Evaluator(setup.model, dataset.mean, dataset.std, batch_size=config.evaluation.batch_size, mesh=mesh),
        recalibrate=Recalibration(setup.model, dataset, setup.train, batch_size=config.training.batch_size, num_examples=1, mesh=mesh),
    )
    state, extra = setup.initial_state(), {}
    is_sparse = isinstance(setup, SparseSetup)
    if is_sparse:
        mask = setup.dense_mask()
        origin = first_particle(state)
        state, extra = setup.particles_at(origin, mask), {"mask": particles.put(mask, setup.replicated)}
    batch_key, noise_key = setup.keys()
    arguments = (setup.epoch_indices(state.step, batch_key), next(setup.splits(0, batch_key)), noise_key, extra)
    yield "step", absent.step.lower(*there((state, *arguments)))
    if not setup.is_streamed:
        yield f"{MOST_STEPS_PER_CALL} steps", absent.step.lower(*there((state, *arguments)), count=MOST_STEPS_PER_CALL)
        yield "batches of an epoch", absent.epoch_indices.lower(*there((state.step, batch_key)))
    batch = next(iter(setup.test.padded_batches(config.evaluation.batch_size)))
    weights = (state.params, state.batch_stats)
    yield "evaluation of all", absent.evaluator.stacked_sums.lower(*there((weights, *batch)))
    if jax.tree.leaves(state.batch_stats):
        yield "statistics of all", absent.recalibrate.stacked_moments.lower(*there((*weights, batch[0][:config.training.batch_size])))
    yield "mean of all", absent.mean_over_replicas.lower(there(weights))
    if is_sparse:
        if setup.swa:
            yield "collection by SWA", absent.collect.lower(there(state))
        prune = functools.partial(masks.prune, pruner=config.swamp.pruner, fraction=config.swamp.fraction, key=jax.random.key(0))
        yield "pruning", jax.jit(prune).lower(*there((particles.put(origin.params, setup.replicated), extra["mask"])))


def _abstract(tree, mesh):
    """Shapes and dtypes, laid out over the mesh as the arrays are over theirs."""

    def leaf(value):
        value = jax.numpy.asarray(value)
        sharding = value.sharding
        spec = sharding.spec if isinstance(sharding, NamedSharding) else jax.sharding.PartitionSpec()
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(leaf, tree)
