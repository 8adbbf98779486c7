"""Row "plane": the loss on a plane through three weight vectors, as experiments/analyze.py draws it."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import timing

TITLE = "Loss landscape: a plane of 31 x 31 points"
NOTE = (
    "CNN-S without normalization on 2,000 images of Fashion-MNIST, loss and error at 961 points, through three networks as they are "
    "initialized: what the weights are makes no difference to the time. The first plane compiles."
)
RESOLUTION, NUM_IMAGES = 31, 2000


def cells(options: Any) -> list[dict[str, Any]]:
    """One."""
    return [{"row": "plane", "model": "cnn_s"}]


def measure(cell: dict[str, Any], repeats: int) -> Iterator[dict[str, Any]]:
    """Yields the seconds of the first plane, and the median of three more."""
    from hwa_jax import particles
    from hwa_jax.analysis.landscape import evaluate_plane, grid_around, plane_through, project
    from hwa_jax.errors import UserError
    from hwa_jax.training.config import default_config
    from hwa_jax.training.setup import prepare

    config = default_config()
    config.data.update({"name": "fashion_mnist", "num_train": 4 * NUM_IMAGES, "validation_fraction": 0.25})
    config.model.name = cell["model"]
    try:
        setup = prepare(config)
    except UserError as error:
        yield {"not_run": {"seconds": timing.reason(error)}}
        return
    weights = {f"seed {seed}": particles.unstack(setup.with_seed(seed).initial_state().params)[0] for seed in range(3)}
    plane = plane_through(weights)
    places = [project(plane, one) for one in weights.values()]
    x, y = grid_around([place.x for place in places], [place.y for place in places], RESOLUTION)
    seconds = []
    for _ in range(1 + min(repeats, 3)):
        start = time.perf_counter()
        evaluate_plane(setup, plane, {}, x, y, setup.validation)
        seconds.append(time.perf_counter() - start)
        yield {"figures": {"first plane, s": seconds[0], "next planes, s": statistics.median(seconds[1:] or seconds)}}
