"""Images of one's own as files that tests write: a folder by class, and a NumPy file."""

import numpy as np
from PIL import Image

NAMES = ("cat", "dog", "eel")


def picture(label, index, shape=(8, 8)):
    """Noise around a level that tells the class."""
    noise = np.random.default_rng([label, index]).integers(0, 64, shape)
    return (noise + 80 * label).astype(np.uint8)


def write(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write_folder(directory, per_class=20, sides=("",), shape=(8, 8)):
    """CLASS/NN.png below every side; images of different sides differ."""
    for offset, side in enumerate(sides):
        for label, name in enumerate(NAMES):
            for index in range(per_class):
                write(directory / side / name / f"{index:02}.png", picture(label, index + 100 * offset, shape))
    return directory


def write_npz(path, **changes):
    images = np.stack([picture(label, index) for index in range(40) for label in range(3)])
    arrays = {"x_train": images[:90], "y_train": np.arange(90) % 3, "x_test": images[90:], "y_test": np.arange(90, 120) % 3}
    np.savez(path, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})
    return path
