r"""Linear mode connectivity: loss and error along the segment between two weight vectors.

Two weight vectors are linearly connected if the error along the segment between them does not rise above that of
its ends. With E the error, or the loss, and α in [0, 1], the error barrier of Frankle et al. 2020 is

    sup_α E((1 - α) W_a + α W_b)  -  (E(W_a) + E(W_b)) / 2

It is never negative, and zero only where both ends are equally good and nothing between them is worse.

References:
    Frankle, Dziugaite, Roy, Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020,
    arXiv 1912.05671, section 2: they call networks stable whose error barrier is below 2 %.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple

import jax.numpy as jnp
import numpy as np

from hwa_jax import particles
from hwa_jax.analysis.point_metrics import CHUNK_SIZE, evaluate_points
from hwa_jax.analysis.weight_vectors import check, combine, stack
from hwa_jax.data import Split
from hwa_jax.errors import UserError
from hwa_jax.training.setup import Setup
from hwa_jax.training.weights import Weights

# Frankle et al. take 30 evenly spaced positions; of 31 one is the midpoint, the average of the two.
POSITIONS = tuple(np.linspace(0.0, 1.0, 31).tolist())


class Path(NamedTuple):
    """What lies on the segment between two weight vectors.

    Attributes:
        positions: float64 [P], from 0 (first end) to 1 (second).
        loss: float64 [P], mean negative log-likelihood, nats.
        error: float64 [P], share of wrong predictions, 0..1.
    """

    positions: np.ndarray
    loss: np.ndarray
    error: np.ndarray

    @property
    def loss_barrier(self) -> float:
        """Height of the barrier in nats."""
        return barrier(self.positions, self.loss)

    @property
    def error_barrier(self) -> float:
        """Height of the barrier, share of predictions."""
        return barrier(self.positions, self.error)


def segment(a: Any, b: Any, positions: Sequence[float]) -> Any:
    """The points (1 - t) a + t b of the segment between two weight trees.

    Args:
        a, b: weights of one network. Floating leaves are interpolated in float32 at least and keep their dtype;
            other leaves must agree.
        positions: P numbers t; outside [0, 1] the line beyond the ends.

    Returns:
        A stacked tree, leaves [P, ...]. At t = 0 and t = 1 exactly a and b; where both are zero, as under one
        mask, exactly zero.

    Raises:
        UserError: trees that do not match, or weights that are not finite; names the leaf.

    Example:
        >>> print(segment({"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([0.0, 8.0])}, [0.0, 0.25, 1.0])["w"])
        [[0. 4.]
         [0. 5.]
         [0. 8.]]
    """
    return combine(stack({"the first end": a, "the second end": b}, one_mask=False), jnp.asarray(_mixtures(positions)))


def barrier(positions: Sequence[float], values: Sequence[float]) -> float:
    """The height of the barrier on a segment: the highest value minus the mean of the two ends.

    Args:
        positions: [P], among them 0 and 1, none outside.
        values: [P], errors or losses there.

    Returns:
        The height in the unit of the values, at least 0; NaN where a value is NaN.

    Raises:
        ValueError: an end is missing, a position lies beyond them, or the lengths differ.

    References:
        Frankle et al. 2020, see the module's text.

    Example:
        >>> barrier([0.0, 0.5, 1.0], [1.0, 5.0, 2.0])
        3.5
    """
    positions, values = np.asarray(positions, np.float64), np.asarray(values, np.float64)
    if positions.ndim != 1 or positions.shape != values.shape:
        raise ValueError(
            f"barrier: positions of shape {positions.shape} and values of shape {values.shape}: give one value per position"
        )
    if not len(positions) or positions.min() != 0 or positions.max() != 1:
        raise ValueError(f"barrier: positions {positions.tolist()} must reach from exactly 0 to exactly 1")
    ends = (values[positions.argmin()] + values[positions.argmax()]) / 2
    return float(values.max() - ends)


def path_metrics(
    setup: Setup, a: Weights, b: Weights, split: Split, positions: Sequence[float] = POSITIONS, *,
    one_mask: bool = True, chunk_size: int = CHUNK_SIZE,
) -> Path:
    """Loss and error along the segment between two weight vectors, BatchNorm recalibrated at every point.

    The statistics of the ends are computed anew as well, so that all points are treated alike.

    Args:
        setup: network, data and evaluator; of HWA or of a pruning.
        a, b: the ends.
        split: where to evaluate, on the devices, as `setup.validation`.
        positions: [P] in [0, 1].
        one_mask: whether ends that are pruned in different places are refused, see `weight_vectors.check`.
        chunk_size: points that are evaluated together.

    Raises:
        UserError: as `weight_vectors.check`.
    """
    weights = {"the first end": a, "the second end": b}
    found = paths(setup, weights, split, positions, one_mask=one_mask, chunk_size=chunk_size)
    return found["the first end", "the second end"]


def paths(
    setup: Setup, weights: Mapping[str, Weights], split: Split, positions: Sequence[float] = POSITIONS, *,
    pairs: Iterable[tuple[str, str]] | None = None, one_mask: bool = True, chunk_size: int = CHUNK_SIZE,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[tuple[str, str], Path]:
    """`path_metrics` of many pairs.

    Args:
        setup, split, positions, one_mask, chunk_size: as there.
        weights: name -> weights.
        pairs: names of the ends; all pairs of `weights` where it is None. For successive cycles
            `itertools.pairwise(weights)`.
        progress: wraps the list of pairs; `tqdm` for a bar.

    Returns:
        Pair of names -> `Path`, in the order of the pairs.

    Raises:
        UserError: as `weight_vectors.check`, with the names; or there is no pair.
    """
    pairs = list(itertools.combinations(weights, 2) if pairs is None else pairs)
    check({name: one.params for name, one in weights.items()}, one_mask=one_mask)
    if not pairs:
        raise UserError(f"a segment has two ends: only {', '.join(weights)} is here, give at least two sets of weights")
    found, coefficients = {}, _mixtures(positions)
    # Pair by pair: two sets of weights on the device, however many there are.
    for a, b in progress(pairs):
        ends = particles.stack([weights[a].params, weights[b].params])
        metrics = evaluate_points(setup, ends, weights[a].batch_stats, coefficients, split, chunk_size=chunk_size)
        found[a, b] = Path(np.asarray(positions, np.float64), *metrics)
    return found


def _mixtures(positions):
    """[P, 2] shares of the two ends."""
    t = np.asarray(positions, np.float64)
    return np.stack([1 - t, t], axis=1)
