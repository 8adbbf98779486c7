"""Where data sets of TensorFlow Datasets live, and the builder that knows one."""

import contextlib
import difflib
import io
import os
import pathlib
import re
import sys

from hwa_jax.errors import UserError

LOCAL_NAMES = ("digits", "fashion_mnist", "mnist", "mnist1d")


def default_directory() -> pathlib.Path:
    """Where data sets are prepared: ``HWA_JAX_DATA_DIR``, else ``~/.cache/hwa_jax``."""
    return pathlib.Path(os.environ.get("HWA_JAX_DATA_DIR") or "~/.cache/hwa_jax").expanduser()


def search_path(data_dir: str | os.PathLike | None) -> list[pathlib.Path]:
    """Where a prepared data set is looked for: ``data_dir`` alone when it is given, else
    the default directory, then TensorFlow Datasets' own (``TFDS_DATA_DIR``)."""
    if data_dir is not None:
        return [pathlib.Path(data_dir).expanduser()]
    shared = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return [default_directory(), pathlib.Path(shared).expanduser()]


def find_builder(name: str, directory: pathlib.Path):
    """The `tfds.core.DatasetBuilder` of a data set, whether or not it is prepared.

    Args:
        name: ``digits``, for the builder of this package, or any name of TensorFlow Datasets.
        directory: where it is, or will be, prepared.

    Raises:
        UserError: no data set has this name; the message lists close ones. Or what is
            prepared there cannot be opened.
    """
    import tensorflow_datasets as tfds

    with quiet(show_progress=False):
        try:
            if name == "digits":
                from hwa_jax.data.digits import HwaDigits

                return HwaDigits(data_dir=directory, file_format="array_record")
            return tfds.builder(name, data_dir=directory, file_format="array_record", try_gcs=False)
        except Exception as error:
            raise _explain(name, directory, error) from error


def _explain(name: str, directory: pathlib.Path, error: Exception) -> UserError:
    import tensorflow_datasets as tfds

    known = {*LOCAL_NAMES, *tfds.list_builders(with_community_datasets=False)}
    base_name = re.split("[/:]", name)[0]
    if base_name in known or (base_name and (directory / base_name).is_dir()):
        return UserError(
            f"data set {name!r} cannot be opened in {directory} ({one_line(error)}); "
            "correct the name, or delete the data set there and prepare it again"
        )
    close = difflib.get_close_matches(name, sorted(known)) or LOCAL_NAMES
    return UserError(f"data set {name!r} is unknown; close names: {', '.join(close)}")


def one_line(error: Exception) -> str:
    """Type and message of an exception as at most 300 characters of one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def is_prepared(builder) -> bool:
    """Whether the files of a builder are complete: they are renamed into place last."""
    return (pathlib.Path(builder.data_path) / "dataset_info.json").is_file()


@contextlib.contextmanager
def quiet(show_progress: bool):
    """Keeps TensorFlow Datasets from writing to standard output and error.

    Args:
        show_progress: keep its progress bars, if standard error is a terminal.
    """
    from absl import logging
    from tensorflow_datasets.core.utils import tqdm_utils

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tqdm_utils.display_progress_bar(show_progress and sys.stderr.isatty())
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(True)
        logging.set_verbosity(verbosity)
