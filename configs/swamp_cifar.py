"""SWAMP at the paper's scale: CIFAR-10 or CIFAR-100 with WRN-28-2, WRN-32-4, VGG-19 or ResNet-20.

    --config=configs/swamp_cifar.py:cifar100,wrn-32-4        (cifar10,wrn-28-2 when nothing is named)

From the paper: both data sets, WRN and VGG-19, N particles from one matching ticket, SWA at the constant rate 0.05. All else
could not be read and is our choice: depth and width of the WRNs (WRN-32-4 has five blocks in each group), ResNet-20, N = 4,
20 % pruned per cycle, a ticket of 10 epochs, cycles of 150 with SWA in the last quarter, a sparsity of 98.85 % after 20
prunings, cosine from 0.1 (VGG-19: 0.05), batch 128, Nesterov momentum 0.9, weight decay, crop and flip.
Expected result: none was obtained yet. Hardware: one GPU or TPU; the time was not measured, --dry_run estimates it.
"""

from hwa_jax.training.config import default_swamp_config

_WEIGHT_DECAY = {"wrn-28-2": 5e-4, "wrn-32-4": 5e-4, "vgg19": 5e-4, "resnet20": 1e-4}
_LEARNING_RATE = {"wrn-28-2": 0.1, "wrn-32-4": 0.1, "vgg19": 0.05, "resnet20": 0.1}


def get_config(experiment="cifar10,wrn-28-2"):
    dataset, _, model = experiment.partition(",")
    if model not in _LEARNING_RATE:
        raise ValueError(f"swamp_cifar.py:{experiment}: write DATASET,MODEL with one of {', '.join(_LEARNING_RATE)}")
    config = default_swamp_config()
    config.data.update({"name": dataset, "validation_fraction": 0.1, "crop_padding": 4, "flip": True})
    config.model.name = model
    config.optimizer.update({"learning_rate": _LEARNING_RATE[model], "weight_decay": _WEIGHT_DECAY[model]})
    config.schedule.update({"name": "cosine", "warmup": "1 epoch"})
    config.training.update({"batch_size": 128, "duration": "150 epochs"})
    config.swamp.update({
        "num_particles": 4, "fraction": 0.2, "target_sparsity": 0.988, "ticket_duration": "10 epochs", "swa_learning_rate": 0.05,
        "recalibration_examples": 10000,
    })
    config.evaluation.update({"batch_size": 1000, "train_examples": 5000})
    config.checkpoint.every = "5 epochs"
    return config
