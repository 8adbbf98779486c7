"""The weights of a training by HWA at one moment, side by side: outer, HWA's, and those of other averages that it keeps."""

from collections.abc import Sequence

import numpy as np

from hwa_jax.algorithms import window_choice
from hwa_jax.algorithms.window_choice import WindowChoice
from hwa_jax.storage.window_store import WindowStore
from hwa_jax.training.setup import Setup
from hwa_jax.training.shared_stores import SharedWindow
from hwa_jax.training.step import TrainState
from hwa_jax.training.weights import Weights, recalibrated


def outer_weights(setup: Setup, state: TrainState) -> Weights:
    """W̄ = (1/K) Σ_k W^k, and the mean of the replicas' BatchNorm statistics."""
    return Weights(*setup.mean_over_replicas((state.params, state.batch_stats)))


def hwa_choice(setup: Setup, state: TrainState, window: WindowStore | SharedWindow) -> WindowChoice | None:
    """The HWA weights at this state, and how many members they average; None before the first push."""
    done = int(state.step)
    return window_choice.choose(setup, window, done) if any(step <= done for step in window.stored_steps) else None


def all_weights(setup: Setup, state: TrainState, choice: WindowChoice | None) -> dict[str, Weights]:
    """The weights of a training side by side: outer, hwa, and ema and slow (Lookahead) where they are kept.

    Args:
        setup: the pieces of the training.
        state: of the training.
        choice: `hwa_choice` at this state.
    """
    outer = outer_weights(setup, state)
    # The mean of several replicas' weights has statistics of its own, one replica's has its running ones.
    weights = {"outer": recalibrated(setup, *outer) if setup.num_replicas > 1 else outer}
    if choice is not None:
        weights["hwa"] = choice.weights
    if setup.ema is not None:
        weights["ema"] = recalibrated(setup, setup.mean_over_replicas(setup.ema.value(state.ema)), outer.batch_stats)
    if setup.config.optimizer.wrapper == "lookahead":
        slow = setup.mean_over_replicas(state.opt_state.inner_state.slow)
        weights["slow"] = recalibrated(setup, slow, outer.batch_stats)
    return weights


def average_metrics(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over replicas.

    Example:
        >>> average_metrics([{"accuracy": 0.5}, {"accuracy": 1.0}])
        {'accuracy': 0.75}
    """
    return {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}
