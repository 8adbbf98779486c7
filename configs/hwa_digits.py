"""HWA on scikit-learn's digits: the smallest run that shows every part.

Network CNN-S, 1000 training images of which 100 are held out for validation. All values are our choice.
Expected: test accuracy of the HWA weights about 97 %. Hardware: 2 CPU cores, under a minute.
"""

from hwa_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.name = "digits"
    config.data.num_train = 1000
    config.training.update({"batch_size": 50, "duration": "20 epochs"})
    config.optimizer.learning_rate = 0.05
    config.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 10})
    return config
