"""One HWA training of CNN-S on Fashion-MNIST, the size of one cell of results/hwa_fashion_mnist.

10,000 training images, K=2, H=1 epoch, I=8, constant rate. Expected: the figures of "HWA, SGD, constant" in
results/hwa_fashion_mnist/report.md. Hardware: 2 CPU cores, about a minute. All values are our choice.
"""

from hwa_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.update({"name": "fashion_mnist", "num_train": 12500, "validation_fraction": 0.2, "crop_padding": 2, "flip": True})
    config.optimizer.learning_rate = 0.05
    config.training.update({"batch_size": 100, "duration": "20 epochs"})
    config.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 8})
    config.evaluation.every = "2 epochs"
    return config
