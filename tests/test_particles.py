"""Stacked trees and the one call that runs a particle's step on all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from hwa_jax import online_average, particles

DEVICES = ("device", "particle")


def _tree(value, dtype=np.float32):
    return {"w": np.full((2, 3), value, dtype), "nested": [np.full((), value, dtype), None]}


def test_replicate():
    tree = {**_tree(1.5), "n": np.int32(3), "half": jnp.bfloat16(2), "key": jax.random.key(4)}
    stacked = particles.replicate(tree, 4)
    assert particles.count(stacked) == 4
    assert stacked["n"].dtype == jnp.int32 and stacked["half"].dtype == jnp.bfloat16
    for one in particles.unstack(stacked):
        assert jax.tree.structure(one) == jax.tree.structure(tree)
        assert (one["key"] == jax.random.key(4)).all()
        np.testing.assert_array_equal(one["w"], tree["w"])
    with pytest.raises(ValueError, match="replicate: n=0 must be at least 1"):
        particles.replicate(tree, 0)


def test_stack_and_unstack_are_inverse():
    trees = [{**_tree(i), "key": jax.random.key(i)} for i in range(3)]
    stacked = particles.stack(iter(trees))
    assert stacked["w"].shape == (3, 2, 3) and stacked["key"].shape == (3,)
    for one, tree in zip(particles.unstack(stacked), trees, strict=True):
        assert jax.tree.structure(one) == jax.tree.structure(tree)
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, tree)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": np.zeros((2, 4), np.float32), "nested": [np.float32(0), None]},
         r"stack: leaf w of tree 1 is float32\[2, 4\], of tree 0 float32\[2, 3\]"),
        ({"w": np.zeros((2, 3), np.float32), "nested": [np.float16(0), None]},
         r"stack: leaf nested/0 of tree 1 is float16\[\], of tree 0 float32\[\]"),
        ({"w": np.zeros((2, 3), np.float32)}, "stack: tree 1 has another structure than tree 0"),
    ],
)
def test_stack_names_the_leaf_that_differs(other, message):
    with pytest.raises(ValueError, match=message):
        particles.stack([_tree(0), other])


def test_stack_of_nothing():
    with pytest.raises(ValueError, match="stack: no trees were given"):
        particles.stack([])


@pytest.mark.parametrize("function", [particles.count, particles.unstack, particles.mean, particles.spread])
def test_a_tree_that_is_not_stacked(function):
    with pytest.raises(ValueError, match=r"leaf b has shape \(2,\): every leaf of a stacked tree .* a has shape \(3, 1\)"):
        function({"a": jnp.zeros((3, 1)), "b": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"leaf \(root\) has shape \(\)"):
        function(jnp.zeros(()))
    with pytest.raises(ValueError, match="needs at least one leaf"):
        function({})


@given(num=st.sampled_from([1, 2, 7]), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_mean_and_spread_of_numpy(num, seed):
    rng = np.random.default_rng(seed)
    stacked = {"w": rng.normal(size=(num, 5)).astype(np.float32), "b": rng.normal(size=num).astype(np.float32)}
    wide = np.concatenate([stacked["w"], stacked["b"][:, None]], axis=1).astype(np.float64)
    mean = particles.mean(stacked)
    np.testing.assert_allclose(np.append(mean["w"], mean["b"]), wide.mean(0), rtol=0, atol=1e-6)
    spread = np.sqrt(((wide - wide.mean(0)) ** 2).sum(1).mean())
    assert float(particles.spread(stacked)) == pytest.approx(spread, rel=1e-5, abs=1e-6)


def test_spread_does_not_cancel_far_from_zero():
    # Particles at 1000 ± 0.01 in 100 coordinates: spread 0.01 · √100 = 0.1; E[w²] - E[w]² would lose it in float32.
    stacked = {"w": jnp.float32(1000) + jnp.float32(0.01) * jnp.array([[1.0], [-1.0]]) * jnp.ones(100)}
    assert float(particles.spread(stacked)) == pytest.approx(0.1, rel=1e-2)


def test_low_precision_means_and_other_leaves():
    stacked = {"w": jnp.ones((256, 1), jnp.bfloat16).at[0].set(257)}
    assert particles.mean(stacked)["w"].dtype == jnp.bfloat16 and float(particles.mean(stacked)["w"][0]) == 2.0
    mixed = {"w": jnp.array([0.0, 2.0]), "n": jnp.array([1, 5]), "key": jax.random.split(jax.random.key(0), 2)}
    assert float(particles.spread(mixed)) == 1.0
    with pytest.raises(TypeError, match="particles.mean: leaf n has dtype int32; only floating leaves have a mean"):
        particles.mean({"w": mixed["w"], "n": mixed["n"]})
    with pytest.raises(TypeError, match="leaf key has dtype key"):
        particles.mean({"key": mixed["key"]})


@pytest.mark.parametrize(("num_particles", "num_devices"), [(1, 1), (3, 1), (8, 8), (16, 8), (6, 2)])
def test_vectorize_is_a_loop_over_particles(num_particles, num_devices):
    def step(params, batch, rate):
        index = jax.lax.axis_index(DEVICES)
        mean = jax.lax.pmean(params["w"], DEVICES)
        return {"w": params["w"] - rate * batch.sum() * index}, mean, index

    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(num_particles, 2)).astype(np.float32)}
    batch = rng.normal(size=(num_particles, 5)).astype(np.float32)
    mesh = particles.device_mesh(jax.devices()[:num_devices])
    run = jax.jit(particles.vectorize(step, in_axes=(0, 0, None), out_axes=(0, None, 0), mesh=mesh))
    result, mean, index = run(params, batch, 0.1)
    assert index.tolist() == list(range(num_particles))
    wanted = params["w"] - 0.1 * batch.sum(1, keepdims=True) * np.arange(num_particles)[:, None]
    np.testing.assert_allclose(result["w"], wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mean, params["w"].mean(0), rtol=0, atol=1e-6)
    assert len(result["w"].sharding.device_set) == num_devices


def test_vectorize_takes_prefix_trees_and_other_axis_names():
    mesh = particles.device_mesh(jax.devices()[:2], axis_name="row")

    def step(state, key):
        return {"sum": state["mine"] + state["ours"]}, jax.random.uniform(key), jax.lax.axis_size(("row", "member"))

    run = particles.vectorize(
        step, in_axes=({"mine": 0, "ours": None}, 0), out_axes=({"sum": 0}, 0, None), mesh=mesh, axis_names=("row", "member")
    )
    keys = jax.random.split(jax.random.key(0), 4)
    out, draws, size = jax.jit(run)({"mine": jnp.arange(4.0), "ours": jnp.float32(10)}, keys)
    assert out["sum"].tolist() == [10, 11, 12, 13] and size == 4
    assert draws.tolist() == [float(jax.random.uniform(key)) for key in keys]


def test_vectorize_on_all_devices_by_default():
    result = jax.jit(particles.vectorize(lambda w: 2 * w))(jnp.arange(8.0))
    assert result.tolist() == [0, 2, 4, 6, 8, 10, 12, 14] and len(result.sharding.device_set) == 8


@pytest.mark.parametrize(("num_particles", "choices"), [(6, "8 particles"), (12, "8 or 16 particles")])
def test_particles_that_cannot_be_cut_evenly(num_particles, choices):
    step = particles.vectorize(lambda w: w)
    message = f"^{num_particles} particles cannot be cut evenly over the 8 devices of mesh axis 'device': use {choices}, or a mesh"
    with pytest.raises(ValueError, match=message):
        jax.jit(step)(jnp.zeros(num_particles))


def test_vectorize_refuses():
    with pytest.raises(ValueError, match=r"vectorize: axis 1 must be 0 \(stacked\) or None \(shared\)"):
        particles.vectorize(lambda a, b: a, in_axes=(0, 1))
    with pytest.raises(ValueError, match="vectorize: axis -1 must be"):
        particles.vectorize(lambda a: a, out_axes=-1)
    with pytest.raises(ValueError, match=r"vectorize: the mesh has axes \('x',\), none of them 'device'"):
        particles.vectorize(lambda a: a, mesh=jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,)))
    with pytest.raises(ValueError, match="every leaf of a stacked tree has the number of particles in front"):
        particles.vectorize(lambda a, b: a)(jnp.zeros(8), jnp.zeros(16))


def test_layouts_of_the_same_particles_agree():
    # Four particles on one, two and four devices: the same training up to the last bits.
    tx = optax.chain(optax.adam(0.1), online_average(2, DEVICES))

    def step(params, state):
        updates, state = tx.update(jnp.sin(params + jax.lax.axis_index(DEVICES)), state, params)
        return optax.apply_updates(params, updates), state

    start = jnp.linspace(-1, 1, 12).reshape(4, 3)
    results = []
    for num_devices in (1, 2, 4):
        run = jax.jit(particles.vectorize(step, mesh=particles.device_mesh(jax.devices()[:num_devices])))
        params, state = start, jax.vmap(tx.init)(start)
        for _ in range(5):
            params, state = run(params, state)
        results.append(np.asarray(params))
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(results[2], results[0], rtol=0, atol=1e-6)
