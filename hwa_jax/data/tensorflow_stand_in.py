"""The few functions of TensorFlow that preparing an image data set calls, without it.

TensorFlow Datasets reads without TensorFlow, but its builders open files by
``tf.io.gfile`` and encode images by ``tf.image``. Both are small: files are local and
Pillow writes PNG (lossless, so the pixels are the same) and JPEG.
"""

import contextlib
import glob
import importlib.util
import io
import os
import shutil
from types import SimpleNamespace

import numpy as np


@contextlib.contextmanager
def without_tensorflow():
    """Lets TensorFlow Datasets prepare data sets where TensorFlow is not installed.

    Within the context its lazily imported TensorFlow is the stand-in; nothing enters
    ``sys.modules``. Where TensorFlow is installed, it is used and nothing changes.
    """
    from tensorflow_datasets.core.utils import lazy_imports_utils

    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    # Every module of TensorFlow Datasets shares this one lazy module, which keeps what
    # it has imported under `_module`.
    lazy_module = vars(lazy_imports_utils.tensorflow)
    lazy_module["_module"] = _STAND_IN
    try:
        yield
    finally:
        del lazy_module["_module"]


def _encode(image: np.ndarray, **options) -> SimpleNamespace:
    """Encodes uint8 or uint16 ``[h, w, c]``; the result has TensorFlow's ``numpy()``."""
    from PIL import Image

    content = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(pixels).save(content, **options)
    return SimpleNamespace(numpy=content.getvalue)


_STAND_IN = SimpleNamespace(
    __version__="2.0 stand-in",
    executing_eagerly=lambda: True,
    image=SimpleNamespace(
        encode_png=lambda image: _encode(image, format="PNG"),
        encode_jpeg=lambda image: _encode(image, format="JPEG", quality=95),
    ),
    io=SimpleNamespace(
        gfile=SimpleNamespace(
            GFile=open,
            copy=shutil.copyfile,
            exists=os.path.exists,
            glob=glob.glob,
            isdir=os.path.isdir,
            listdir=os.listdir,
            makedirs=lambda path: os.makedirs(path, exist_ok=True),
        )
    ),
    compat=SimpleNamespace(as_text=os.fsdecode),
    errors=SimpleNamespace(UnimplementedError=NotImplementedError),
)
