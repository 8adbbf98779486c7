"""The data set of a configuration, in memory or streamed."""

from ml_collections import ConfigDict

from hwa_jax import data
from hwa_jax.data import Dataset
from hwa_jax.data.streamed import load_streamed
from hwa_jax.errors import UserError


def load_dataset(config: ConfigDict) -> Dataset:
    """Reads the data set of a configuration into host memory, or opens it to be streamed.

    Raises:
        UserError: a data set that cannot be read, or no validation split.

    Example:
        >>> from hwa_jax.training.config import default_config
        >>> load_dataset(default_config()).name
        'digits'
    """
    fields = config.data
    choices = {
        "data_dir": fields.data_dir or None, "image_size": fields.image_size, "num_train": fields.num_train or None,
        "validation_fraction": fields.validation_fraction, "seed": fields.seed,
    }
    # Pruning's configuration does not have the field.
    if fields.get("streamed"):
        dataset = load_streamed(fields.name, **choices)
    else:
        dataset = data.load(fields.name, source=fields.source, label_noise=fields.label_noise, **choices)
    if not dataset.validation.num_examples:
        raise UserError(f"data.validation_fraction={fields.validation_fraction}: curves need a validation split, give at least 0.01")
    return dataset
