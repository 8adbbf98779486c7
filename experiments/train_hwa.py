"""Trains one network by Hierarchical Weight Averaging.

    python experiments/train_hwa.py --config=configs/hwa_digits.py --workdir=runs/digits --config.hwa.num_replicas=4

The same command continues an interrupted run. `--dry_run` says what it would take, and writes nothing.

On the devices of several processes: the same command in each of them, with `--coordinator=HOST:PORT --num_processes=2
--process_id=0` and 1, or with `--distributed` alone under Slurm, Open MPI, Kubernetes and on TPU pods.
"""

from absl import flags
from ml_collections import config_flags

from hwa_jax.algorithms import hwa
from hwa_jax.report.dry_run import describe
from hwa_jax.report.tables import print_metrics
from hwa_jax.training import processes, program
from hwa_jax.training.setup import prepare

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file, see configs/")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for checkpoints, window, metrics and results")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "start over, deleting what --workdir holds")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print memory, disk, steps and an estimate of time")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    config = _CONFIG.value
    if _DRY_RUN.value:
        setup = prepare(config)
        text = describe(setup, hwa.num_kept(setup))
        if processes.is_leader():
            print(text)
        return 0
    program.enable_compilation_cache(f"{_WORKDIR.value}.compiled")
    results = hwa.train(config, _WORKDIR.value, overwrite=_OVERWRITE.value)
    if results is None:
        return program.INTERRUPTED
    if processes.is_leader():
        print_metrics(results["final"])
        print(f"weights: {_WORKDIR.value}/hwa.safetensors   figures: {_WORKDIR.value}/results.json")
    return 0


if __name__ == "__main__":
    program.run(main, several_processes=True)
