"""The trial: whether averaging pays at all, on a subset and a small network, with a figure that can be checked.

CNN-S on 3,000 training images of Fashion-MNIST, 750 more for validation; SGD at a constant rate, 20 epochs, K=2, H=1 epoch,
I=8; plain training, offline averaging and HWA, each at equal steps and equal compute, 3 seeds. Expected: near the rows of
3,000 training samples in results/hwa_fashion_mnist/report.md, whose rate was tuned on more images. Hardware: 2 CPU cores,
three and a half minutes. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.hwa_comparison import default_comparison


def get_config():
    config = default_comparison()
    config.title = "Trial"
    config.description = "CNN-S, a subset of the training images, constant learning rate, tuned on the validation split and a seed of its own."
    config.base.data.update({"name": "fashion_mnist", "num_train": 3750, "validation_fraction": 0.2, "crop_padding": 2, "flip": True})
    config.base.training.update({"batch_size": 100, "duration": "20 epochs", "ema_decay": 0.993})
    config.base.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 8})
    config.base.evaluation.every = "2 epochs"
    config.base.checkpoint.every = "20 epochs"
    config.seeds = (0, 1, 2)
    config.optimizers = ConfigDict({"sgd": {"learning_rates": (0.02, 0.05, 0.1), "weight_decays": (0.0,)}})
    config.schedules = ("constant",)
    config.trajectories = ("plain", "plain_xk", "offline", "offline_xk", "hwa")
    return config
