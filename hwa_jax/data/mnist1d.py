"""MNIST-1D, which the package mnist1d generates: no download, and too hard for a small network to fit perfectly."""

import functools
import random

import numpy as np

from hwa_jax.data.dataset import Split
from hwa_jax.errors import UserError

# Of the signals, which have mean 0 and standard deviation 1; a byte is 0.047 then, a sixth of their noise by its rounding.
_LARGEST = 6.0


@functools.cache
def read_mnist1d() -> tuple[Split, Split, int]:
    """Generates the published data set: 4,000 signals to train and 1,000 to test, of 40 samples each.

    The signals become bytes, -6 to 6 on 0..255. The random states of Python and NumPy, which the package sets, are put back.

    Returns:
        ``(train, test, 10)``; images are uint8 ``[n, 40, 1, 1]``.

    Raises:
        UserError: the package is not installed.

    References:
        Greydanus, Kobak, Scaling Down Deep Learning with MNIST-1D, ICML 2024, arXiv 2011.14439.
    """
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise UserError(f"data.name='mnist1d': the package mnist1d cannot be imported ({error}): pip install mnist1d") from error
    states = random.getstate(), np.random.get_state()
    try:
        found = make_dataset(get_dataset_args())
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return _split(found["x"], found["y"]), _split(found["x_test"], found["y_test"]), 10


def _split(signals, labels):
    scaled = (np.clip(signals, -_LARGEST, _LARGEST) / _LARGEST + 1) * 127.5
    return Split(np.rint(scaled).astype(np.uint8)[:, :, np.newaxis, np.newaxis], np.asarray(labels, np.int32))
