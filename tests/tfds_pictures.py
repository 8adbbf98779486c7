"""Generated TFDS builders with an Image feature, and a fresh Python process."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow_datasets as tfds

REPOSITORY = pathlib.Path(__file__).parent.parent
COUNTS = {"train": 30, "test": 10}


def picture(split, index):
    """Image 8x8x3 of noise, the same in every process."""
    return np.random.RandomState([len(split), index]).randint(0, 256, (8, 8, 3)).astype(np.uint8)


class _Pictures(tfds.core.GeneratorBasedBuilder):
    """40 images through an Image feature, which TensorFlow would encode."""

    VERSION = tfds.core.Version("1.0.0")
    IMAGE = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
    LABEL = tfds.features.ClassLabel(num_classes=3)
    SPLITS = tuple(COUNTS)

    def _info(self):
        features = tfds.features.FeaturesDict({"image": self.IMAGE, "label": self.LABEL})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for index in range(COUNTS.get(split, 5)):
            yield index, {"image": self.image(split, index), "label": index % 3}

    def image(self, split, index):
        return picture(split, index)


class HwaTestPng(_Pictures):
    pass


class HwaTestGray(_Pictures):
    IMAGE = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")

    def image(self, split, index):
        return picture(split, index)[..., :1]


class HwaTestJpeg(_Pictures):
    IMAGE = tfds.features.Image(shape=(8, 8, 3), encoding_format="jpeg")

    def image(self, split, index):
        return np.full((8, 8, 3), 8 * index, np.uint8)


class HwaTestSizes(_Pictures):
    IMAGE = tfds.features.Image(shape=(None, None, 3))

    def image(self, split, index):
        return picture(split, index)[: 4 + index % 2]


class HwaTestPhotos(_Pictures):
    """As ImageNet: JPEG of many sizes, and a test split without labels."""

    IMAGE = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    SPLITS = ("train", "validation", "test")

    def _generate_examples(self, split):
        for index, example in super()._generate_examples(split):
            yield index, example | ({"label": -1} if split == "test" else {})

    def image(self, split, index):
        noise = np.random.RandomState([len(split), index]).randint(0, 80, (20 + 7 * index % 31, 20 + 11 * index % 29, 3))
        return (noise + 5 * index).astype(np.uint8)


class HwaTestRegression(_Pictures):
    LABEL = tfds.features.Scalar(np.int32)


class HwaTestNoTest(_Pictures):
    SPLITS = ("train", "extra")


class HwaTestOnlyValidation(_Pictures):
    SPLITS = ("train", "validation")


class HwaTestUnlabelled(_Pictures):
    LABEL = tfds.features.ClassLabel(num_classes=3)

    def _generate_examples(self, split):
        for index in range(COUNTS[split]):
            yield index, {"image": picture(split, index), "label": -1 if split == "test" else 0}


def run_python(code, **environment):
    """Runs code in a fresh process in the repository; returns (stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr
