r"""Curvature of a loss at given weights: trace and largest eigenvalues of its Hessian, and a scale-free sharpness.

The Hessian H is never formed: everything is made of products H v, and under a mask of products P H P v, where P
sets pruned weights to zero. Trace and eigenvalues are then those of the loss as a function of the remaining weights.

A ReLU network computes the same after one layer's weights are multiplied by a constant and the next layer's divided
by it, but H does not stay the same. `adaptive_sharpness` does.
"""

from collections.abc import Iterable
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from hwa_jax import masks

_BREAKDOWN = 1e-6  # of Lanczos, relative to the largest product: float32 products carry no more


class Estimate(NamedTuple):
    """A mean over random vectors.

    Attributes:
        value: the mean.
        standard_error: sample standard deviation divided by the square root of the number of vectors.
        num_samples: how many vectors.
    """

    value: float
    standard_error: float
    num_samples: int


class Eigenvalues(NamedTuple):
    """The largest eigenvalues of a Hessian.

    Attributes:
        values: float64 [k], descending.
        residuals: float64 [k], ‖H x - λ x‖ for the unit vector x found with λ: an eigenvalue lies within it of λ.
        num_iterations: products that were needed, those of the residuals not counted.
    """

    values: np.ndarray
    residuals: np.ndarray
    num_iterations: int


def hessian_product(loss: Callable[[Any], jax.Array], params: Any) -> Callable[[Any], Any]:
    """v -> H v, H the Hessian of a scalar loss at these weights, by forward over reverse differentiation; jitted.

    Example:
        >>> product = hessian_product(lambda w: w[0] ** 2 * w[1], jnp.array([1.0, 3.0]))
        >>> print(product(jnp.array([1.0, 0.0])))
        [6. 2.]
    """
    return jax.jit(lambda vector: jax.jvp(jax.grad(loss), (params,), (vector,))[1])


def hessian_trace(
    product: Callable[[Any], Any], params: Any, *, mask: Any = None, num_samples: int = 32, seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Estimate:
    """The trace of a Hessian, E[vᵀ H v] over vectors v of random signs (Hutchinson).

    Args:
        product: v -> H v, on trees like `params`.
        params: the weights, of which only structure and shapes count; float leaves.
        mask: of the weights; None: all of them. The trace is that of the remaining ones.
        num_samples: number of vectors, at least 2. Exact with any number if H is diagonal.
        seed: of the vectors.
        progress: wraps the iterable of samples.

    Raises:
        ValueError: fewer than 2 vectors.
        UserError: the mask does not fit; names the leaf.

    References:
        Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines, 1989.

    Example:
        >>> hessian_trace(lambda v: {"w": 3 * v["w"]}, {"w": jnp.zeros(4)})
        Estimate(value=12.0, standard_error=0.0, num_samples=32)
    """
    space, rng = _Subspace(params, mask), np.random.default_rng(seed)
    samples = []
    for _ in progress(range(num_samples)):
        signs = rng.choice([-1.0, 1.0], space.size)
        samples.append(signs @ space.apply(product, signs))
    return _estimate(samples)


def top_eigenvalues(
    product: Callable[[Any], Any], params: Any, *, mask: Any = None, number: int = 3, num_iterations: int = 40,
    seed: int = 0, progress: Callable[[Iterable], Iterable] = iter,
) -> Eigenvalues:
    """The largest eigenvalues of a Hessian, by Lanczos with full reorthogonalization in float64.

    Memory: `num_iterations` vectors of all remaining weights in float64. An eigenvalue that occurs several
    times is found once.

    Args:
        product, params, mask, progress: as `hessian_trace`; `progress` wraps the iterations.
        number: k, how many; fewer come back where there are not so many different ones.
        num_iterations: products; more make smaller residuals.
        seed: of the start.

    Raises:
        ValueError: `number` outside 1..`num_iterations`.
        UserError: the mask does not fit; names the leaf.

    References:
        Lanczos, An Iteration Method for the Solution of the Eigenvalue Problem, 1950; Golub, Van Loan, Matrix
        Computations, chapter 10.

    Example:
        >>> spectrum = jnp.array([1.0, 5.0, -2.0])
        >>> print(top_eigenvalues(lambda v: spectrum * v, jnp.zeros(3), number=2).values.round(4))
        [5. 1.]
    """
    if not 1 <= number <= num_iterations:
        raise ValueError(f"top_eigenvalues: number={number} must be from 1 to num_iterations={num_iterations}")
    space = _Subspace(params, mask)
    basis, diagonal, off_diagonal = _lanczos(lambda v: space.apply(product, v), space.size, num_iterations, seed, progress)
    inner = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
    values, vectors = np.linalg.eigh(inner)
    chosen = np.argsort(values)[::-1][:number]
    residuals = []
    for index in chosen:
        x = vectors[:, index] @ basis
        residuals.append(np.linalg.norm(space.apply(product, x) - values[index] * x))
    return Eigenvalues(values[chosen], np.array(residuals), len(diagonal))


def adaptive_sharpness(
    loss: Callable[[Any], Any], params: Any, *, radius: float = 0.05, num_samples: int = 32, seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Estimate:
    r"""How much the loss rises when every weight changes in proportion to its size; invariant to layer rescaling.

        E_ε[ (L(w + ε∘|w|) + L(w - ε∘|w|)) / 2 ] - L(w),        ε ~ N(0, ρ²)

    For small ρ this is (ρ²/2) Σ_i w_i² H_ii. The size |w| as the unit of a perturbation is Kwon et al.'s, which
    makes it invariant; the mean over perturbations instead of the worst one is Andriushchenko et al.'s, and needs
    no inner optimization. Opposite signs in pairs cancel the gradient's part. Pruned weights do not move.

    Args:
        loss: weights -> scalar.
        params: w, float leaves.
        radius: ρ, without unit; 0.05 changes weights by 5 %. Our choice.
        num_samples: number of pairs, at least 2.
        seed: of the perturbations: the same ones for all weights of the same shapes.
        progress: wraps the iterable of samples.

    Raises:
        ValueError: fewer than 2 pairs, or a radius that is not positive.

    References:
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
        Networks, ICML 2021, arXiv 2102.11600. Andriushchenko et al., A Modern Look at the Relationship between
        Sharpness and Generalization, ICML 2023, arXiv 2302.07011.

    Example:
        >>> measure = lambda scale: adaptive_sharpness(lambda w: (w[0] * w[1] - 1) ** 2, jnp.array([2.0 * scale, 0.5 / scale]))
        >>> abs(measure(1.0).value - measure(64.0).value) < 1e-9
        True
    """
    if not radius > 0:
        raise ValueError(f"adaptive_sharpness: radius={radius} must be positive")
    rng, centre, samples = np.random.default_rng(seed), float(loss(params)), []
    for _ in progress(range(num_samples)):
        noise = jax.tree.map(lambda leaf: rng.normal(scale=radius, size=jnp.shape(leaf)).astype(np.float32), params)
        both = [float(loss(_perturbed(params, noise, sign))) for sign in (1.0, -1.0)]
        samples.append(np.mean(both) - centre)
    return _estimate(samples)


@jax.jit
def _perturbed(params, noise, sign):
    return jax.tree.map(lambda w, e: w + (sign * e * jnp.abs(w)).astype(w.dtype), params, noise)


class _Subspace:
    """The weights that a mask leaves, as float64 vectors on the host."""

    def __init__(self, params, mask):
        if mask is not None:
            masks.check(mask, params)
        kept = jax.tree.map(jnp.ones_like, params)
        kept = kept if mask is None else masks.zero_outside(mask, kept)
        self._kept = np.asarray(ravel_pytree(kept)[0], bool)
        flat, self._unravel = ravel_pytree(params)
        self._dtype = flat.dtype
        self.size = int(self._kept.sum())

    def apply(self, product, vector):
        """P H P v: the product of the tree that a vector is, as a vector."""
        whole = np.zeros(self._kept.size, self._dtype)
        whole[self._kept] = vector
        result = ravel_pytree(product(self._unravel(jnp.asarray(whole))))[0]
        return np.asarray(result, np.float64)[self._kept]


def _lanczos(apply, size, num_iterations, seed, progress):
    """Orthonormal basis [m, n] and the tridiagonal matrix in it; stops early in an invariant subspace."""
    start = np.random.default_rng(seed).normal(size=size)
    basis = np.empty((min(num_iterations, size), size))
    diagonal, off_diagonal = [], []
    basis[0] = start / np.linalg.norm(start)
    largest = 0.0
    for step in progress(range(len(basis))):
        image = apply(basis[step])
        largest = max(largest, np.linalg.norm(image))
        diagonal.append(basis[step] @ image)
        # Twice: once leaves what rounding put back along the basis.
        for _ in range(2):
            image = image - (basis[: step + 1] @ image) @ basis[: step + 1]
        length = np.linalg.norm(image)
        if step + 1 == len(basis) or length <= _BREAKDOWN * largest:
            break
        off_diagonal.append(length)
        basis[step + 1] = image / length
    return basis[: len(diagonal)], diagonal, off_diagonal


def _estimate(samples):
    if len(samples) < 2:
        raise ValueError(f"num_samples={len(samples)}: a standard error needs at least 2")
    return Estimate(float(np.mean(samples)), float(np.std(samples, ddof=1) / np.sqrt(len(samples))), len(samples))
