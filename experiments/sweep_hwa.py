"""Sweeps K, H and the schedule by trainings, and I, stride and start from their stored windows.

    python experiments/sweep_hwa.py --config=configs/sweep_digits.py --workdir=runs/sweep

Interrupted, the same command continues; trainings that have finished are not run again.
"""

from absl import flags
from ml_collections import config_flags

from hwa_jax.algorithms import hwa_sweep
from hwa_jax.report.sweep import best_table, write_sweep
from hwa_jax.training import program

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file, see configs/sweep_*.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for figures, tables and plots")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "start over, deleting what --workdir holds")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    config, directory = _CONFIG.value, _WORKDIR.value
    program.enable_compilation_cache(f"{directory}.compiled")
    cells = hwa_sweep.run(config, directory, overwrite=_OVERWRITE.value)
    report = write_sweep(cells, directory, title=config.title, window_size=config.base.hwa.window_size, meta={
        "description": config.description, "command": program.command_line(),
    })
    print(best_table(cells))
    print(f"\nreport with plots: {report}")


if __name__ == "__main__":
    program.run(main)
