"""The pilot: HWA on a folder of your own images, --config.data.data_dir=FOLDER, with a folder for each class.

CNN-S at 32x32 pixels, constant rate, K=2, H=1 epoch, I=10; 40 members of the window stay on disk, so that I can be chosen
again without training. Expected: nothing, the images are yours. Hardware: what you have; --dry_run estimates the time.
All values are our choice.
"""

from hwa_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.update({"name": "pictures", "source": "folder", "image_size": 32, "crop_padding": 4, "flip": True})
    config.optimizer.learning_rate = 0.05
    config.training.update({"batch_size": 50, "duration": "40 epochs"})
    config.hwa.update({"num_replicas": 2, "sync_period": "1 epoch", "window_size": 10, "keep_pushes": 40})
    return config
