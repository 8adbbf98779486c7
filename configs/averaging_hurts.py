"""When averaging hurts: made to happen on purpose, measured, and whether the watch over averages says so.

Thresholds were set, and cases made to hurt, on digits (multilayer perceptron with noisy labels, CNN-S without; seeds 100 to 102). They are
judged on digits with other seeds, CNN-S with noisy labels, and on Fashion-MNIST (CNN-S, 3,000 training images). Five ways to hurt and a healthy training, three of
the ways once more with one replica, which is offline averaging alone, 3 seeds each. Result: results/averaging_hurts/report.md. Hardware: 2 CPU cores,
about 20 minutes. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.averaging_hurts import default_study


def get_config():
    config = default_study()
    config.description = (
        "SGD with Nesterov momentum 0.9, 19.5 epochs, K = 2, H = 1 epoch, I = 8 and a constant rate of 0.05 unless the case says otherwise. The watch "
        "looks at the validation split after every push; what is true is measured on the test split. Its thresholds were set, and the cases made to hurt, on "
        "the subjects for setting; both are judged on the others: other seeds, noisy labels with another network, and another data set. Two cases, decay "
        "and apart, were changed once more after one training for judging (digits_noisy_cnn, seed 0) had been seen; no threshold was."
    )
    config.base.training.duration = "19.5 epochs"
    config.base.optimizer.learning_rate = 0.05
    config.base.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 8})
    config.base.evaluation.update({"every": "20 epochs", "train_examples": 250})
    config.base.checkpoint.every = "20 epochs"
    config.base.logging.every = "5 epochs"
    digits = {"name": "digits", "num_train": 1250, "validation_fraction": 0.3}
    noisy = {**digits, "label_noise": 0.2}
    fashion = {"name": "fashion_mnist", "num_train": 4000, "validation_fraction": 0.25}
    setting, judging = {"role": "setting", "seeds": (100, 101, 102)}, {"role": "judging", "seeds": (0, 1, 2)}
    mlp, cnn = {"model": {"name": "mlp"}}, {"model": {"name": "cnn_s"}}
    config.subjects = ConfigDict({
        "digits_noisy_mlp": {**setting, **mlp, "data": noisy, "training": {"batch_size": 25}},
        "digits_cnn": {**setting, **cnn, "data": digits, "training": {"batch_size": 25}},
        "digits_noisy_cnn": {**judging, **cnn, "data": noisy, "training": {"batch_size": 25}},
        "fashion_mnist_cnn": {**judging, **cnn, "data": fashion, "training": {"batch_size": 50}},
    })
    return config
