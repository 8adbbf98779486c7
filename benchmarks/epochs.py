"""Row "epochs": whole epochs of HWA and whole cycles of SWAMP, as the trainers run them, against PyTorch."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import timing

TITLE = "End to end: time of ours over PyTorch's"
NOTE = (
    "CNN-S on 10,000 images of Fashion-MNIST with random crop and flip, batch 100. An epoch of HWA (K = 2, H = 1 epoch, I = 8) has "
    "training, average, push to the window on disk, mean of the window, evaluation of inner, outer and HWA weights, checkpoint. A cycle of "
    "SWAMP (N = 4, 4 epochs, SWA over the last) has training under the mask, averages, gate, evaluation, storage and pruning; ours "
    "compiles in every cycle what it does not find in its cache. PyTorch: eager, channels_last, fused SGD, networks in turn, the same "
    "work in benchmarks/torch_hwa.py and torch_swamp.py."
)
NUM_PERIODS = 4


def cells(options: Any) -> list[dict[str, Any]]:
    """One per algorithm."""
    return [{"row": "epochs", "algorithm": name} for name in ("hwa", "swamp")]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields the ratio of an epoch, or cycle; of two runs of each side at most, without their first two periods: they compile."""
    from hwa_jax.algorithms import hwa, swamp
    from hwa_jax.errors import UserError
    from hwa_jax.training import setup, sparse_setup

    algorithm, prepare, config = {
        "hwa": (hwa, setup.prepare, hwa_config()), "swamp": (swamp, sparse_setup.prepare, swamp_config()),
    }[cell["algorithm"]]
    try:
        pieces = prepare(config)
        theirs = _torch_periods(cell["algorithm"])
    except (UserError, ImportError) as error:
        yield {"not_run": {"PyTorch": timing.reason(error)}}
        return
    ours, other = [], []
    for _ in range(min(repeats, 2)):
        ours += _our_periods(algorithm, pieces)
        other += theirs(config, pieces, NUM_PERIODS)[2:]
        ratio = timing.summary(ours, other)
        yield {"ratios": {"PyTorch": ratio}, "figures": {
            "ours, s": ratio["ours_seconds"], "PyTorch, s": ratio["other_seconds"],
        }}


def hwa_config() -> Any:
    """HWA for `NUM_PERIODS` epochs."""
    from hwa_jax.training.config import default_config

    config = default_config()
    _share(config)
    config.training.duration = f"{NUM_PERIODS} epochs"
    config.hwa.update({"num_replicas": 2, "window_size": 8})
    return config


def swamp_config() -> Any:
    """SWAMP for `NUM_PERIODS` cycles of four epochs."""
    from hwa_jax.training.config import default_swamp_config

    config = default_swamp_config()
    _share(config)
    config.training.duration = "4 epochs"
    config.schedule.update({"name": "cosine", "warmup": "1 epoch"})
    config.checkpoint.every = "4 epochs"
    # A cycle keeps 80 %: the last but one is above this density, the last below.
    target = 1 - 0.8 ** (NUM_PERIODS - 1.5)
    config.swamp.update({"num_particles": 4, "fraction": 0.2, "target_sparsity": target, "ticket_duration": "1 epoch"})
    return config


def _share(config):
    config.data.update({"name": "fashion_mnist", "num_train": 12500, "validation_fraction": 0.2})
    config.data.update({"crop_padding": 2, "flip": True})
    config.optimizer.learning_rate = 0.05
    config.logging.update({"every": "1 epoch", "tensorboard": False})


def _our_periods(algorithm, pieces):
    """Seconds of each epoch, or cycle, after the first two: from the last log row of one to the last of the next."""
    period = "cycle" if "swamp" in pieces.config else "step"
    with _stamps() as stamps, tempfile.TemporaryDirectory() as directory:
        algorithm.run(pieces, directory)
    # Rows of the ticket's training belong to no cycle.
    ends = list({row[period]: stamp for row, stamp in stamps if row["kind"] == "train" and period in row}.values())
    return [end - start for start, end in zip(ends[1:], ends[2:])]


@contextlib.contextmanager
def _stamps():
    """Pairs of a log row and when it was written."""
    from hwa_jax.training.metrics import MetricsWriter

    stamps, write = [], MetricsWriter.write

    def stamped(writer, *rows):
        write(writer, *rows)
        stamps.extend((row, time.perf_counter()) for row in rows)

    with mock.patch.object(MetricsWriter, "write", stamped):
        yield stamps


def _torch_periods(algorithm):
    if algorithm == "hwa":
        from torch_hwa import seconds_per_epoch

        return seconds_per_epoch
    from torch_swamp import seconds_per_cycle

    return seconds_per_cycle
