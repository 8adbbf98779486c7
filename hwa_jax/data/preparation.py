"""Preparing a data set of TensorFlow Datasets, once per machine, without TensorFlow."""

import fcntl
import os
import pathlib

from hwa_jax.data.tensorflow_stand_in import without_tensorflow
from hwa_jax.data.tfds_builder import find_builder, is_prepared, one_line, quiet, search_path
from hwa_jax.errors import UserError


def prepare(name: str, data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Downloads a data set of TensorFlow Datasets and writes it as array_record files.

    Needs a network, except for ``digits``; ``python -m hwa_jax.data NAME`` calls it.
    Does nothing when the data set is there already. Two processes may prepare the same
    data set at the same time: one does the work, the other waits.

    Args:
        name: ``digits`` or any image-classification name of TensorFlow Datasets.
        data_dir: where to write it; None means ``HWA_JAX_DATA_DIR``, else
            ``~/.cache/hwa_jax``.

    Returns:
        The directory which holds the prepared files.

    Raises:
        UserError: unknown name, ``mnist1d``, a directory that cannot be written, or a preparation
            that failed, with its cause.

    Example:
        >>> prepare("digits").name
        '1.0.0'
    """
    if name == "mnist1d":
        raise UserError("data set 'mnist1d': needs no preparation: its package generates it when it is loaded (pip install mnist1d)")
    directory = search_path(data_dir)[0]
    builder = find_builder(name, directory)
    if not is_prepared(builder):
        try:
            _prepare_under_lock(builder, directory)
        except Exception as error:
            raise UserError(
                f"data set {name!r}: preparing it in data_dir={directory} failed "
                f"({one_line(error)}); check that the directory can be written "
                "(HWA_JAX_DATA_DIR or data_dir names another), the network and the free space"
            ) from error
    return pathlib.Path(builder.data_path)


def _prepare_under_lock(builder, directory: pathlib.Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"{builder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_prepared(builder):
            return
        with quiet(show_progress=builder.name != "hwa_digits"), without_tensorflow():
            builder.download_and_prepare()
