"""A folder of images, one folder for each class, read by Pillow."""

import hashlib
import os
import pathlib

import numpy as np

from hwa_jax.data.dataset import Split
from hwa_jax.data.tfds_builder import one_line
from hwa_jax.errors import UserError

_SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = ("L", "RGB")
_TEST_ONE_IN = 5

# Class name -> the files of its images.
_Files = dict[str, list[pathlib.Path]]


def read_folder(directory: str | os.PathLike, image_size: int = 0) -> tuple[Split, Split, tuple[str, ...]]:
    """Reads ``train/CLASS/*`` and ``test/CLASS/*``, or ``CLASS/*`` with a split made here.

    The split that is made here takes one image in five for testing, by the SHA-256 of ``CLASS/FILE``: it depends on
    no seed, and an image stays on its side when others are added. Images are .png, .jpg or .jpeg, grey (Pillow's
    mode L) or RGB, turned as their EXIF orientation says. Names that begin with a dot are passed over.

    Args:
        directory: the folder.
        image_size: width and height in pixels to which every image is resized, whatever its own; 0: none is,
            and all must have one size.

    Returns:
        ``(train, test, class_names)``; label i is class_names[i], in the order of their names.

    Raises:
        UserError: no such folder, fewer than two classes, a class without training or test images, a file that
            is no such image, or images of several sizes or modes.
    """
    directory = pathlib.Path(directory).expanduser()
    given = [name for name in ("train", "test") if (directory / name).is_dir()]
    if len(given) == 1:
        raise UserError(f"{directory}: has a folder {given[0]} but none for the other split; give train and test, or classes alone")
    if given:
        train, test = (_classes(directory / name) for name in given)
    else:
        files = _classes(directory)
        train, test = ({name: [p for p in paths if _is_test(p) == side] for name, paths in files.items()} for side in (False, True))
    class_names = tuple(sorted({*train, *test}))
    for name in class_names:
        for side, files in (("training", train), ("test", test)):
            if not files.get(name):
                raise UserError(
                    f"{directory}: class {name!r} has no {side} image; add images to it, in train/{name} and test/{name} if you "
                    "split them yourself, or remove the class"
                )
    paths = [[path for name in class_names for path in files[name]] for files in (train, test)]
    images = _read_images(paths[0] + paths[1], image_size)
    labels = [np.repeat(np.arange(len(class_names), dtype=np.int32), [len(files[name]) for name in class_names]) for files in (train, test)]
    count = len(paths[0])
    return Split(images[:count], labels[0]), Split(images[count:], labels[1]), class_names


def _classes(directory: pathlib.Path) -> _Files:
    folders = [entry for entry in _entries(directory) if entry.is_dir()]
    if len(folders) < 2:
        found = ", ".join(folder.name for folder in folders) or "none"
        raise UserError(f"{directory}: class folders found: {found}; give at least two, each with the images of one class")
    files = {folder.name: _entries(folder) for folder in folders}
    for path in (path for paths in files.values() for path in paths):
        if path.suffix.lower() not in _SUFFIXES or not path.is_file():
            raise UserError(f"{path}: is no {', '.join(_SUFFIXES)} file; a class folder holds images alone, move it elsewhere")
    return files


def _entries(directory):
    try:
        return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"data_dir: {directory} cannot be listed ({error.strerror}); name a folder with one folder for each class") from error


def _is_test(path):
    digest = hashlib.sha256(os.fsencode(f"{path.parent.name}/{path.name}")).digest()
    return int.from_bytes(digest[:8], "big") % _TEST_ONE_IN == 0


def _read_images(paths: list[pathlib.Path], image_size: int) -> np.ndarray:
    first = _read_image(paths[0], image_size)
    images = np.empty((len(paths), *first.shape), np.uint8)
    for index, path in enumerate(paths):
        image = _read_image(path, image_size)
        if image.shape != first.shape:
            raise UserError(
                f"{path}: is {_words(image)}, but {paths[0]} is {_words(first)}; make all images alike, "
                "or set data.image_size to have sizes (not colors) made equal"
            )
        images[index] = image
    return images


def _read_image(path, image_size):
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as stored:
            # Cameras store how they were held instead of turning the pixels.
            image = ImageOps.exif_transpose(stored)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as an image ({one_line(error)}); replace it by an intact copy or remove it") from error
    if image.mode not in _MODES:
        raise UserError(f"{path}: has Pillow's mode {image.mode}; convert it to one of {', '.join(_MODES)}")
    if image_size:
        image = image.resize((image_size, image_size))
    pixels = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], -1)


def _words(image):
    height, width, channels = image.shape
    return f"{width} x {height} pixels, {'grey' if channels == 1 else 'RGB'}"
