"""What a run would take: parameters, steps, memory, disk and time, before anything is written."""

import jax

from hwa_jax import particles
from hwa_jax.algorithms.hwa import communication
from hwa_jax.algorithms.window_choice import longest
from hwa_jax.data import Split
from hwa_jax.models import overview
from hwa_jax.report.tables import format_bytes, markdown_table
from hwa_jax.storage.safetensors import named_leaves
from hwa_jax.training.config import AUTO
from hwa_jax.training.setup import Setup
from hwa_jax.training.sparse_setup import SparseSetup, first_particle
from hwa_jax.training.step_cost import measure_step, tree_bytes


def describe(setup: Setup, num_members: int) -> str:
    """The text that --dry_run prints for HWA.

    It compiles the step and runs a few, so that memory is the compiler's own figure and time is
    measured here and now, training alone.

    Args:
        setup: the pieces of the run.
        num_members: members of the window kept on disk.
    """
    state, periods, config = setup.initial_state(), setup.periods, setup.config
    first = jax.tree.map(lambda leaf: leaf[0], (state.params, state.batch_stats))
    synchronizations = communication(setup, state)["synchronizations"]
    step = measure_step(setup, state, {})
    shared = f", {config.hwa.data_parallel} for each batch" if config.hwa.data_parallel > 1 else ""
    lines = [
        overview(*first), "",
        f"replicas K              {setup.num_replicas} on {setup.mesh.size} device(s){shared}",
        f"steps                   {periods.total} per replica, {periods.epoch} per epoch",
        f"synchronization H       every {periods.sync} steps, {synchronizations} in all",
        f"window I                {_window_size(setup)} pushes, one every {periods.push} steps, {num_members} kept on disk",
        _images(setup, {}),
        _memory(step),
        f"disk                    {format_bytes(num_members * tree_bytes(first) + config.checkpoint.keep * step.state_bytes)} "
        "for window and checkpoints",
        _time(step, step.seconds * periods.total),
    ]
    return "\n".join(lines)


def describe_pruning(setup: SparseSetup) -> str:
    """The text that --dry_run prints for SWAMP and IMP; measured as by `describe`, for the largest N.

    Args:
        setup: the pieces of the run.

    Raises:
        UserError: the target sparsity is never reached.
    """
    plan, state, periods, config = setup.plan(), setup.initial_state(), setup.periods, setup.config
    mask, num_particles = setup.dense_mask(), setup.num_replicas
    origin = first_particle(state)
    weights = (origin.params, origin.batch_stats)
    step = measure_step(setup, setup.particles_at(origin, mask), {"mask": particles.put(mask, setup.replicated)})
    # A step of one particle is taken to last an N-th of one of N.
    particle_steps = periods.ticket + periods.cycle * sum(cycle.num_particles for cycle in plan)
    disk = tree_bytes(origin) + tree_bytes(weights) + config.checkpoint.keep * step.state_bytes + _cycle_bytes(weights, mask, plan)
    lines = [
        overview(*weights, mask), "",
        markdown_table(
            ["cycle", "particles", "weights", "sparsity %", "epochs of all particles"],
            [
                [str(number), str(cycle.num_particles), f"{cycle.num_weights:,}", f"{100 * cycle.sparsity:.2f}",
                 f"{cycle.num_particles * periods.cycle / periods.epoch:g}"] for number, cycle in enumerate(plan)
            ], "rrrrr",
        ), "",
        f"particles N             at most {num_particles} on {setup.mesh.size} device(s)",
        f"prunable                {plan[0].num_weights:,} of {sum(leaf.size for leaf in jax.tree.leaves(origin.params)):,} parameters",
        f"cycles                  {len(plan)} of {periods.cycle} steps after {periods.ticket} of the ticket, {periods.epoch} per epoch",
        f"training                {particle_steps / periods.epoch:g} epochs, those of all particles together",
        _images(setup, {"held out": setup.held_out}),
        _memory(step),
        f"disk                    {format_bytes(disk)} for ticket, cycles and checkpoints",
        _time(step, step.seconds * particle_steps / num_particles),
    ]
    return "\n".join(lines)


def _window_size(setup):
    size = setup.config.hwa.window_size
    return f"chosen on validation, of at most {longest(setup)}" if size == AUTO else size


def _cycle_bytes(weights, mask, plan):
    """Of the files of all cycles: a bit for each prunable weight, and the values of those that remain."""
    arrays = named_leaves(weights[0])
    dense = sum(arrays[name].nbytes for name in named_leaves(mask))
    size, rest = plan[0].num_weights, tree_bytes(weights) - dense
    files = [cycle.num_particles + (cycle.num_particles > 1) for cycle in plan]
    return sum(count * (size / 8 + dense * cycle.num_weights / size + rest) for count, cycle in zip(files, plan))


def _images(setup: Setup, others: dict[str, Split]) -> str:
    splits = {"training": setup.train, "validation": setup.validation, "test": setup.test, **others}
    counts = ", ".join(f"{split.num_examples} {name}" for name, split in splits.items())
    if setup.is_streamed:
        return f"images                  {counts}; streamed, and the time below is without reading them"
    return f"images                  {counts}; {format_bytes(tree_bytes([*splits.values(), setup.train_sample]))} on each device"


def _memory(step):
    return f"memory of the step      {format_bytes(step.temporary_bytes)} temporary, {format_bytes(step.state_bytes)} state"


def _time(step, seconds):
    return (f"time                    {step.seconds * 1e3:.1f} ms per step now, {seconds / 60:.1f} minutes of training "
            "without evaluation and compilation")
