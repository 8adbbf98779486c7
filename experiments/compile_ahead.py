"""Compiles a training for accelerators that need not be there: does it compile, does it fit, when does it communicate?

    python experiments/compile_ahead.py --config=configs/hwa_digits.py --topology=v5e:2x2
    python experiments/compile_ahead.py --config=configs/swamp_digits.py --topology=h100:4

Configurations are those of train_hwa and train_swamp. TPU slices have libtpu's names and need it (extra `tpu`), `h100:N` needs the
extra `cuda`. Nothing is run: no accelerator, no result, no time. `--output=DIR` adds the table to a report there.
"""

import pathlib

import jax
from absl import flags
from ml_collections import config_flags

from hwa_jax.report.compiled import add_to_report, table
from hwa_jax.training import absent_devices, program, setup, sparse_setup
from hwa_jax.training.ahead_of_time import compile_programs

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file, see configs/")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x2", "devices: v5e:2x2, v6e:2x4, v5p:2x2x1, h100:4, ...")
_OUTPUT = flags.DEFINE_string("output", None, "directory for a report of all that was compiled with it")
flags.mark_flag_as_required("config")


def main() -> None:
    config, topology = _CONFIG.value, _TOPOLOGY.value
    if _OUTPUT.value:
        program.require_directory(_OUTPUT.value)
    # As many CPU devices stand in for them, to lay everything out; they hold a copy of the data each.
    jax.config.update("jax_platforms", "cpu")
    devices = absent_devices.devices(topology)
    jax.config.update("jax_num_cpu_devices", len(devices))
    prepare = sparse_setup.prepare if "swamp" in config else setup.prepare
    compiled = list(compile_programs(prepare(config), devices))
    print(table(compiled))
    if _OUTPUT.value:
        print(f"report: {add_to_report(pathlib.Path(_OUTPUT.value), config, topology, devices[0].device_kind, compiled, program.command_line())}")


if __name__ == "__main__":
    program.run(main)
