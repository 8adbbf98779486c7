"""HWA and what it competes with on Fashion-MNIST: the committed result, claims H1 to H4 and H8 to H10.

CNN-S (34 thousand weights), 10,000 training images and 2,500 held out for validation, crop and
flip, 20 epochs per replica, batch 100, K=2, H=1 epoch, I=8; SGD with Nesterov momentum and AdamW, each at
constant and cosine rate; 5 seeds. The rate and weight decay of every optimizer and schedule are those
with which plain training had the best validation accuracy, on a seed of its own; HWA was not tuned.
Result: results/hwa_fashion_mnist/report.md. Hardware: 2 CPU cores, about two hours. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.hwa_comparison import default_comparison


def get_config():
    config = default_comparison()
    config.title = "HWA on Fashion-MNIST"
    config.description = (
        "CNN-S on Fashion-MNIST: 10,000 training images, 2,500 held out for validation, the usual 10,000 for test; random crop "
        "(padding 2) and flip; 20 epochs per replica, batch 100, K=2, H=1 epoch, I=8. The rate and weight decay of each optimizer "
        "and schedule were tuned for plain training (tuning.json) and used for every method; HWA itself was not tuned. "
        "Seconds were taken while the machine did other work, and serve as a rough guide only."
    )
    config.base.data.update({
        "name": "fashion_mnist", "num_train": 12500, "validation_fraction": 0.2, "crop_padding": 2, "flip": True,
    })
    config.base.training.update({"batch_size": 100, "duration": "20 epochs", "ema_decay": 0.998})
    config.base.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 8})
    config.base.evaluation.update({"every": "2 epochs", "batch_size": 500, "train_examples": 1000})
    config.base.checkpoint.every = "10 epochs"
    config.base.logging.every = "1 epoch"
    config.optimizers = ConfigDict({
        "sgd": {"learning_rates": (0.02, 0.05, 0.1), "weight_decays": (0.0, 0.0005)},
        "adamw": {"learning_rates": (0.001, 0.003), "weight_decays": (0.0, 0.05)},
    })
    config.variants = ConfigDict({
        "H1": {"sync_period": "1 step", "push_every": "1 epoch"},
        "H10": {"sync_period": "10 steps", "push_every": "1 epoch"},
        "H500": {"sync_period": "5 epochs", "window_size": 2},
        "K4": {"num_replicas": 4},
    })
    config.train_sizes = (1250, 3750)  # 1,000 and 3,000 of them for training
    return config
