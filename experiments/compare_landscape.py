"""Measures where averaged weights lie in the loss landscape, beside what they average, over architectures and seeds.

    python experiments/compare_landscape.py --config=configs/compare_landscape.py --workdir=runs/landscape

Interrupted, the same command continues; what has been trained and measured is not made again.
"""

from absl import flags
from ml_collections import config_flags

from hwa_jax.algorithms import landscape_comparison
from hwa_jax.report.claims import effects_table
from hwa_jax.report.landscape_claims import effects
from hwa_jax.report.landscape_comparison import write_comparison
from hwa_jax.training import program

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file, see configs/compare_landscape.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for figures, tables and plots")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "start over, deleting what --workdir holds")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    config, directory = _CONFIG.value, _WORKDIR.value
    program.enable_compilation_cache(f"{directory}.compiled")
    cells = landscape_comparison.run(config, directory, overwrite=_OVERWRITE.value)
    report = write_comparison(cells, directory, title=config.title, meta={
        "description": config.description, "command": program.command_line(),
    })
    print(effects_table(effects(cells)))
    print(f"\nreport with plots: {report}")


if __name__ == "__main__":
    program.run(main)
