"""Curvature against quadratics of known spectrum, and against the exact Hessian of a small network in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwa_jax.analysis.curvature import adaptive_sharpness, hessian_product, hessian_trace, top_eigenvalues
from hwa_jax.analysis.split_loss import SplitLoss
from hwa_jax.errors import UserError
from training_runs import compilation_cache_dir, compiled_once, small_setup  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")
SPECTRUM = np.array([9.0, 4.0, 1.0, 0.5, 0.0, -3.0])


def quadratic(seed=0, spectrum=SPECTRUM):
    """(v -> H v on trees, H, weights): H = Q diag(spectrum) Qᵀ, the weights in two leaves."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))
    hessian = (q * spectrum) @ q.T
    weights = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(len(spectrum) - 4)}

    def loss(w):
        flat = jnp.concatenate([w["a"].ravel(), w["b"]])
        return 0.5 * flat @ jnp.asarray(hessian, jnp.float32) @ flat

    return hessian_product(loss, weights), hessian, weights


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000))
def test_eigenvalues_of_a_known_spectrum(seed):
    product, _, weights = quadratic(seed)
    found = top_eigenvalues(product, weights, number=3, num_iterations=20)
    np.testing.assert_allclose(found.values, [9.0, 4.0, 1.0], atol=1e-4)
    assert (found.residuals < 1e-4).all() and found.num_iterations == 6


def test_a_residual_bounds_the_distance_to_an_eigenvalue():
    # 40 eigenvalues spread evenly, 4 iterations: far from converged, and the residual says so.
    spectrum = np.linspace(0.0, 1.0, 40)
    found = top_eigenvalues(lambda v: jnp.asarray(spectrum, jnp.float32) * v, jnp.zeros(40), number=2, num_iterations=4)
    assert found.num_iterations == 4 and (found.residuals > 0.01).all()
    for value, residual in zip(found.values, found.residuals):
        assert np.abs(spectrum - value).min() <= residual + 1e-6


def test_equal_eigenvalues_end_the_iteration_early():
    found = top_eigenvalues(lambda v: 2.0 * v, jnp.zeros(30), number=3, num_iterations=10)
    np.testing.assert_allclose(found.values, [2.0])
    assert found.num_iterations == 1


def test_trace_of_a_quadratic_within_its_standard_error():
    product, hessian, weights = quadratic()
    estimates = [hessian_trace(product, weights, num_samples=64, seed=seed) for seed in range(20)]
    # For signs z the variance of zᵀHz is 2 Σ_{i≠j} H_ij².
    deviation = np.sqrt(2 * ((hessian**2).sum() - (np.diag(hessian) ** 2).sum()))
    assert np.mean([e.value for e in estimates]) == pytest.approx(np.trace(hessian), abs=4 * deviation / np.sqrt(20 * 64))
    assert np.mean([e.standard_error for e in estimates]) == pytest.approx(deviation / 8, rel=0.15)


def test_a_mask_leaves_the_subspace_of_the_remaining_weights():
    product, hessian, weights = quadratic()
    mask = {"a": jnp.array([[True, False], [True, True]]), "b": optax.MaskedNode()}
    kept = np.array([True, False, True, True, True, True])
    inner = hessian[np.ix_(kept, kept)]
    found = top_eigenvalues(product, weights, mask=mask, number=5)
    np.testing.assert_allclose(found.values, np.sort(np.linalg.eigvalsh(inner))[::-1], atol=1e-4)
    estimate = hessian_trace(product, weights, mask=mask, num_samples=2000)
    assert abs(estimate.value - np.trace(inner)) < 4 * estimate.standard_error
    assert abs(np.trace(inner) - np.trace(hessian)) > 8 * estimate.standard_error  # the test can tell them apart


@pytest.fixture(scope="module")
def network():
    """A dense network with BatchNorm on digits: setup, weights, its loss, and the Hessian of the last layer in float64."""
    setup = small_setup({"model.norm": "batch"})
    params, batch_stats = setup.model.init(jax.random.key(0))
    batch_stats, _ = setup.recalibrate(params, batch_stats)
    return setup, params, batch_stats, SplitLoss(setup, setup.validation, batch_size=13)


def features_and_labels(setup, params, batch_stats):
    """What the last layer reads: the network's logits are linear in it, so unit kernels give it back."""
    size = params["classifier"]["kernel"].shape[0]
    reading = {**params, "classifier": {"kernel": jnp.eye(size), "bias": jnp.zeros(size)}}
    images = (np.float32(setup.validation.images) / 255 - setup.dataset.mean) / setup.dataset.std
    return np.float64(setup.model.predict(reading, batch_stats, jnp.asarray(images))), np.asarray(setup.validation.labels)


def test_split_loss_and_its_product_equal_numpy(network):
    setup, params, batch_stats, loss = network
    x, labels = features_and_labels(setup, params, batch_stats)
    kernel, bias = (np.float64(params["classifier"][name]) for name in ("kernel", "bias"))
    logits = x @ kernel + bias
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    np.testing.assert_allclose(loss(params, batch_stats), -np.log(p[np.arange(len(labels)), labels]).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss(params, batch_stats), setup.evaluator.one(params, batch_stats, setup.validation)["nll"], rtol=1e-5)
    # In the last layer: H V = mean of x ((diag p - p pᵀ) Vᵀ x)ᵀ, the cross entropy's Hessian in the logits being diag p - p pᵀ.
    v = np.random.default_rng(0).normal(size=kernel.shape)
    vector = jax.tree.map(jnp.zeros_like, params)
    vector["classifier"]["kernel"] = jnp.asarray(v, jnp.float32)
    moved = x @ v
    expected = x.T @ (p * moved - p * (p * moved).sum(1, keepdims=True)) / len(x)
    product = loss.hessian_product(params, batch_stats)(vector)["classifier"]["kernel"]
    np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-6)


def test_instruments_equal_the_exact_hessian_of_a_network(network):
    setup, params, batch_stats, loss = network
    # The mask leaves the last layer's kernel for two classes: small enough for the exact Hessian by columns.
    mask = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
    mask["classifier"]["kernel"] = mask["classifier"]["kernel"].at[:20, :2].set(True)
    x, _ = features_and_labels(setup, params, batch_stats)
    logits = x @ np.float64(params["classifier"]["kernel"]) + np.float64(params["classifier"]["bias"])
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True))[:, :2]
    in_logits = np.einsum("nc,cd->ncd", p, np.eye(2)) - np.einsum("nc,nd->ncd", p, p)
    exact = np.einsum("ni,ncd,nj->icjd", x[:, :20], in_logits, x[:, :20]).reshape(40, 40) / len(x)
    product = loss.hessian_product(params, batch_stats)
    found = top_eigenvalues(product, params, mask=mask, number=3, num_iterations=40)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(exact)[::-1][:3], rtol=1e-4)
    assert (found.residuals < 1e-4 * found.values[0]).all()
    estimate = hessian_trace(product, params, mask=mask, num_samples=100)
    assert abs(estimate.value - np.trace(exact)) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.2 * np.trace(exact)


def test_adaptive_sharpness_of_a_quadratic():
    # L = ½ Σ h_i w_i²: the mean of both signs is L(w) + ½ Σ h_i w_i² ε_i², of expectation ½ ρ² Σ h_i w_i².
    h, w = np.array([4.0, 1.0, 0.25]), np.array([0.5, -2.0, 8.0])
    estimate = adaptive_sharpness(lambda v: 0.5 * jnp.sum(h * v**2), jnp.asarray(w), radius=0.1, num_samples=2000)
    expected = 0.5 * 0.1**2 * (h * w**2).sum()
    assert abs(estimate.value - expected) < 4 * estimate.standard_error < 0.2 * expected


def rescaled(params, factor):
    """The same function of a ReLU network: the first layer's output times a factor, the second layer's kernel divided by it."""
    first, second = params["dense1"], params["dense2"]
    return {
        **params, "dense1": jax.tree.map(lambda x: factor * x, first), "dense2": {**second, "kernel": second["kernel"] / factor},
    }


def test_adaptive_sharpness_does_not_change_with_the_scale_of_layers_and_the_trace_does():
    setup = small_setup()
    params, _ = setup.model.init(jax.random.key(0))
    loss, scaled = SplitLoss(setup, setup.validation), rescaled(params, 8.0)
    assert loss(scaled, {}) == pytest.approx(loss(params, {}), rel=1e-6)
    before, after = (adaptive_sharpness(lambda w: loss(w, {}), weights, num_samples=4) for weights in (params, scaled))
    assert before.value > 0 and after.value == pytest.approx(before.value, rel=1e-3)
    before, after = (hessian_trace(loss.hessian_product(weights, {}), weights, num_samples=2) for weights in (params, scaled))
    assert abs(after.value) > 3 * abs(before.value)


def test_pruned_weights_do_not_move():
    seen = []

    def loss(w):
        seen.append(np.asarray(w))
        return 0.0

    adaptive_sharpness(loss, jnp.array([0.0, 1.0, 0.0, 2.0]), num_samples=2)
    moved = np.array(seen[1:])
    assert (moved[:, [0, 2]] == 0).all() and (moved[:, [1, 3]] != [1.0, 2.0]).all()
    # Both signs of one perturbation.
    np.testing.assert_allclose(moved[0] + moved[1], [0.0, 2.0, 0.0, 4.0], atol=1e-6)


@pytest.mark.parametrize("call, message", [
    (lambda product, weights: hessian_trace(product, weights, num_samples=1), "num_samples=1: a standard error needs at least 2"),
    (lambda product, weights: top_eigenvalues(product, weights, number=5, num_iterations=4), "number=5 must be from 1 to num_iterations=4"),
    (lambda product, weights: adaptive_sharpness(lambda w: 0.0, weights, radius=0.0), "radius=0.0 must be positive"),
])
def test_arguments_out_of_range(call, message):
    product, _, weights = quadratic()
    with pytest.raises(ValueError, match=message):
        call(product, weights)


def test_a_mask_that_does_not_fit_names_the_leaf():
    product, _, weights = quadratic()
    with pytest.raises(UserError, match="mask of a has shape"):
        hessian_trace(product, weights, mask={"a": jnp.ones(3, bool), "b": optax.MaskedNode()})
