"""Sweeps K, H and the schedule by trainings, and I, stride and start from their stored windows.

    python experiments/sweep_hwa.py --config=configs/sweep_digits.py --workdir=runs/sweep

Interrupted, the same command continues; trainings that have finished are not run again.
"""

from hwa_jax.algorithms import hwa_sweep
from hwa_jax.report.sweep import best_table, write_sweep
from hwa_jax.training import program


def report(config, directory, cells, meta):
    path = write_sweep(cells, directory, title=config.title, window_size=config.base.hwa.window_size, meta=meta)
    return path, best_table(cells)


if __name__ == "__main__":
    program.run_study(hwa_sweep.run, report)
