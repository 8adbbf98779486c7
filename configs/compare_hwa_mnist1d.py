"""HWA and what it is made of on a third data set, MNIST-1D, with a multilayer perceptron: claim H1 once more.

LeNet-300-100 on signals of 40 samples, 3,200 for training and 800 held out for validation, 20 epochs per replica, batch 50, K=2,
H=1 epoch, I=8; SGD with Nesterov momentum at a constant rate and with a cosine; 5 seeds. The rate is tuned on validation, on a seed of
its own; a first grid, up to 0.05, had its best rates at its edge and was widened: with it HWA's gain over plain training was +0.26 ± 2.37 points
(constant rate, equal steps). Needs `pip install mnist1d`, which generates the data. Result: results/hwa_mnist1d/report.md.
Hardware: 2 CPU cores, under 10 minutes. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.hwa_comparison import default_comparison


def get_config():
    config = default_comparison()
    config.title = "HWA on MNIST-1D"
    config.description = (
        "LeNet-300-100 on MNIST-1D, signals of 40 samples in ten classes: 3,200 for training, 800 held out for validation, the usual 1,000 for test; no "
        "augmentation; 20 epochs per replica, batch 50, K=2, H=1 epoch, I=8. The rate was tuned on the validation split over one grid (tuning.json) "
        "for plain training, for offline averaging and for HWA. Seconds were taken while the machine did other work."
    )
    config.base.data.update({"name": "mnist1d", "validation_fraction": 0.2})
    config.base.model.name = "mlp"
    config.base.training.update({"batch_size": 50, "duration": "20 epochs", "ema_decay": 0.998})
    config.base.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 8})
    config.base.evaluation.update({"every": "5 epochs", "batch_size": 500, "train_examples": 800})
    config.base.checkpoint.every = "20 epochs"
    config.base.logging.every = "10 epochs"
    config.optimizers = ConfigDict({"sgd": {"learning_rates": (0.02, 0.05, 0.1, 0.2), "weight_decays": (0.0005,)}})
    config.trajectories = ("plain", "plain_xk", "offline", "offline_xk", "hwa")
    return config
