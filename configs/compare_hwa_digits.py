"""The demo: HWA and what it competes with on digits with noisy labels, at a constant learning rate.

450 training images, 20 % of their labels replaced, so that plain training is not saturated and has something
to gain. The rate is tuned on seed 100, which is not reported. Network CNN-S, 5 seeds. Figures: results/hwa_digits. Hardware: 2 CPU cores, under 4 minutes. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.hwa_comparison import default_comparison


def get_config():
    config = default_comparison()
    config.title = "HWA on digits"
    config.description = (
        "CNN-S on scikit-learn's digits: 450 training images, 20 % of their labels replaced at random, validation and test "
        "labels clean. Constant learning rate, tuned on the validation split and a seed of its own, over one grid for plain training, "
        "offline averaging and HWA. Training accuracy is measured on the noisy labels, so it lies below test accuracy."
    )
    config.base.data.update({"name": "digits", "num_train": 600, "validation_fraction": 0.25, "label_noise": 0.2, "crop_padding": 1})
    config.base.training.update({"batch_size": 45, "duration": "20 epochs", "ema_decay": 0.98})
    config.base.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 8})
    config.base.evaluation.update({"every": "2 epochs", "batch_size": 250, "train_examples": 450})
    config.base.checkpoint.every = "20 epochs"
    config.seeds = (0, 1, 2, 3, 4)
    config.optimizers = ConfigDict({"sgd": {"learning_rates": (0.02, 0.05, 0.1), "weight_decays": (0.0,)}})
    config.schedules = ("constant",)
    return config
