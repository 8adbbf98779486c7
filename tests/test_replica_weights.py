"""Averages in which replicas count differently."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hwa_jax.training.hlo import collectives
from replicas import LAYOUTS, K, over_shards

import hwa_jax
from hwa_jax import online_average, particles, with_online_average
from hwa_jax.particles import device_mesh, vectorize

FAST = ("vmap", "vmap in shard_map", "stacked")
layouts = pytest.mark.parametrize("layout", [x if x in FAST else pytest.param(x, marks=pytest.mark.slow) for x in LAYOUTS])


def _synchronize(layout, tree, weights):
    axis_name, lift = LAYOUTS[layout]
    function = lift(lambda tree, weights: hwa_jax.synchronize(tree, axis_name, weights=weights))
    return np.asarray((function if layout == "pmap" else jax.jit(function))(tree, weights))


def test_by_hand():
    # (1·4 + 2·1 + 1·2) / (1 + 2 + 1) = 2 ;  2 and 1 of 3 alone: (2·1 + 1·2) / 3 = 4/3
    values = jnp.array([[4.0], [1.0], [2.0]])
    assert hwa_jax.synchronize(values, None, weights=[1, 2, 1]).tolist() == [[2.0]] * 3
    np.testing.assert_allclose(hwa_jax.synchronize(values, None, weights=jnp.array([0.0, 200, 100])), 4 / 3, rtol=2e-7)
    assert particles.mean({"w": values}, weights=[1, 2, 1])["w"].tolist() == [2.0]
    # Updates lead there too: weights 4, 1, 2 after inner steps of -1.
    tx = with_online_average(optax.sgd(1.0), 1, "replica", optimizer_state="average")

    def step(params, weight):
        updates, state = tx.update(jnp.ones(1), tx.init(params), params, weights=weight)
        return params + updates

    assert jax.vmap(step, axis_name="replica")(values + 1, jnp.array([1, 2, 1])).tolist() == [[2.0]] * 3


def test_the_optimizers_state_is_weighted_likewise():
    tx = with_online_average(optax.sgd(1.0, momentum=0.5), 1, None, optimizer_state="average")
    params = jnp.zeros((2, 1))
    _, state = tx.update(jnp.array([[4.0], [8.0]]), tx.init(params), params, weights=[3, 1])
    assert state.inner_state[0].trace.tolist() == [[5.0], [5.0]]


@layouts
def test_against_numpy(layout):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        values, weights = rng.normal(size=(K, 50)), rng.uniform(size=K)
        wanted = np.average(values, axis=0, weights=weights)
        np.testing.assert_allclose(_synchronize(layout, values, weights), np.broadcast_to(wanted, (K, 50)), rtol=1e-13)


@layouts
@pytest.mark.parametrize("weight", [0.1, 1e-30, 12345])
def test_equal_weights_are_the_plain_mean(layout, weight):
    values = np.random.default_rng(1).normal(size=(K, 500)).astype(np.float32)
    weighted = _synchronize(layout, values, np.full(K, weight, np.float32))
    # The factors are exactly 1, but XLA may sum over two vmapped axes in another order.
    ulp = np.spacing(np.abs(values).max()) if layout == "two vmaps" else 0
    np.testing.assert_allclose(weighted, _plain(layout, values), rtol=0, atol=ulp)


def _plain(layout, values):
    axis_name, lift = LAYOUTS[layout]
    function = lift(lambda tree: hwa_jax.synchronize(tree, axis_name))
    return np.asarray((function if layout == "pmap" else jax.jit(function))(values))


@pytest.mark.parametrize("num_replicas", [3, 5, 7])
def test_equal_weights_of_odd_numbers_of_replicas(num_replicas):
    # A third is not a binary fraction: the products of a weighted mean must not be rounded otherwise.
    values = np.random.default_rng(2).normal(size=(num_replicas, 500)).astype(np.float32)
    plain = jax.jit(jax.vmap(lambda v: hwa_jax.synchronize(v, "replica"), axis_name="replica"))(values)
    weighted = jax.jit(jax.vmap(lambda v, w: hwa_jax.synchronize(v, "replica", weights=w), axis_name="replica"))
    np.testing.assert_array_equal(weighted(values, np.full(num_replicas, 0.1, np.float32)), plain)


@pytest.mark.parametrize("sync_dtype", [None, jnp.bfloat16])
def test_a_replica_that_counts_nothing_may_hold_nan(sync_dtype):
    params = jnp.array([[1.0], [1.0], [1.0]])
    tx = online_average(1, None, sync_dtype=sync_dtype)
    update = jax.jit(lambda u, w: tx.update(u, tx.init(params), params, weights=w)[0])
    assert update(jnp.array([[2.0], [np.nan], [4.0]]), jnp.array([1.0, 0.0, 1.0])).tolist() == [[3.0]] * 3


def test_what_jit_makes_of_weights_that_are_none():
    values = jnp.array([[1.0], [2.0], [6.0]])
    synchronize = jax.jit(lambda weights: hwa_jax.synchronize(values, None, weights=weights))
    assert synchronize(jnp.zeros(3)).tolist() == [[3.0]] * 3  # nobody has seen a sample: all count the same
    for bad in (-1.0, np.nan, np.inf):
        assert np.isnan(synchronize(jnp.array([1.0, bad, 1.0]))).all()


@pytest.mark.parametrize("weights", [[0, 0, 0], [1, -1, 1], [1, np.nan, 1], [1, np.inf, 1]])
def test_outside_jit_they_are_refused(weights):
    for call in (hwa_jax.synchronize, lambda tree, axis, weights: particles.mean(tree, weights)):
        with pytest.raises(ValueError, match="weights=.* must be finite, at least 0, and not all 0"):
            call(jnp.ones((3, 2)), None, weights=weights)


def test_wrong_numbers_of_weights():
    with pytest.raises(ValueError, match="weights: 2 numbers were given for 3 replicas"):
        hwa_jax.synchronize(jnp.ones((3, 2)), None, weights=[1, 2])
    for wrong in (1.0, "ab", np.ones((3, 1)), [True, False, True]):
        with pytest.raises(ValueError, match="(?s)weights=.* must be one number for each replica"):
            hwa_jax.synchronize(jnp.ones((3, 2)), None, weights=wrong)
    tx = with_online_average(optax.sgd(1.0), 2, "replica")
    with pytest.raises(ValueError, match="^with_online_average: weights=.* must be one number, this replica's"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2), weights=[1, 2])


def test_weights_are_exchanged_in_the_conditional_only():
    tx = online_average(5, ("device", "particle"))
    step = jax.jit(vectorize(lambda p, s, w: tx.update(p, s, p, weights=w), mesh=device_mesh()))
    params = jnp.ones((16, 3))
    text = step.lower(params, jax.vmap(tx.init)(params), jnp.ones(16)).compile().as_text()
    always, sometimes = collectives(text)
    # The largest weight, their sum, and the weights of the network.
    assert always == [] and len(sometimes) == 3


def test_weights_that_are_typed_as_equal_on_all_devices():
    step = over_shards(lambda v: hwa_jax.synchronize(v, "replica", weights=jnp.float32(2)), check_vma=True)
    np.testing.assert_allclose(jax.jit(step)(jnp.arange(8.0)), 3.5)


def test_in_a_chain_behind_an_optimizer_that_knows_no_weights():
    tx = optax.chain(optax.adam(1.0), online_average(1, None))
    params = jnp.zeros((2, 1))
    updates, _ = tx.update(jnp.array([[1.0], [-1.0]]), tx.init(params), params, weights=[3, 1])
    np.testing.assert_allclose(updates, [[-0.5], [-0.5]], rtol=1e-5)  # Adam's first steps are -1 and 1
