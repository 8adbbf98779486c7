"""Data sets: sources, device-resident batches, augmentation; and for what does not fit in memory, streamed splits.

Importing this package loads neither TensorFlow Datasets nor scikit-learn; the
source that needs one of them imports it when a data set is read.
"""

from hwa_jax.data import augmentation as augmentation
from hwa_jax.data import batches as batches
from hwa_jax.data.dataset import Dataset as Dataset
from hwa_jax.data.dataset import Split as Split
from hwa_jax.data.sources import load as load
from hwa_jax.data.streamed import load_streamed as load_streamed
from hwa_jax.data.preparation import prepare as prepare
