"""HWA on ImageNet with ResNet-50, its images streamed from disk.

    python -m hwa_jax.data imagenet2012        (once; the archives have to be downloaded by hand, as TensorFlow Datasets says)
    python experiments/train_hwa.py --config=configs/hwa_imagenet.py --workdir=runs/imagenet

The paper's own numbers could not be read: every value is our choice, after published practice for this network (Goyal et al. 2017:
batch 256, rate 0.1 with five epochs of warm-up, divided by 10 after 30, 60 and 80 of 90 epochs, Nesterov momentum 0.9,
weight decay 1e-4; random resized crops of 224 pixels and flips). One image in a hundred of the training split is held out for
curves; the table at the end is on the 50,000 images of the published validation split, since those of the test split have no labels.
Expected result: none was obtained yet. Hardware: one or several GPUs or TPUs, and processors that decode as fast as they train; the time was not measured.
"""

from hwa_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.update({
        "name": "imagenet2012", "streamed": True, "image_size": 224, "random_resized_crop": True, "flip": True, "validation_fraction": 0.01,
    })
    config.model.update({"name": "resnet50", "dtype": "bfloat16"})
    config.optimizer.update({"learning_rate": 0.1, "weight_decay": 1e-4})
    config.schedule.update({"name": "step", "warmup": "5 epochs", "milestones": ("30 epochs", "60 epochs", "80 epochs")})
    config.training.update({"batch_size": 256, "duration": "90 epochs"})
    config.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 10, "recalibration_examples": 10000})
    config.evaluation.update({"every": "5 epochs", "batch_size": 500, "train_examples": 10000})
    config.checkpoint.every = "1 epoch"
    return config
