"""Compares SWAMP with iterative magnitude pruning, its own parts, an ensemble and floors, over seeds.

    python experiments/compare_swamp.py --config=configs/compare_swamp_digits.py --workdir=runs/compare_swamp

Interrupted, the same command continues; trainings that have finished are not run again.
"""

from absl import flags
from ml_collections import config_flags

from hwa_jax.algorithms import swamp_comparison
from hwa_jax.report.sparsity_comparison import write_comparison
from hwa_jax.report.sparsity_tables import summary_table
from hwa_jax.training import program

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file, see configs/compare_swamp_*.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for figures, tables and plots")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "start over, deleting what --workdir holds")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    config, directory = _CONFIG.value, _WORKDIR.value
    program.enable_compilation_cache(f"{directory}.compiled")
    cells = swamp_comparison.run(config, directory, overwrite=_OVERWRITE.value)
    tuning = swamp_comparison.tuned(directory)
    report = write_comparison(cells, directory, title=config.title, tuning=tuning, meta={
        "description": config.description, "command": program.command_line(), "chosen by tuning": tuning["chosen"],
    })
    print(summary_table(cells))
    print(f"\nreport with plots: {report}")


if __name__ == "__main__":
    program.run(main)
