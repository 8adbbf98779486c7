"""Accelerators that are not there: programs can be compiled for them, by their own compilers, but not run."""

import os
import re

import jax
from jax.experimental import topologies

from hwa_jax.errors import UserError

# What XLA has to know of a GPU to compile for it; figures of NVIDIA's H100 SXM.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(topology: str) -> list[jax.Device]:
    """Devices of this kind, in JAX's order; arrays cannot be put on them.

    Args:
        topology: of TPUs, libtpu's name of the kind and the shape of the slice, as ``v5e:2x2``; of GPUs ``h100`` and how many.

    Raises:
        UserError: an unknown name, or the compiler for it is not installed.

    Example:
        >>> devices("eight TPUs")
        Traceback (most recent call last):
        hwa_jax.errors.UserError: --topology=eight TPUs: give kind:size, as in v5e:2x2, v6e:2x4 or h100:4
    """
    match = re.fullmatch(r"(\w+):([1-9]\d*(?:x[1-9]\d*){0,2})", topology)
    if not match:
        raise UserError(f"--topology={topology}: give kind:size, as in v5e:2x2, v6e:2x4 or h100:4")
    kind, size = match.groups()
    if kind in ("v2", "v3", "v4"):
        raise UserError(f"--topology={topology}: libtpu counts two devices for each chip of {kind}, which is not how JAX lays them out: give v5e, v5p or v6e")
    try:
        if kind == "h100":
            found = topologies.get_topology_desc(platform="cuda", target_config=_H100, topology=f"1x1x{size}")
        else:
            found = _slice(topology, is_single=set(size) <= {"1", "x"}, has_two_cores=kind == "v5p")
    except RuntimeError as error:
        if "not installed" in str(error) or isinstance(error, NotImplementedError):
            cure = "pip install -c constraints.txt -e '.[cuda]'" if kind == "h100" else "make tpu-compiler, and set TPU_LIBRARY_PATH=build/tpu/libtpu/libtpu.so"
            raise UserError(f"--topology={topology}: the compiler for it is not installed: {cure}") from error
        raise UserError(f"--topology={topology}: {str(error).splitlines()[0]}: give another, v5e:2x2 for example") from error
    return list(found.devices)


def _slice(name, *, is_single, has_two_cores):
    # What libtpu would otherwise ask of a server that only Google's machines have.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_HOST_BOUNDS": "1,1,1", "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
    }.items():
        os.environ.setdefault(variable, value)
    return topologies.get_topology_desc(
        name, platform="tpu", **({"chips_per_host_bounds": (1, 1, 1)} if is_single else {}),
        # Its two cores are one device, as they are in JAX's own start.
        **({"chip_config_name": "megachip_tccontrol"} if has_two_cores else {}),
    )
