"""SWAMP on scikit-learn's digits: the smallest run that shows every part.

Network LeNet-300-100, 1000 training images of which 100 are held out for validation. All values are our choice.
Expected: test accuracy about 97 % dense, 96 % with 92 % of the weights pruned, 94 % with 98 %.
Hardware: 2 CPU cores, about 20 seconds of computation.
"""

from hwa_jax.training.config import default_swamp_config


def get_config():
    config = default_swamp_config()
    config.data.name = "digits"
    config.data.num_train = 1000
    config.model.name = "mlp"
    config.training.update({"batch_size": 50, "duration": "10 epochs"})
    config.optimizer.learning_rate = 0.05
    config.schedule.update({"name": "cosine", "warmup": "1 epoch"})
    config.swamp.update({"num_particles": 4, "fraction": 0.4, "target_sparsity": 0.98, "ticket_duration": "2 epochs"})
    return config
