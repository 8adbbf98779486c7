"""IDX files, the format of MNIST and Fashion-MNIST, plain or compressed by gzip."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

from hwa_jax.data.dataset import Split
from hwa_jax.errors import UserError

_UNSIGNED_BYTE = 0x08
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: pathlib.Path, num_dimensions: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes.

    The format: two zero bytes, a type byte, the number of dimensions, each dimension
    as a big-endian 32-bit integer, then the values in row-major order.

    Args:
        path: the file; compressed when its name ends in ``.gz``.
        num_dimensions: 3 for images, 1 for labels.

    Returns:
        uint8 array, ``[n, height, width]`` or ``[n]``.

    Raises:
        UserError: the file cannot be read, is no such IDX file, or is longer or shorter
            than its header says.
    """
    fix = "replace it by an intact copy"
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); {fix}") from error
    header_size = 4 + 4 * num_dimensions
    if len(content) < header_size:
        raise UserError(f"{path}: {len(content)} bytes are too few for an IDX header; {fix}")
    magic = struct.unpack(">HBB", content[:4])
    if magic != (0, _UNSIGNED_BYTE, num_dimensions):
        raise UserError(
            f"{path}: starts with {content[:4].hex()}, an IDX file of unsigned bytes with "
            f"{num_dimensions} dimension(s) starts with 00000{_UNSIGNED_BYTE}0{num_dimensions}; {fix}"
        )
    shape = struct.unpack(f">{num_dimensions}I", content[4:header_size])
    found = len(content) - header_size
    if found != math.prod(shape):
        raise UserError(f"{path}: header says {shape}, but {found} values follow; {fix}")
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def find_idx(directories: list[pathlib.Path]) -> dict[str, tuple[pathlib.Path, pathlib.Path]] | None:
    """Finds the four files, plain or ``.gz``, in the first directory that has any of them.

    Returns:
        ``{"train": (images, labels), "test": (images, labels)}``, or None when no
        directory has any.

    Raises:
        UserError: a directory has some of the files but not all.
    """
    for directory in directories:
        found, missing = {}, []
        for split, names in _FILES.items():
            candidates = [(directory / name, directory / f"{name}.gz") for name in names]
            existing = [next((path for path in pair if path.is_file()), None) for pair in candidates]
            missing += [name for name, path in zip(names, existing) if path is None]
            found[split] = tuple(existing)
        if not missing:
            return found
        if len(missing) < 4:
            raise UserError(
                f"data_dir={directory}: {', '.join(missing)} missing; put it there, plain or as .gz"
            )
    return None


def read_split(images_path: pathlib.Path, labels_path: pathlib.Path) -> Split:
    """Reads an images file ``[n, h, w]`` and a labels file ``[n]`` as a Split of one channel."""
    images = read_idx(images_path, 3)
    labels = read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise UserError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of "
            f"{images_path.name}; replace both by files that belong together"
        )
    return Split(images[..., np.newaxis], labels.astype(np.int32))
