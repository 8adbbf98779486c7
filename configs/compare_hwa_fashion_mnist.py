"""HWA and what it competes with on Fashion-MNIST: the committed result, claims H1 to H4 and H8 to H10.

CNN-S (34 thousand weights), 10,000 training images and 2,500 held out for validation, crop and
flip, 20 epochs per replica, batch 100, K=2, H=1 epoch, I=8; SGD with Nesterov momentum and AdamW, each at
constant and cosine rate; 5 seeds. Rate and weight decay are tuned on validation, on a seed of their own, over one
grid for plain training, for offline averaging and for HWA, per optimizer and schedule.
Result: results/hwa_fashion_mnist/report.md. Hardware: 2 CPU cores, about two hours. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.hwa_comparison import default_comparison


def get_config():
    config = default_comparison()
    config.title = "HWA on Fashion-MNIST"
    config.description = (
        "CNN-S on Fashion-MNIST: 10,000 training images, 2,500 held out for validation, the usual 10,000 for test; random crop "
        "(padding 2) and flip; 20 epochs per replica, batch 100, K=2, H=1 epoch, I=8. Rate and weight decay "
        "were tuned on the validation split over one grid (tuning.json) for plain training, for offline averaging (the window "
        "average; EMA and the uniform average take its choice) and for HWA (online averaging takes its choice); Lookahead and SAM "
        "take plain training's, trainings of 40 epochs those of 20, and smaller training sets those of 10,000 images. The subset and "
        "its split are the same for all seeds, so intervals are over initialization and batch order. "
        "Seconds were taken while the machine did other work, and serve as a rough guide only."
    )
    config.base.data.update({
        "name": "fashion_mnist", "num_train": 12500, "validation_fraction": 0.2, "crop_padding": 2, "flip": True,
    })
    config.base.training.update({"batch_size": 100, "duration": "20 epochs", "ema_decay": 0.998})
    config.base.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 8})
    config.base.evaluation.update({"every": "2 epochs", "batch_size": 500, "train_examples": 250})
    config.base.checkpoint.every = "10 epochs"
    config.base.logging.every = "1 epoch"
    config.optimizers = ConfigDict({
        "sgd": {"learning_rates": (0.01, 0.02, 0.05, 0.1), "weight_decays": (0.0, 0.0005)},
        "adamw": {"learning_rates": (0.001, 0.003, 0.01), "weight_decays": (0.0, 0.05)},
    })
    config.variants = ConfigDict({
        "sync_1": {"sync_period": "1 step", "push_every": "1 epoch"},
        "sync_10": {"sync_period": "10 steps", "push_every": "1 epoch"},
        "sync_500": {"sync_period": "5 epochs", "window_size": 2},
    })
    config.train_sizes = (1250, 3750)  # 1,000 and 3,000 of them for training
    return config
