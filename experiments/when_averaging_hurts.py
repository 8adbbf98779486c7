"""Makes averaging hurt on purpose, explains each case, and counts false and missed alarms of the watch.

    python experiments/when_averaging_hurts.py --config=configs/averaging_hurts.py --workdir=runs/averaging_hurts

Interrupted, the same command continues; trainings that have finished are not run again.
"""

from absl import flags
from ml_collections import config_flags

from hwa_jax.algorithms import averaging_hurts
from hwa_jax.report.averaging_hurts import alarms_table, write_study
from hwa_jax.training import program

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file, see configs/averaging_hurts.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for figures, tables and plots")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "start over, deleting what --workdir holds")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    config, directory = _CONFIG.value, _WORKDIR.value
    program.enable_compilation_cache(f"{directory}.compiled")
    cells = averaging_hurts.run(config, directory, overwrite=_OVERWRITE.value)
    report = write_study(cells, directory, title=config.title, meta={
        "description": config.description, "command": program.command_line(),
    })
    print(alarms_table(cells))
    print(f"\nreport with plots: {report}")


if __name__ == "__main__":
    program.run(main)
