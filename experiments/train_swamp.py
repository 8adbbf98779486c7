"""Prunes one network by SWAMP: sparse weight averaging with multiple particles.

    python experiments/train_swamp.py --config=configs/swamp_digits.py --workdir=runs/swamp --config.swamp.num_particles=8

The same command continues an interrupted run, and a finished one to a higher --config.swamp.target_sparsity. One
particle without SWA is iterative magnitude pruning. `--dry_run` says what it would take, and writes nothing.

On the devices of several processes: the same command in each of them, with `--coordinator=HOST:PORT --num_processes=2
--process_id=0` and 1, or with `--distributed` alone under Slurm, Open MPI, Kubernetes and on TPU pods.
"""

from absl import flags
from ml_collections import config_flags

from hwa_jax.algorithms import swamp
from hwa_jax.report.dry_run import describe_pruning
from hwa_jax.report.tables import print_metrics
from hwa_jax.training import processes, program
from hwa_jax.training.sparse_setup import prepare

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file, see configs/")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory for ticket, cycles, checkpoints and results")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "start over, deleting what --workdir holds")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "print cycles, memory, disk, steps and an estimate of time")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    if _DRY_RUN.value:
        text = describe_pruning(prepare(_CONFIG.value))
        if processes.is_leader():
            print(text)
        return 0
    program.enable_compilation_cache(f"{_WORKDIR.value}.compiled")
    results = swamp.train(_CONFIG.value, _WORKDIR.value, overwrite=_OVERWRITE.value)
    if results is None:
        return program.INTERRUPTED
    if processes.is_leader():
        print_metrics({f"{cycle['sparsity']:.1%} pruned": cycle["evaluation"][cycle["solution"]] for cycle in results["cycles"]})
        print(f"weights: {_WORKDIR.value}/weights.safetensors   figures: {_WORKDIR.value}/results.json")
    return 0


if __name__ == "__main__":
    program.run(main, several_processes=True)
