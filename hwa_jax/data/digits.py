"""scikit-learn's embedded digits as a TensorFlow Datasets builder.

Imported only when the data set is read: the class cannot be defined without
TensorFlow Datasets.
"""

import numpy as np
import tensorflow_datasets as tfds

from hwa_jax.data.subsets import stratified_choice

_NUM_TEST = 500
_SPLIT_SEED = 0


class HwaDigits(tfds.core.GeneratorBasedBuilder):
    """1,797 handwritten digits of 8x8 pixels, 1,297 to train and 500 to test.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
    Machine Learning Repository, 1998; the test part, as scikit-learn embeds it. Its
    intensities 0..16 are scaled to 0..255. The split is ours: fixed and
    class-stratified. Images are a Tensor feature, which needs no image encoder.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
        test, train = stratified_choice(
            digits.target, _NUM_TEST, np.random.RandomState(_SPLIT_SEED)
        )
        return {
            "train": self._generate_examples(images, digits.target, train),
            "test": self._generate_examples(images, digits.target, test),
        }

    def _generate_examples(self, images, labels, indices):
        for index in indices:
            yield int(index), {"image": images[index], "label": int(labels[index])}
