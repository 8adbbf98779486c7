"""Compares SWAMP with iterative magnitude pruning, its own parts, an ensemble and floors, over seeds.

    python experiments/compare_swamp.py --config=configs/compare_swamp_digits.py --workdir=runs/compare_swamp

Interrupted, the same command continues; trainings that have finished are not run again.
"""

from hwa_jax.algorithms import swamp_comparison
from hwa_jax.report.sparsity_comparison import write_comparison
from hwa_jax.report.sparsity_tables import summary_table
from hwa_jax.training import program


def report(config, directory, cells, meta):
    tuning = swamp_comparison.tuned(directory)
    meta = meta | {"chosen by tuning": tuning["chosen"]}
    return write_comparison(cells, directory, title=config.title, tuning=tuning, meta=meta), summary_table(cells)


if __name__ == "__main__":
    program.run_study(swamp_comparison.run, report)
