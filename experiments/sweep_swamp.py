"""Sweeps N, SWA's start, period and rate, the fraction per cycle and T0 of SWAMP, each alone.

    python experiments/sweep_swamp.py --config=configs/sweep_swamp_digits.py --workdir=runs/sweep_swamp

Interrupted, the same command continues; trainings that have finished are not run again.
"""

from absl import flags
from ml_collections import config_flags

from hwa_jax.algorithms import swamp_sweep
from hwa_jax.report.swamp_sweep import sweep_table, write_sweep
from hwa_jax.training import program

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file, see configs/sweep_swamp_*.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for figures, tables and plots")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "start over, deleting what --workdir holds")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    config, directory = _CONFIG.value, _WORKDIR.value
    program.enable_compilation_cache(f"{directory}.compiled")
    cells = swamp_sweep.run(config, directory, overwrite=_OVERWRITE.value)
    report = write_sweep(cells, directory, title=config.title, sparse_from=config.sparse_from, meta={
        "description": config.description, "command": program.command_line(),
    })
    print(sweep_table(cells, config.sparse_from))
    print(f"\nreport with plots: {report}")


if __name__ == "__main__":
    program.run(main)
