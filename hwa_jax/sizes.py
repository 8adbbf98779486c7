"""What a file claims to hold, checked before memory is taken for it."""

import math
import os
from collections.abc import Iterable, Sequence

import numpy as np


def num_bytes(arrays: Iterable[tuple[Sequence[int], str]]) -> int:
    """Of arrays given as (shape, dtype), in exact whole numbers.

    Raises:
        TypeError, ValueError: a shape that is no sequence of whole numbers of at least 0, or no dtype.

    Example:
        >>> num_bytes([((2, 3), "float32"), ((), "int8"), ((10**9, 10**9, 10**9), "float64")])
        8000000000000000000000000025
    """
    total = 0
    for shape, dtype in arrays:
        if not all(type(length) is int and length >= 0 for length in shape):
            raise ValueError(f"a shape is {shape}")
        total += math.prod(shape) * np.dtype(dtype).itemsize
    return total


def require_memory(wanted: int) -> None:
    """Refuses what this machine could not hold, had it nothing else to do.

    Args:
        wanted: bytes.

    Raises:
        ValueError: more than its memory.

    Example:
        >>> require_memory(1000)
        >>> require_memory(10**18)
        Traceback (most recent call last):
        ...
        ValueError: claims 1,000,000,000,000,000,000 bytes, more than this machine's memory
    """
    if wanted > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise ValueError(f"claims {wanted:,} bytes, more than this machine's memory")
