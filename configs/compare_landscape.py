"""Averages in the loss landscape on Fashion-MNIST, with CNN-S or, given as compare_landscape.py:resnet8, with ResNet-8 and BatchNorm: claims H7 and S5.

2,000 training images, batch 50, SGD with Nesterov momentum at a constant rate, 3 seeds. HWA: K=2, H=1 epoch; CNN-S 12 epochs, I=6; ResNet-8
5 epochs, I=3; each less one step, so that the replicas are apart. SWAMP: N=3, 64 % of the weights go in each cycle, 100, 36 and 13 %
left; cycles of 6 (CNN-S) or 2 epochs (ResNet-8), their last half averaged. Segments and hulls on 1,000 (CNN-S) or 250 test images,
curvature of the loss on 500 or 64 training images. BatchNorm statistics are computed anew at every point, on 250 images.
Result: results/landscape_fashion_mnist/report.md and results/landscape_fashion_mnist_resnet8/report.md. Hardware: 2 CPU cores, about a quarter of an
hour each on a machine that does nothing else. All values are our choice.
"""

from ml_collections import ConfigDict

from hwa_jax.algorithms.landscape_comparison import default_study
from hwa_jax.errors import UserError

_ARCHITECTURES = {
    "cnn_s": {"base": {"model": {"name": "cnn_s"}}, "pruning": {"model": {"name": "cnn_s"}}},
    "resnet8": {
        "base": {"model": {"name": "resnet8", "norm": "batch"}, "training": {"duration": "199 steps"}, "hwa": {"window_size": 3, "recalibration_examples": 250}},
        "pruning": {
            "model": {"name": "resnet8", "norm": "batch"}, "training": {"duration": "2 epochs"},
            "swamp": {"ticket_duration": "1 epoch", "swa_period": "10 steps", "recalibration_examples": 250},
        },
        "instruments": {"examples": 250, "curvature_examples": 64, "positions": 5, "hull_points": 12, "samples": 4, "iterations": 6},
    },
}
# Said in the report: what the instruments see.
_LOOKED_AT = {
    "cnn_s": "Accuracies, segments and hulls (50 points) are of 1,000 test images, curvature is that on 500 training images with 12 random vectors.",
    "resnet8": (
        "Accuracies, segments and hulls (12 points) are of 250 test images, curvature is that on 64 training images with 4 random vectors, and BatchNorm "
        "statistics are those of 250 images: a small look, so the intervals are wide."
    ),
}


def get_config(architecture="cnn_s"):
    if architecture not in _ARCHITECTURES:
        raise UserError(f"{architecture}: write one of {', '.join(_ARCHITECTURES)} behind the colon")
    config = default_study()
    config.title = "Averages in the loss landscape of Fashion-MNIST"
    config.description = (
        f"{architecture} on 2,000 training images of Fashion-MNIST; SGD with Nesterov momentum at a constant rate, batch 50, crop "
        "(padding 2) and flip. HWA has K=2 and H=1 epoch. Plain training and HWA start from the same weights and make as many steps per replica; both end one "
        "step before a synchronization, where the replicas are farthest apart. SWAMP has N=3 particles. Subset and split are the same for all seeds. "
        + _LOOKED_AT[architecture]
    )
    for base in (config.base, config.pruning):
        base.data.update({"name": "fashion_mnist", "num_train": 2500, "validation_fraction": 0.2, "crop_padding": 2, "flip": True})
        base.optimizer.update({"learning_rate": 0.05, "weight_decay": 0.0005})
        base.training.batch_size = 50
        base.evaluation.update({"batch_size": 500, "train_examples": 250})
        base.checkpoint.every = "10 epochs"
        base.logging.every = "10 epochs"
    config.base.evaluation.every = "40 epochs"
    config.base.training.duration = "479 steps"
    config.base.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 6})
    config.pruning.training.duration = "6 epochs"
    config.pruning.swamp.update({
        "num_particles": 3, "fraction": 0.64, "target_sparsity": 0.85, "ticket_duration": "2 epochs", "swa_start": "50%", "gate_fraction": 0.0,
    })
    config.architectures = ConfigDict({architecture: _ARCHITECTURES[architecture]})
    return config
