"""Which devices a training uses and how they are arranged: replicas along one mesh axis, a replica's batches along another."""

import collections
import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from hwa_jax import particles
from hwa_jax.errors import UserError

# The mesh axis over which every replica's batches are cut; a mesh without it cuts none.
DATA = "data"
# The mesh axis along which devices of several processes do the same.
_COPY = "copy"


def num_devices(config: ConfigDict) -> int:
    """How many devices the configuration asks for.

    Raises:
        UserError: more than JAX sees; or fewer, with several processes.
    """
    seen = len(jax.devices())
    if config.num_devices > seen:
        raise UserError(f"num_devices={config.num_devices}: JAX sees {seen} devices, give at most {seen}")
    if jax.process_count() > 1 and 0 < config.num_devices < seen:
        raise UserError(f"num_devices={config.num_devices}: several processes use all of their {seen} devices, give 0")
    return config.num_devices or seen


def replica_mesh(config: ConfigDict) -> Mesh:
    """The devices of HWA: groups along "device", over which replicas are cut, and the devices of a group along "data".

    A group is of neighbours in JAX's order, so of one process where it fits into one: gradients stay within it, and
    only averages leave it. Without data parallelism there is no second axis.

    Raises:
        UserError: replicas that cannot be cut evenly over the groups, batches over the devices of a group, or devices
            into groups.
    """
    wanted, hwa = num_devices(config), config.hwa
    if wanted % hwa.data_parallel:
        raise UserError(
            f"hwa.data_parallel={hwa.data_parallel}: must divide the {wanted} devices; give {math.gcd(wanted, hwa.data_parallel)}, or set num_devices"
        )
    if config.training.batch_size % hwa.data_parallel:
        raise UserError(f"training.batch_size={config.training.batch_size}: must be a multiple of hwa.data_parallel={hwa.data_parallel}")
    groups = wanted // hwa.data_parallel
    if hwa.num_replicas % groups:
        whole = f"{wanted} devices" if hwa.data_parallel == 1 else f"{groups} groups of hwa.data_parallel={hwa.data_parallel} devices"
        fitting = hwa.data_parallel * math.gcd(hwa.num_replicas, groups)
        raise UserError(f"hwa.num_replicas={hwa.num_replicas}: must be a multiple of the {whole}; set num_devices to {fitting}, for example")
    devices = jax.devices()[:wanted]
    local = jax.local_device_count()
    if jax.process_count() > 1 and local % hwa.data_parallel and hwa.data_parallel % local:
        raise UserError(f"hwa.data_parallel={hwa.data_parallel}: must divide the {local} devices of a process, or be a multiple of them")
    if hwa.data_parallel == 1:
        return particles.device_mesh(devices)
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((groups, hwa.data_parallel), ("device", DATA), axis_types=axis_types, devices=devices)


def particle_mesh(config: ConfigDict, num_particles: int) -> Mesh:
    """The devices of SWAMP: of each process as many as particles can be cut over evenly, all processes alike.

    Where there are fewer particles than processes, or they cannot be shared evenly, groups of processes train the same
    ones: every process takes part in every computation, and none waits for another between the cycles.

    Raises:
        UserError: as `num_devices`.
    """
    num_processes = jax.process_count()
    groups = math.gcd(num_particles, num_processes)
    copies = num_processes // groups
    each = math.gcd(num_particles // groups, num_devices(config) // num_processes)
    if num_processes == 1:
        return particles.device_mesh(jax.devices()[:each])
    by_process = collections.defaultdict(list)
    for device in jax.devices():
        by_process[device.process_index].append(device)
    if len({len(devices) for devices in by_process.values()}) > 1:
        counts = ", ".join(str(len(devices)) for devices in by_process.values())
        raise UserError(f"processes have {counts} devices: SWAMP needs as many in each; give all the same, by CUDA_VISIBLE_DEVICES for example")
    chosen = np.array([devices[:each] for _, devices in sorted(by_process.items())]).reshape(groups, copies, each)
    devices = chosen.transpose(0, 2, 1).reshape(groups * each, copies)
    return Mesh(devices, ("device", _COPY), axis_types=(AxisType.Auto, AxisType.Auto))
