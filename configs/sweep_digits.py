"""A sweep of K, H, I, stride, start and schedule on scikit-learn's digits with noisy labels, one minute or a few.

Multilayer perceptron, 450 training images of which 20 % have another label, 20 epochs, 3 seeds, 54 trainings; a rate that was not tuned.
Expected: I and start matter most, and at a cosine hardly. Hardware: 2 CPU cores, a few minutes. All values are our choice.
"""

from hwa_jax.algorithms.hwa_sweep import default_sweep


def get_config():
    config = default_sweep()
    config.title = "Sweep of HWA on digits"
    config.description = (
        "Multilayer perceptron on scikit-learn's digits: 450 training images, 20 % of their labels replaced at random, validation and test labels clean; "
        "20 epochs per replica, batch 45, SGD with Nesterov momentum at the rate 0.05, which was not tuned."
    )
    config.base.data.update({"name": "digits", "num_train": 900, "validation_fraction": 0.5, "label_noise": 0.2, "crop_padding": 1})
    config.base.model.name = "mlp"
    config.base.training.update({"batch_size": 45, "duration": "20 epochs"})
    config.base.optimizer.learning_rate = 0.05
    config.base.hwa.window_size = 8
    config.sync_periods = ("1 step", "5 steps", "1 epoch", "5 epochs")
    config.base.evaluation.update({"every": "20 epochs", "batch_size": 250, "train_examples": 250})
    config.base.checkpoint.every = "20 epochs"
    config.base.logging.every = "10 epochs"
    return config
