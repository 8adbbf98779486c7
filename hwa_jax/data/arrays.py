"""A NumPy file of images and labels under Keras' names."""

import os
import pathlib
import zipfile
import zlib

import numpy as np

from hwa_jax import sizes
from hwa_jax.data.dataset import Split
from hwa_jax.errors import UserError

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: str | os.PathLike) -> tuple[Split, Split, int]:
    """Reads an .npz file with the arrays x_train, y_train, x_test and y_test; what they hold is checked by `load`.

    Args:
        path: the file. Images are uint8 ``[n, height, width]`` or ``[n, height, width, channels]``, labels integers
            ``[n]`` or, as in Keras' CIFAR, ``[n, 1]``.

    Returns:
        ``(train, test, num_classes)``, where num_classes is the number of different training labels.

    Raises:
        UserError: no such file, a damaged one, an array that is missing or holds Python objects, or fewer than two
            different training labels.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 2, 1])
        ...     np.savez(f"{directory}/mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        ...     train, _, num_classes = read_npz(f"{directory}/mine.npz")
        >>> train.images.shape, num_classes
        ((4, 8, 8, 1), 3)
    """
    path = pathlib.Path(path).expanduser()
    try:
        loaded = np.load(path)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise UserError(f"data_dir: {path} holds one array; write the four by numpy.savez: {', '.join(_NAMES)}")
        with loaded:
            sizes.require_memory(sum(entry.file_size for entry in loaded.zip.infolist()))
            missing = [name for name in _NAMES if name not in loaded]
            if missing:
                raise UserError(f"data_dir: {path} has no {missing[0]}; write it by numpy.savez with {', '.join(_NAMES)}")
            arrays = {name: loaded[name] for name in _NAMES}
    except UserError:
        raise
    except (OSError, EOFError, MemoryError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"data_dir: {path} cannot be read ({error}); give an intact .npz file of arrays of numbers") from error
    num_classes = np.unique(arrays["y_train"]).size
    if num_classes < 2:
        raise UserError(f"{path}: y_train holds {num_classes} class(es); give at least two")
    return _split(arrays["x_train"], arrays["y_train"]), _split(arrays["x_test"], arrays["y_test"]), num_classes


def _split(images, labels):
    return Split(images[..., np.newaxis] if images.ndim == 3 else images, labels[:, 0] if labels.shape[1:] == (1,) else labels)
