"""Compares HWA with plain training, its own two halves, Lookahead and SAM, over seeds.

    python experiments/compare_hwa.py --config=configs/compare_hwa_digits.py --workdir=runs/compare

Interrupted, the same command continues; trainings that have finished are not run again.
"""

from hwa_jax.algorithms import hwa_comparison, hwa_tuning
from hwa_jax.report.comparison import write_comparison
from hwa_jax.report.comparison_tables import summary_table
from hwa_jax.training import program


def report(config, directory, cells, meta):
    tuned = hwa_tuning.tuned(directory)
    meta = meta | {"chosen by tuning": tuned["chosen"]}
    return write_comparison(cells, directory, title=config.title, tuning=tuned["grid"], meta=meta), summary_table(cells)


if __name__ == "__main__":
    program.run_study(hwa_comparison.run, report)
