"""How much memory a program may still take."""

import math
import pathlib

import jax

_MEMORY = pathlib.Path("/proc/meminfo")


def free_bytes(device: jax.Device) -> float:
    """Bytes that are free on a device, or in the host's memory for a CPU; infinite where nobody says.

    Example:
        >>> free_bytes(jax.devices()[0]) > 0
        True
    """
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    try:
        lines = _MEMORY.read_text().splitlines()
    except OSError:
        return math.inf
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)
