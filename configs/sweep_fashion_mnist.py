"""The sweep of K, H, I, stride, start and schedule on Fashion-MNIST, claim H6.

CNN-S, 3,000 training images and 2,000 for validation, crop and flip, 20 epochs per replica, batch 100, SGD with Nesterov momentum at the
rate and weight decay that were tuned for HWA at a constant rate on 10,000 images; 3 seeds, 54 trainings. Result: results/sweep_fashion_mnist/report.md. Expected cost: about 15 minutes,
at most 25, by 3 to 10 seconds of training each (results/hwa_fashion_mnist), and about as much for evaluation and starting. Hardware: 2 CPU
cores. All values are our choice.
"""

from hwa_jax.algorithms.hwa_sweep import default_sweep


def get_config():
    config = default_sweep()
    config.title = "Sweep of HWA on Fashion-MNIST"
    config.description = (
        "CNN-S on Fashion-MNIST: 3,000 training images, 2,000 held out for validation, the usual 10,000 for test; random crop (padding 2) and flip; "
        "20 epochs per replica, batch 100, 30 steps an epoch; SGD with Nesterov momentum, rate 0.05 and weight decay 0.0005, which tuning chose for HWA "
        "at a constant rate on 10,000 images, for all settings alike."
    )
    config.base.data.update({"name": "fashion_mnist", "num_train": 5000, "validation_fraction": 0.4, "crop_padding": 2, "flip": True})
    config.base.optimizer.update({"learning_rate": 0.05, "weight_decay": 0.0005})
    config.base.training.update({"batch_size": 100, "duration": "20 epochs"})
    config.base.hwa.window_size = 8
    config.base.evaluation.update({"every": "20 epochs", "batch_size": 500, "train_examples": 250})
    config.base.checkpoint.every = "20 epochs"
    config.base.logging.every = "10 epochs"
    return config
