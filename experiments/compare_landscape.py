"""Measures where averaged weights lie in the loss landscape, beside what they average, over architectures and seeds.

    python experiments/compare_landscape.py --config=configs/compare_landscape.py --workdir=runs/landscape

Interrupted, the same command continues; what has been trained and measured is not made again.
"""

from hwa_jax.algorithms import landscape_comparison
from hwa_jax.report.claims import effects_table
from hwa_jax.report.landscape_claims import effects
from hwa_jax.report.landscape_comparison import write_comparison
from hwa_jax.training import program


def report(config, directory, cells, meta):
    return write_comparison(cells, directory, title=config.title, meta=meta), effects_table(effects(cells))


if __name__ == "__main__":
    program.run_study(landscape_comparison.run, report)
