"""CRC-32 checksums of arrays, of JSON and of the files in a directory."""

import json
import os
import zlib

import numpy as np


def of_array(array):
    """Checksum of the bytes of a NumPy array in row-major order; int.

    Example:
        >>> of_array(np.arange(3, dtype=np.uint8)) == zlib.crc32(bytes([0, 1, 2]))
        True
    """
    # A view as bytes, because bfloat16 has no buffer of its own.
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def of_json(value):
    """Checksum of a value as JSON writes it; int.

    Example:
        >>> of_json({"a": (1, 2)}) == of_json({"a": [1, 2]}), of_json({"a": 1}) == of_json({"a": 2})
        (True, False)
    """
    return zlib.crc32(json.dumps(value).encode())


def of_arrays(arrays, metadata):
    """Checksum of what JSON writes, and of named arrays, their names, dtypes and shapes included; int.

    Example:
        >>> of_arrays({"w": np.zeros(2)}, {}) == of_arrays({"w": np.zeros((2, 1))}, {})
        False
    """
    checksum = of_json(metadata)
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"\n{name} {array.dtype} {array.shape} {of_array(array)}".encode(), checksum)
    return checksum


def of_files(directory):
    """Checksums of all files below ``directory``: dict from relative path to int.

    Example:
        >>> of_files("a/directory/that/is/not/there")
        {}
    """
    checksums = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(parent, name)
            checksum = 0
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    checksum = zlib.crc32(block, checksum)
            checksums[os.path.relpath(path, directory)] = checksum
    return checksums
