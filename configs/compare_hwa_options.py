"""The options of the online average, each against plain HWA: what it does to test accuracy and to the bytes that are sent.

Synchronization in bf16, an outer Nesterov optimizer at DiLoCo's rate and at a lower one, optimizer states averaged or reset, and averages weighted by
the images that each replica has seen, all at H = 4 steps and at H = 1 epoch. CNN-S on 2,000 images of Fashion-MNIST, K=4, 10 epochs per replica, I=3, SGD
with Nesterov momentum at a constant rate, 5 seeds. Equal batches make weights by images a no-op, so there the replicas' batches have 50, 25,
10 and 5 images, and the reference has those batches too. Plain training and offline averaging of one network, of four times the epochs, say what the same
compute buys without averaging online. Rate and weight decay are those that compare_hwa_fashion_mnist chose for
plain HWA; no option has a rate of its own. Result: results/hwa_options/report.md. Hardware: 2 CPU cores, about 15 minutes. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.hwa_comparison import default_comparison

_BATCHES = (50, 25, 10, 5)
_OPTIONS = {
    "bf16": {"sync_dtype": "bfloat16"},
    "diloco": {"outer_optimizer": {"name": "sgd", "learning_rate": 0.7}},
    "diloco_slow": {"outer_optimizer": {"name": "sgd", "learning_rate": 0.2}},
    "state_average": {"optimizer_state": "average"},
    "state_reset": {"optimizer_state": "reset"},
    "unequal": {"replica_batch_sizes": _BATCHES},
    "unequal_weighted": {"replica_batch_sizes": _BATCHES, "replica_weights": _BATCHES},
}
_OFTEN = {"sync_period": "4 steps", "push_every": "1 epoch"}


def get_config():
    config = default_comparison()
    config.title = "Options of the online average"
    config.description = (
        "CNN-S on Fashion-MNIST: 2,000 training images, 500 held out for validation, the usual 10,000 for test; random crop (padding 2) and flip; "
        "10 epochs per replica, batch 50, K=4, I=3, H = 1 epoch (40 steps) and H = 4 steps; SGD with Nesterov momentum at the constant rate and weight decay that were "
        "tuned for plain HWA on 10,000 images, with every option: none was tuned for. Outer optimizers have the Nesterov momentum 0.9 and the rate 0.7 (DiLoCo) or 0.2. "
        "Where batches are unequal, the four replicas see 50, 25, 10 and 5 images a step; weights are either equal or as the images seen. "
        "Subset and split are the same for all seeds, so intervals are over initialization and batch order. "
        "Seconds were taken while the machine did other work, and serve as a rough guide only."
    )
    config.base.data.update({"name": "fashion_mnist", "num_train": 2500, "validation_fraction": 0.2, "crop_padding": 2, "flip": True})
    config.base.training.update({"batch_size": 50, "duration": "10 epochs"})
    config.base.hwa.update({"num_replicas": 4, "sync_period": "1 epoch", "window_size": 3})
    config.base.evaluation.update({"every": "2 epochs", "batch_size": 500, "train_examples": 250})
    config.base.checkpoint.every = "10 epochs"
    config.base.logging.every = "5 epochs"
    config.optimizers = ConfigDict({"sgd": {"learning_rates": (0.05,), "weight_decays": (0.0005,)}})
    config.schedules = ("constant",)
    config.trajectories = ("plain", "plain_xk", "offline_xk", "hwa")
    often = {"often": _OFTEN, **{f"{name}_often": {**fields, **_OFTEN} for name, fields in _OPTIONS.items()}}
    config.variants = ConfigDict({**_OPTIONS, **often})
    return config
