"""The loss on a plane through weight space: through three weight vectors, or along two random directions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwa_jax import masks
from hwa_jax.analysis.point_metrics import CHUNK_SIZE, evaluate_points
from hwa_jax.analysis.weight_vectors import check
from hwa_jax.data import Split
from hwa_jax.errors import UserError
from hwa_jax.training.setup import Setup

# The sine of an angle below which three points are taken to lie on a line: the mean of two float32
# vectors misses their line by rounding alone.
_SMALLEST_SINE = 1e-3


class Plane(NamedTuple):
    """A plane in weight space: the points W_0 + x U + y V.

    Attributes:
        origin: W_0, weights.
        x_axis, y_axis: U and V, trees like it; float32, and zero in leaves of whole numbers.
    """

    origin: Any
    x_axis: Any
    y_axis: Any


class Position(NamedTuple):
    """Where a weight vector lies, seen from a plane.

    Attributes:
        x, y: coordinates of the nearest point of the plane.
        distance: Euclidean distance from it, 0 in the plane.
    """

    x: float
    y: float
    distance: float


class Landscape(NamedTuple):
    """Loss and error on a grid of a plane.

    Attributes:
        x: float64 [X], coordinates along the x axis.
        y: float64 [Y].
        loss: float64 [Y, X], mean negative log-likelihood, nats.
        error: float64 [Y, X], share of wrong predictions, 0..1.
    """

    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    error: np.ndarray


def plane_through(trees: Mapping[str, Any], *, one_mask: bool = True) -> Plane:
    r"""The plane through three weight vectors, with an orthonormal basis.

        u = W_2 - W_1,    v = (W_3 - W_1) - <W_3 - W_1, u> u / ‖u‖²,    U = u / ‖u‖,  V = v / ‖v‖

    so distances on paper are distances between weight vectors. W_1 is the origin, W_2 lies on the x axis.

    Args:
        trees: name -> weights, three of them.
        one_mask: whether weights that are pruned in different places are refused, see `weight_vectors.check`.

    Raises:
        UserError: other than three, three on one line, or as `weight_vectors.check`.

    References:
        Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv 1802.10026;
        Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, arXiv 1803.05407.

    Example:
        >>> corners = {"a": jnp.zeros(3), "b": jnp.array([2.0, 0.0, 0.0]), "c": jnp.array([1.0, 3.0, 0.0])}
        >>> print(plane_through(corners).y_axis)
        [0. 1. 0.]
    """
    if len(trees) != 3:
        raise UserError(f"a plane goes through three weight vectors, here are {len(trees)}: {', '.join(trees)}")
    check(trees, one_mask=one_mask)
    first, second, third = trees.values()
    u, w = _difference(second, first), _difference(third, first)
    length = _norm(u)
    if length == 0:
        raise UserError(f"{_listed(trees)} lie on one line, the first two are equal: give three that span a plane")
    u = _scaled(u, 1 / length)
    along = _dot(w, u)
    v = jax.tree.map(lambda b, a: b - along * a, w, u)
    height = _norm(v)
    if height <= _SMALLEST_SINE * max(length, _norm(w)):
        raise UserError(f"{_listed(trees)} lie on one line: give three that span a plane (the average of two lies on theirs)")
    return Plane(first, *(jax.tree.map(_axis, axis, first) for axis in (u, _scaled(v, 1 / height))))


def random_plane(centre: Any, *, mask: Any = None, seed: int = 0) -> Plane:
    """The plane through a weight vector along two random directions with the norms of its filters.

    A direction is Gaussian; the part of every output unit (the last axis of a kernel, as Flax has it) is scaled to
    the norm of that unit's weights, so that networks whose layers are scaled differently can be compared. Leaves of
    fewer than two dimensions, biases and normalization, stay as they are. Directions of two seeds are different, those
    of one seed the same for all weights of the same shapes.

    Args:
        centre: weights.
        mask: of them; pruned weights stay zero.
        seed: of the directions.

    Raises:
        UserError: weights that are not finite, or a mask that does not fit; names the leaf.

    References:
        Li et al., Visualizing the Loss Landscape of Neural Nets, 2018, arXiv 1712.09913.

    Example:
        >>> plane = random_plane({"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])})
        >>> print(np.linalg.norm(plane.x_axis["kernel"], axis=0).round(4))
        [5. 2.]
    """
    check({"the centre": centre})
    if mask is not None:
        masks.check(mask, centre)
    kept = jax.tree.map(jnp.ones_like, centre)
    kept = kept if mask is None else masks.zero_outside(mask, kept)
    rng = np.random.default_rng(seed)

    def direction(weights, kept):
        if weights.ndim < 2 or not _is_floating(weights):
            return _axis(np.zeros(weights.shape), weights)
        noise = rng.normal(size=weights.shape) * np.asarray(kept)
        units = tuple(range(weights.ndim - 1))
        norm, wanted = (np.sqrt((np.float64(x) ** 2).sum(units, keepdims=True)) for x in (noise, weights))
        return _axis(noise * wanted / np.where(norm > 0, norm, 1), weights)

    return Plane(centre, *(jax.tree.map(direction, centre, kept) for _ in range(2)))


def project(plane: Plane, weights: Any) -> Position:
    """The nearest point of the plane, and how far it is.

    Example:
        >>> plane = Plane(jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 2.0, 0.0]))
        >>> project(plane, jnp.array([4.0, 6.0, -5.0]))
        Position(x=4.0, y=3.0, distance=5.0)
    """
    offset = _difference(weights, plane.origin)
    axes = (plane.x_axis, plane.y_axis)
    gram = np.array([[_dot(a, b) for b in axes] for a in axes])
    x, y = np.linalg.solve(gram, [_dot(offset, axis) for axis in axes])
    rest = jax.tree.map(lambda o, a, b: o - x * np.float64(a) - y * np.float64(b), offset, *axes)
    return Position(float(x), float(y), float(_norm(rest)))


def grid_around(x: Sequence[float], y: Sequence[float], number: int, *, margin: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spaced coordinates of columns and rows that reach beyond all given points.

    The shorter side is at least 0.6 of the longer one, so that a plane can be drawn with one scale on both axes.

    Args:
        x, y: coordinates of what has to be inside.
        number: how many columns, and how many rows; at least 2.
        margin: how far beyond, as a share of the longer span.

    Raises:
        ValueError: fewer than 2.
        UserError: all points are the same.

    Example:
        >>> [values.tolist() for values in grid_around([0.0, 10.0], [1.0, 1.0], 3, margin=0.5)]
        [[-5.0, 5.0, 15.0], [-5.0, 1.0, 7.0]]
    """
    if number < 2:
        raise ValueError(f"grid_around: number={number} must be at least 2")
    longest = max(max(x) - min(x), max(y) - min(y))
    if longest == 0:
        raise UserError(f"all points lie at ({x[0]:g}, {y[0]:g}): there is no range to draw, give points that differ")

    def axis(values):
        middle, half = (max(values) + min(values)) / 2, (max(values) - min(values)) / 2 + margin * longest
        half = max(half, 0.6 * (0.5 + margin) * longest)
        return np.linspace(middle - half, middle + half, number)

    return axis(x), axis(y)


def evaluate_plane(
    setup: Setup, plane: Plane, batch_stats: Any, x: Sequence[float], y: Sequence[float], split: Split, *,
    chunk_size: int = CHUNK_SIZE, progress: Callable[[Iterable], Iterable] = iter,
) -> Landscape:
    """Loss and error at every point of a grid, BatchNorm recalibrated at each.

    Args:
        setup: network, data and evaluator.
        plane: where.
        batch_stats: of the network; their values make no difference.
        x, y: coordinates of the grid's columns and rows.
        split: where to evaluate, on the devices.
        chunk_size, progress: as `evaluate_points`.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    coefficients = np.stack([np.ones(grid_x.size), grid_x.ravel(), grid_y.ravel()], axis=1)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *plane)
    found = evaluate_points(setup, stacked, batch_stats, coefficients, split, chunk_size=chunk_size, progress=progress)
    return Landscape(x, y, *(values.reshape(grid_x.shape) for values in found))


def _listed(names):
    first, second, third = names
    return f"{first}, {second} and {third}"


def _difference(a, b):
    """a - b in float64; zero in leaves of whole numbers."""

    def of(x, y):
        x, y = np.asarray(x), np.asarray(y)
        return np.float64(x) - np.float64(y) if _is_floating(x) else np.zeros(x.shape)

    return jax.tree.map(of, a, b)


def _dot(a, b):
    return sum(float(np.vdot(np.float64(x), np.float64(y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def _norm(tree):
    return np.sqrt(_dot(tree, tree))


def _scaled(tree, factor):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


def _axis(values, weights):
    """Float32 where weights are floating; whole numbers, which nothing is added to, keep their dtype."""
    return np.asarray(values, np.float32 if _is_floating(weights) else weights.dtype)


def _is_floating(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
