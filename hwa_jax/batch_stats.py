r"""BatchNorm statistics for averaged weights, recomputed by pooling moments.

Averaged weights have activations of their own, so the statistics gathered while training do not fit
them. Moments of n_a and n_b samples pool exactly (Chan et al.): with δ = μ_b - μ_a, n = n_a + n_b,

    μ = μ_a + δ n_b / n,        σ² = (n_a σ_a² + n_b σ_b²) / n + δ² n_a n_b / n²

An exponential average of batch statistics, with its momentum to choose and its start to forget, is
not needed, and the last, smaller batch gets its right weight.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hwa_jax.collectives import together
from hwa_jax.errors import Diverged

# BatchNorm adds it to a variance, so what is smaller makes no difference to a network.
_EPSILON = 1e-5


class RecalibrationReport(NamedTuple):
    """What a recalibration saw and did.

    Attributes:
        num_batches: batches read.
        num_samples: samples read.
        moved: distance from the initial statistics, or None where none were given. The distance is
            the largest over channels of `max(|Δμ| / sqrt(σ² + ε), |Δσ²| / (σ² + ε))`, without unit,
            with BatchNorm's usual ε = 1e-5, so that a dead channel does not count.
        unsettled: the same distance between the statistics of the first half of the batches and of
            all of them; None for a single batch.
        more_would_help: whether `unsettled` exceeds the tolerance, that is, whether more batches
            would still move the statistics; None for a single batch.
    """

    num_batches: int
    num_samples: int
    moved: float | None
    unsettled: float | None
    more_would_help: bool | None


def recalibrate_batch_stats(
    batch_moments: Callable[[Any], tuple[Any, int]],
    batches: Iterable[Any],
    *,
    initial: Any = None,
    tolerance: float = 0.1,
) -> tuple[Any, RecalibrationReport]:
    """Pools the moments of many batches into the statistics of all their samples.

    Args:
        batch_moments: batch -> (a tree whose leaves are pairs (mean [C], variance [C]), the number of
            samples). Variances are biased ones (divided by n), as BatchNorm's are.
        batches: batches of any structure; `batch_moments` alone looks inside. Sizes may differ.
        initial: the statistics before, a tree of the same structure, to report how far they move.
        tolerance: what counts as settled, in the unit of the report's distances: 0.1 is a tenth of a
            standard deviation.

    Returns:
        (statistics, report): the tree of pairs (mean, variance) as float32 NumPy arrays, pooled in
        float64, and a `RecalibrationReport`.

    Raises:
        ValueError: no batches, a batch with no samples, moments that are no pairs.
        Diverged: moments that are not finite.

    References:
        Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.

    Example:
        >>> import numpy as np
        >>> moments = lambda x: ({"bn": (x.mean(0), x.var(0))}, len(x))
        >>> stats, report = recalibrate_batch_stats(moments, [np.array([[0.0], [2.0]]), np.array([[4.0]])])
        >>> print(stats["bn"][0], stats["bn"][1].round(4), report.num_samples)
        [2.] [2.6667] 3
    """
    # Dispatch every batch before reading any result, so that the device never waits for the host.
    moments = [batch_moments(batch) for batch in batches]
    if not moments:
        raise ValueError("recalibrate_batch_stats: no batches; give at least one batch of training data")
    pooled, num_samples, half = None, 0, None
    for index, (batch, n) in enumerate(moments):
        n = int(n)
        if n < 1:
            raise ValueError(f"recalibrate_batch_stats: batch {index} has {n} samples")
        batch = _as_float64(batch, index)
        pooled = batch if pooled is None else _map_pairs(
            lambda a, b, n_a=num_samples, n_b=n: _pool(a, b, n_a, n_b), pooled, batch
        )
        num_samples += n
        if index + 1 == len(moments) // 2:
            half = pooled
    unsettled = None if half is None else _distance(half, pooled)
    report = RecalibrationReport(
        num_batches=len(moments),
        num_samples=num_samples,
        moved=None if initial is None else _distance(_as_float64(initial, "initial"), pooled),
        unsettled=unsettled,
        more_would_help=None if unsettled is None else unsettled > tolerance,
    )
    return _map_pairs(lambda pair: tuple(np.float32(x) for x in pair), pooled), report


def pool_across(moments: Any, num_samples: Any, axis_name: Any) -> tuple[Any, Any]:
    """Pools moments over a named axis, inside vmap or shard_map: every device's samples count once.

    Args:
        moments: tree of pairs (mean [C], variance [C]), this device's.
        num_samples: scalar, this device's number of samples.
        axis_name: a bound axis, or a tuple of them.

    Returns:
        (moments, num_samples) of all devices together, equal on each of them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> pool = lambda mean: pool_across((mean, jnp.zeros(())), 1, "device")[0]
        >>> mean, variance = jax.vmap(pool, axis_name="device")(jnp.array([0.0, 2.0]))
        >>> print(mean, variance)
        [1. 1.] [1. 1.]
    """
    total = lax.psum(num_samples, axis_name)

    def average(moments):
        # A device without samples has moments 0/0, which a weight of zero would not stop.
        shares = [jnp.where(num_samples > 0, moment * (num_samples / total), 0) for moment in moments]
        return together(lax.psum, shares, axis_name)

    pairs, treedef = jax.tree.flatten(moments, is_leaf=_is_pair)
    pooled = average([mean for mean, _ in pairs])
    # Deviations from the pooled means first: E[x²] - E[x]² would cancel.
    variances = average([variance + (mean - center) ** 2 for (mean, variance), center in zip(pairs, pooled)])
    return jax.tree.unflatten(treedef, zip(pooled, variances)), total


def _is_pair(node):
    return isinstance(node, tuple) and len(node) == 2 and not any(isinstance(x, (tuple, list, dict)) for x in node)


def _map_pairs(function, *trees):
    return jax.tree.map(function, *trees, is_leaf=_is_pair)


def _pool(a, b, n_a, n_b):
    (mean_a, var_a), (mean_b, var_b) = a, b
    n, delta = n_a + n_b, mean_b - mean_a
    return mean_a + delta * (n_b / n), (n_a * var_a + n_b * var_b) / n + delta**2 * (n_a * n_b / n**2)


def _as_float64(tree, index):
    def convert(pair):
        if not _is_pair(pair):
            raise ValueError(f"recalibrate_batch_stats: batch {index}: every leaf must be a tuple (mean, variance)")
        pair = tuple(np.asarray(x, np.float64) for x in pair)
        for x in pair:
            if not np.isfinite(x).all():
                found = x[~np.isfinite(x)][0]
                raise Diverged(f"recalibrate_batch_stats: the moments of batch {index} are not finite ({found}): the weights have diverged, lower the learning rate")
        return pair

    return _map_pairs(convert, tree)


def _distance(before, after):
    def of(a, b):
        scale = b[1] + _EPSILON
        of_mean, of_variance = np.abs(b[0] - a[0]) / np.sqrt(scale), np.abs(b[1] - a[1]) / scale
        return max(np.max(of_mean, initial=0.0), np.max(of_variance, initial=0.0))

    return float(max(jax.tree.leaves(_map_pairs(of, before, after)), default=0.0))
