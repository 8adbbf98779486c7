"""What a run would take: parameters, steps, memory, disk and time, before anything is written."""

import time

import jax

from hwa_jax.algorithms.hwa import communication
from hwa_jax.data import Split
from hwa_jax.models import overview
from hwa_jax.report.tables import format_bytes
from hwa_jax.training.setup import Setup

_TIMED_STEPS = 5


def describe(setup: Setup, num_members: int) -> str:
    """The text that --dry_run prints.

    It compiles the step and runs a few, so that memory is the compiler's own figure and time is
    measured here and now, training alone.

    Args:
        setup: the pieces of the run.
        num_members: members of the window kept on disk.
    """
    state, periods = setup.initial_state(), setup.periods
    first = jax.tree.map(lambda leaf: leaf[0], (state.params, state.batch_stats))
    table = overview(*first)
    member_bytes, state_bytes = _bytes(first), _bytes(state)
    batch_key, noise_key = setup.keys()
    indices = setup.epoch_indices(state.step, batch_key)
    step = setup.step.lower(state, indices, setup.train, noise_key, {}).compile()
    memory = step.memory_analysis()
    state = jax.block_until_ready(step(state, indices, setup.train, noise_key, {}))
    start = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        state = step(state, indices, setup.train, noise_key, {})
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - start) / _TIMED_STEPS
    config = setup.config
    lines = [
        table, "",
        f"replicas K              {setup.num_replicas} on {setup.mesh.size} device(s)",
        f"steps                   {periods.total} per replica, {periods.epoch} per epoch",
        f"synchronization H       every {periods.sync} steps, {communication(setup, state)['synchronizations']} in all",
        f"window I                {config.hwa.window_size} pushes, one every {periods.push} steps, {num_members} kept on disk",
        f"images                  {setup.train.num_examples} training, {setup.validation.num_examples} validation, "
        f"{setup.test.num_examples} test; {format_bytes(sum(_bytes(split) for split in _splits(setup)))} on each device",
        f"memory of the step      {format_bytes(memory.temp_size_in_bytes)} temporary, {format_bytes(state_bytes)} state",
        f"disk                    {format_bytes(num_members * member_bytes + config.checkpoint.keep * state_bytes)} "
        "for window and checkpoints",
        f"time                    {seconds * 1e3:.1f} ms per step now, {seconds * periods.total / 60:.1f} minutes of training "
        "without evaluation and compilation",
    ]
    return "\n".join(lines)


def _splits(setup: Setup) -> list[Split]:
    return [setup.train, setup.validation, setup.test, setup.train_sample]


def _bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
