"""Averages checkpoints that are there already: Orbax directories or safetensors files, of any framework.

    python experiments/average_checkpoints.py --checkpoints='runs/*/model.safetensors' --output=average.safetensors
    python experiments/average_checkpoints.py --checkpoints='checkpoints/*' --average=window --size=5 --output=averages

Checkpoints are taken in the order of the numbers in their names, and read one at a time. With --config,
which gives network and data as in configs/, BatchNorm statistics are recomputed for the average.
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from hwa_jax.algorithms import checkpoint_average
from hwa_jax.algorithms.stored_run import for_evaluation
from hwa_jax.errors import UserError
from hwa_jax.report.tables import print_metrics
from hwa_jax.storage import found_checkpoints
from hwa_jax.training import program
from hwa_jax.training.setup import prepare

_CHECKPOINTS = flags.DEFINE_string("checkpoints", None, "glob of Orbax directories or safetensors files; quote it")
_OUTPUT = flags.DEFINE_string("output", None, "FILE.safetensors, or a directory, which gets average.safetensors")
_AVERAGE = flags.DEFINE_enum("average", "uniform", checkpoint_average.AVERAGES, "which average")
_DECAY = flags.DEFINE_float("decay", None, "of --average=ema, at least 0 and below 1")
_SIZE = flags.DEFINE_integer("size", None, "of --average=window, in checkpoints")
_CONFIG = config_flags.DEFINE_config_file("config", None, "network and data, to recompute BatchNorm statistics")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace --output")
flags.mark_flags_as_required(["checkpoints", "output"])


def main() -> None:
    paths = found_checkpoints.find(_CHECKPOINTS.value)
    shares = checkpoint_average.shares(_AVERAGE.value, len(paths), decay=_DECAY.value, size=_SIZE.value)
    output = _output(paths)
    setup = prepare(for_evaluation(_CONFIG.value)) if _CONFIG.value is not None else None
    members = paths[-len(shares):]
    if len(paths) == 1:
        print(f"only {paths[0]} matches: its average is itself")
    else:
        print(f"{len(members)} of {len(paths)} checkpoints, from {members[0]} to {members[-1]}")
    averaged = checkpoint_average.average(members, shares)
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {"average": _AVERAGE.value, "decay": _DECAY.value, "size": _SIZE.value, "checkpoints": members}
    if setup is not None:
        print_metrics({_AVERAGE.value: {"validation": checkpoint_average.save_recalibrated(averaged, output, about, setup)}})
    else:
        checkpoint_average.save(averaged, output, about)
        if names := checkpoint_average.batch_norm_names(averaged.arrays):
            print(f"BatchNorm statistics ({names[0]}, ...) are averaged, not recomputed: do so with --config, or in your own program")
    print(f"average: {output}")


def _output(paths: list[str]) -> pathlib.Path:
    output = pathlib.Path(_OUTPUT.value)
    if output.suffix != ".safetensors":
        output = output / "average.safetensors"
    program.require_writable(output, overwrite=_OVERWRITE.value)
    if output.resolve() in [pathlib.Path(path).resolve() for path in paths]:
        raise UserError(f"--output={output}: is one of the --checkpoints: give another file")
    return output


if __name__ == "__main__":
    program.run(main)
