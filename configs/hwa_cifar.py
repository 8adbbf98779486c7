"""HWA at the paper's scale: CIFAR-10 or CIFAR-100 with ResNet-20, ResNet-56, WRN-28-10 or VGG-16.

    --config=configs/hwa_cifar.py:cifar100,wrn-28-10        (cifar10,resnet20 when nothing is named)

The paper's own numbers could not be read: every value is our choice, after the usual recipes for these networks
(batch 128, Nesterov momentum 0.9, weight decay 5e-4 or 1e-4, crop and flip, 200 epochs), at a constant rate.
Expected result: none was obtained yet. Hardware: one GPU or TPU; the time was not measured.
"""

from hwa_jax.training.config import default_config

_WEIGHT_DECAY = {"resnet20": 1e-4, "resnet56": 1e-4, "wrn-28-10": 5e-4, "vgg16": 5e-4}
_LEARNING_RATE = {"resnet20": 0.1, "resnet56": 0.1, "wrn-28-10": 0.1, "vgg16": 0.05}


def get_config(experiment="cifar10,resnet20"):
    dataset, _, model = experiment.partition(",")
    if model not in _LEARNING_RATE:
        raise ValueError(f"hwa_cifar.py:{experiment}: write DATASET,MODEL with one of {', '.join(_LEARNING_RATE)}")
    config = default_config()
    config.data.update({"name": dataset, "validation_fraction": 0.1, "crop_padding": 4, "flip": True})
    config.model.name = model
    config.optimizer.update({"learning_rate": _LEARNING_RATE[model], "weight_decay": _WEIGHT_DECAY[model]})
    config.schedule.warmup = "1 epoch"
    config.training.update({"batch_size": 128, "duration": "200 epochs"})
    config.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 20, "recalibration_examples": 10000})
    config.evaluation.update({"every": "5 epochs", "batch_size": 1000, "train_examples": 5000})
    config.checkpoint.every = "5 epochs"
    return config
