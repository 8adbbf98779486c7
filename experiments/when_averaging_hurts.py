"""Makes averaging hurt on purpose, explains each case, and counts false and missed alarms of the watch.

    python experiments/when_averaging_hurts.py --config=configs/averaging_hurts.py --workdir=runs/averaging_hurts

Interrupted, the same command continues; trainings that have finished are not run again.
"""

from hwa_jax.algorithms import averaging_hurts
from hwa_jax.report.averaging_hurts import alarms_table, write_study
from hwa_jax.training import program


def report(config, directory, cells, meta):
    return write_study(cells, directory, title=config.title, meta=meta), alarms_table(cells)


if __name__ == "__main__":
    program.run_study(averaging_hurts.run, report)
