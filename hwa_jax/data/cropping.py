"""Images of any size made one size, on the host: a central square to evaluate, a random part to train."""

import math

import numpy as np

_CENTER = 224 / 256
_AREAS = (0.08, 1.0)
_ASPECTS = (3 / 4, 4 / 3)
_ATTEMPTS = 10


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central square of 7/8 of the shorter side, resized: what resizing to 256 and cutting out 224 amounts to.

    Args:
        image: uint8 ``[height, width, channels]``, 1, 3 or 4 channels.
        size: width and height of the result, in pixels.

    Returns:
        uint8 ``[size, size, channels]``.

    Example:
        >>> center_crop(np.full((9, 20, 3), 7, np.uint8), 4)[..., 0].tolist()
        [[7, 7, 7, 7], [7, 7, 7, 7], [7, 7, 7, 7], [7, 7, 7, 7]]
    """
    height, width, _ = image.shape
    side = _CENTER * min(height, width)
    return _resized(image, ((width - side) / 2, (height - side) / 2, side, side), size)


def random_resized_crop(image: np.ndarray, size: int, random: np.random.RandomState) -> np.ndarray:
    """A part of 8 % to 100 % of the area, between 3:4 and 4:3, resized; `center_crop` where ten draws do not fit.

    Args:
        image, size: as of `center_crop`.
        random: what the part is drawn from.

    Returns:
        uint8 ``[size, size, channels]``.

    References:
        Szegedy et al., Going Deeper with Convolutions, 2015, section 6.

    Example:
        >>> random_resized_crop(np.full((9, 20, 1), 7, np.uint8), 2, np.random.RandomState(0)).tolist()
        [[[7], [7]], [[7], [7]]]
    """
    height, width, _ = image.shape
    for _ in range(_ATTEMPTS):
        area = height * width * random.uniform(*_AREAS)
        aspect = math.exp(random.uniform(*np.log(_ASPECTS)))
        part_width, part_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < part_width <= width and 0 < part_height <= height:
            left, top = random.randint(width - part_width + 1), random.randint(height - part_height + 1)
            return _resized(image, (left, top, part_width, part_height), size)
    return center_crop(image, size)


def _resized(image, box, size):
    from PIL import Image

    left, top, width, height = box
    pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    part = pixels.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
    return np.asarray(part).reshape(size, size, -1)
