"""CRC-32 checksums of arrays and of the files in a directory."""

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


def of_arrays(arrays, text):
    """Checksum of a text and of named arrays, their names, dtypes and shapes included; int.

    Example:
        >>> of_arrays({"w": np.zeros(2)}, "") == of_arrays({"w": np.zeros((2, 1))}, "")
        False
    """
    checksum = zlib.crc32(text.encode())
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
