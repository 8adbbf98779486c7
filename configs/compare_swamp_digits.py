"""The quick version of the comparison with SWAMP: LeNet-300-100 on scikit-learn's digits, three seeds.

900 training images, cycles of 6 epochs, half of the weights pruned in each down to 0.8 %. Not tuned: a table
in minutes, not a result. Hardware: 2 CPU cores, about 5 minutes. All values are our choice.
"""

from hwa_jax.algorithms.swamp_comparison import default_comparison


def get_config():
    config = default_comparison()
    config.title = "SWAMP on digits"
    config.description = "LeNet-300-100 on scikit-learn's digits: cycles of 6 epochs, half of the remaining weights pruned in each. Not tuned."
    base = config.base
    base.data.num_train = 1050
    base.model.name = "mlp"
    base.training.update({"batch_size": 50, "duration": "6 epochs"})
    base.schedule.update({"name": "cosine", "warmup": "1 epoch"})
    base.swamp.update({
        "num_particles": 4, "fraction": 0.5, "target_sparsity": 0.99, "ticket_duration": "1 epoch", "swa_start": "50%", "swa_period": "5 steps",
    })
    base.checkpoint.every = "6 epochs"
    base.logging.every = "2 epochs"
    config.learning_rates, config.swa_learning_rates, config.plus_cycles = (0.05,), (0.05,), 3
    return config
