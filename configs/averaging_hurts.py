"""When averaging hurts: made to happen on purpose, measured, and whether the watch over averages says so.

Thresholds were looked at on digits (multilayer perceptron and CNN-S, seeds 100 to 102) and are judged on digits with other seeds
and on Fashion-MNIST (CNN-S, 3,000 training images). Five ways to hurt and a healthy training, 3 seeds each.
Result: results/averaging_hurts/report.md. Hardware: 2 CPU cores, about 15 minutes. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.averaging_hurts import default_study


def get_config():
    config = default_study()
    config.description = (
        "SGD with Nesterov momentum 0.9, 20 epochs, K = 2, H = 1 epoch, I = 8 and a constant rate unless the case says otherwise. The watch looks at the "
        "validation split after every push; what is true is measured on the test split. Its thresholds were looked at on the subjects "
        "for setting, and are judged on the others: other seeds, and another data set."
    )
    config.base.training.duration = "20 epochs"
    config.base.optimizer.learning_rate = 0.05
    config.base.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 8})
    config.base.evaluation.update({"every": "20 epochs", "train_examples": 250})
    config.base.checkpoint.every = "20 epochs"
    config.base.logging.every = "5 epochs"
    digits = {"data": {"name": "digits", "num_train": 1250, "validation_fraction": 0.3}, "training": {"batch_size": 25}}
    config.subjects = ConfigDict({
        "digits_mlp": {"role": "setting", "seeds": (100, 101, 102), "model": {"name": "mlp"}, **digits},
        "digits_cnn": {"role": "setting", "seeds": (100, 101, 102), "model": {"name": "cnn_s"}, **digits},
        "digits_cnn_new_seeds": {"role": "judging", "seeds": (0, 1, 2), "model": {"name": "cnn_s"}, **digits},
        "fashion_mnist_cnn": {
            "role": "judging", "seeds": (0, 1, 2), "model": {"name": "cnn_s"},
            "data": {"name": "fashion_mnist", "num_train": 4000, "validation_fraction": 0.25}, "training": {"batch_size": 50},
        },
    })
    return config
