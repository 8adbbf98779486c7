"""HWA and what it is made of with another network, a small residual one with BatchNorm, on few images: claim H1 once more.

ResNet-8 on 2,000 training images of Fashion-MNIST, 500 more for validation, crop and flip, 8 epochs per replica, batch 50, K=2, H=1 epoch,
I=4; SGD with Nesterov momentum at a constant rate, 3 seeds. The rate is tuned on validation, on a seed of its own, over a grid of three. The BatchNorm
statistics of every average are computed anew on 500 images. Plain training keeps the running ones, as is usual, which is a part of what it loses by.
Result: results/hwa_fashion_mnist_resnet8/report.md. Hardware: 2 CPU cores, about 10 minutes. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.hwa_comparison import default_comparison


def get_config():
    config = default_comparison()
    config.title = "HWA with ResNet-8 on Fashion-MNIST"
    config.description = (
        "ResNet-8 with BatchNorm on Fashion-MNIST: 2,000 training images, 500 held out for validation, the usual 10,000 for test; random crop "
        "(padding 2) and flip; 8 epochs per replica, batch 50, K=2, H=1 epoch, I=4. The rate was tuned on the validation split over a grid of three "
        "(tuning.json) for plain training, for offline averaging and for HWA. BatchNorm statistics of averages are recomputed on 500 training images; plain training "
        "is evaluated with its running ones, as is usual, and at a constant rate those lag behind: a part of every difference to plain training is this. Where all have "
        "recomputed ones (results/landscape_fashion_mnist_resnet8, 5 epochs at the rate 0.05) plain training was not behind. "
        "The subset and its split are the same for all seeds. Seconds were taken while the machine did other work."
    )
    config.base.data.update({"name": "fashion_mnist", "num_train": 2500, "validation_fraction": 0.2, "crop_padding": 2, "flip": True})
    config.base.model.update({"name": "resnet8", "norm": "batch"})
    config.base.training.update({"batch_size": 50, "duration": "8 epochs", "ema_decay": 0.98})
    config.base.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 4, "recalibration_examples": 500})
    config.base.evaluation.update({"every": "2 epochs", "batch_size": 500, "train_examples": 250})
    config.base.checkpoint.every = "8 epochs"
    config.base.logging.every = "2 epochs"
    config.seeds = (0, 1, 2)
    config.optimizers = ConfigDict({"sgd": {"learning_rates": (0.02, 0.05, 0.1), "weight_decays": (0.0005,)}})
    config.schedules = ("constant",)
    config.trajectories = ("plain", "plain_xk", "offline", "offline_xk", "hwa")
    return config
