"""Sweeps N, SWA's start, period and rate, the fraction per cycle and T0 of SWAMP, each alone.

    python experiments/sweep_swamp.py --config=configs/sweep_swamp_digits.py --workdir=runs/sweep_swamp

Interrupted, the same command continues; trainings that have finished are not run again.
"""

from hwa_jax.algorithms import swamp_sweep
from hwa_jax.report.swamp_sweep import sweep_table, write_sweep
from hwa_jax.training import program


def report(config, directory, cells, meta):
    path = write_sweep(cells, directory, title=config.title, sparse_from=config.sparse_from, meta=meta)
    return path, sweep_table(cells, config.sparse_from)


if __name__ == "__main__":
    program.run_study(swamp_sweep.run, report)
