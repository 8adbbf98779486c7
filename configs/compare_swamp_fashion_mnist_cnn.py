"""SWAMP and a part of what it competes with on Fashion-MNIST, a convolutional network of 0.11 million weights.

CNN-M (3x3 convolutions with 32, 64 and 128 channels), 5,000 training images with random crop and flip, cycles of 10
epochs, half of the weights pruned in each, from the dense network to 0.8 %; otherwise as compare_swamp_fashion_mnist.
Result: results/swamp_fashion_mnist_cnn/report.md. Hardware: 2 CPU cores, about 25 minutes a seed. All values are our choice.
"""

from hwa_jax.algorithms.swamp_comparison import default_comparison


def get_config():
    config = default_comparison()
    config.title = "SWAMP on Fashion-MNIST, CNN-M"
    config.description = (
        "CNN-M (113 thousand weights) on Fashion-MNIST: 5,000 training images, 250 more for the gate, 1,000 for validation, the usual 10,000 for "
        "test; random crop (padding 2) and flip; cycles of 10 epochs, half of the remaining weights pruned in each; batch 50, N=4, weight decay "
        "0.0005; the ticket is trained 1 epoch. The learning rate was tuned on the validation split for IMP, and SWA's rate for SWAMP "
        "at that learning rate, both by the levels with at least 80 % pruned (tuning.json); all other methods take both. The subset and its "
        "split are the same for all seeds, so intervals are over initialization and batch order. Seconds were taken while the machine did "
        "other work, and serve as a rough guide only."
    )
    base = config.base
    base.data.update({"name": "fashion_mnist", "num_train": 6250, "validation_fraction": 0.16, "crop_padding": 2, "flip": True})
    base.model.name = "cnn_m"
    base.training.update({"batch_size": 50, "duration": "10 epochs"})
    base.optimizer.weight_decay = 0.0005
    base.schedule.update({"name": "cosine", "warmup": "1 epoch"})
    base.swamp.update({
        "num_particles": 4, "fraction": 0.5, "target_sparsity": 0.99, "ticket_duration": "1 epoch", "swa_start": "50%",
        "swa_period": "25 steps", "gate_fraction": 1 / 21,
    })
    base.evaluation.update({"batch_size": 500, "train_examples": 1000})
    base.checkpoint.every = "10 epochs"
    base.logging.every = "2 epochs"
    config.learning_rates, config.swa_learning_rates = (0.05, 0.1, 0.2), (0.02, 0.05)
    config.methods = ("imp", "imp_swa", "particles", "swamp", "swamp_mask", "imp_ensemble", "one_shot", "random")
    return config
