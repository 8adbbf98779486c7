"""A sweep of SWAMP on scikit-learn's digits: N, SWA's start, period and rate, the fraction per cycle, and T0, each alone.

LeNet-300-100, 900 training images, cycles of 6 epochs, each of which prunes 60 % of what remains, down to 1 % of the weights, 3 seeds, 33 trainings. Not tuned: a picture in minutes, not a
result. Expected: differences mostly within their intervals. Hardware: 2 CPU cores, about 15 minutes. All values are our choice.
"""

from hwa_jax.algorithms.swamp_sweep import default_sweep


def get_config():
    config = default_sweep()
    config.title = "Sweep of SWAMP on digits"
    config.description = "LeNet-300-100 on scikit-learn's digits: 900 training images, cycles of 6 epochs, 60 % of the remaining weights pruned in each. Not tuned."
    base = config.base
    base.data.update({"name": "digits", "num_train": 1050})
    base.model.name = "mlp"
    base.training.update({"batch_size": 50, "duration": "6 epochs"})
    base.schedule.update({"name": "cosine", "warmup": "1 epoch"})
    base.swamp.update({
        "num_particles": 4, "fraction": 0.6, "target_sparsity": 0.98, "ticket_duration": "2 epochs", "swa_start": "50%", "swa_period": "5 steps",
    })
    base.checkpoint.every = "6 epochs"
    base.logging.every = "6 epochs"
    config.axes = {
        "num_particles": (1, 2, 8), "swa_start": ("25%", "75%"), "swa_period": ("1 epoch",), "swa_learning_rate": (0.02, 0.1),
        "fraction": (0.35,), "ticket_duration": ("0 steps",),
    }
    return config
