"""What every transform and average has to keep: traces, dtypes, abstract shapes, donation, sharding, NaN in its place."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import hwa_jax
from hwa_jax.particles import device_mesh

NUM_REPLICAS = 8


def _transform(tx_of):
    """(init, step) of a transform in the given layout: stacked trees, or one replica's under "replica"."""

    def make(axis_name):
        tx = tx_of(axis_name)

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return tx.init, step

    return make


def _average(average_of):
    def make(axis_name):
        average = average_of()

        def step(params, state, grads):
            params = optax.apply_updates(params, jax.tree.map(lambda g: -g, grads))
            return params, average.update(state, params)

        return average.init, step

    return make


def _wrapped(policy):
    return _transform(lambda axis: hwa_jax.with_online_average(optax.adam(0.1), 3, axis, optimizer_state=policy))


SUBJECTS = {
    "online_average": _transform(lambda axis: optax.chain(optax.sgd(0.1), hwa_jax.online_average(3, axis))),
    "with local": _wrapped("local"),
    "with average": _wrapped("average"),
    "with reset": _wrapped("reset"),
    "with outer": _transform(lambda axis: hwa_jax.with_online_average(
        optax.adam(0.1), 3, axis, sync_dtype=jnp.bfloat16, outer_optimizer=optax.sgd(0.7, momentum=0.9, nesterov=True)
    )),
    "uniform": _average(hwa_jax.uniform_average),
    "exponential": _average(lambda: hwa_jax.exponential_average(0.9)),
    "window": _average(lambda: hwa_jax.sliding_window(4)),
}
ONLINE = [name for name in SUBJECTS if "with" in name or "online" in name]
every_subject = pytest.mark.parametrize("name", SUBJECTS)


def _params():
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=(NUM_REPLICAS, *shape)), jnp.float32)
    return {"w": make(4, 2), "half": make(3).astype(jnp.bfloat16), "layer": [make(), None]}


def _describe(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), jax.eval_shape(lambda: tree))


@functools.cache
def _compiled(name, axis_name="replica"):
    """(init, step, traces) over the stacked replicas, compiled once; `traces` grows with every trace of the step."""
    init, step = SUBJECTS[name](axis_name)
    traces = []

    def counted(*args):
        traces.append(1)
        return step(*args)

    if axis_name is None:
        return jax.jit(init), jax.jit(counted), traces
    return jax.jit(jax.vmap(init)), jax.jit(jax.vmap(counted, axis_name=axis_name)), traces


@every_subject
def test_one_trace_and_one_program_over_many_steps(name):
    init, step, traces = _compiled(name)
    params = grads = _params()
    state = init(params)
    params, state = step(params, state, grads)
    programs = step._cache_size()
    for _ in range(9):
        params, state = step(params, state, grads)
    # No other test of this file calls the step with other shapes or dtypes.
    assert len(traces) == 1 and step._cache_size() == programs
    assert np.isfinite(params["w"]).all()


@every_subject
def test_structures_shapes_dtypes_and_abstract_init(name):
    init, step, _ = _compiled(name)
    params = _params()
    state = init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert _describe(jax.eval_shape(init, params)) == _describe(state)
    after, new_state = jax.eval_shape(step, params, state, params)
    assert _describe(after) == _describe(params) and _describe(new_state) == _describe(state)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


@every_subject
def test_donated_buffers_are_used_and_give_the_same(name):
    init, kept, _ = _compiled(name)
    donated = jax.jit(kept, donate_argnums=(0, 1))
    # Copied, so that no two leaves of a fresh state share a buffer.
    fresh = lambda: jax.tree.map(jnp.copy, (_params(), init(_params())))
    (params, state), grads = fresh(), _params()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # JAX warns of donated buffers that it cannot use
        for _ in range(4):
            old = jax.tree.leaves((params, state))
            params, state = donated(params, state, grads)
            assert all(leaf.is_deleted() for leaf in old)
    wanted_params, wanted_state = fresh()
    for _ in range(4):
        wanted_params, wanted_state = kept(wanted_params, wanted_state, grads)
    for a, b in zip(jax.tree.leaves((params, state)), jax.tree.leaves((wanted_params, wanted_state)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@every_subject
def test_shards_stay_where_they_are(name):
    init, jitted, _ = _compiled(name, None)
    sharding = NamedSharding(device_mesh(), PartitionSpec("device"))
    params = jax.device_put(_params(), sharding)
    state, grads = init(params), params
    for _ in range(2):
        params, state = jitted(params, state, grads)
    settled = jitted._cache_size()
    before = jax.tree.map(lambda x: x.sharding, state)
    for _ in range(4):
        params, state = jitted(params, state, grads)
    assert jitted._cache_size() == settled
    assert all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf in jax.tree.leaves(params))
    assert jax.tree.map(lambda x: x.sharding, state) == before
    # Whatever is as large as the weights is cut as they are, along one axis into eight.
    for leaf in jax.tree.leaves(state):
        if leaf.ndim >= 3:
            assert leaf.addressable_shards[0].data.size * NUM_REPLICAS == leaf.size


@every_subject
def test_a_state_survives_flattening_and_numpy(name):
    init, step, _ = _compiled(name)
    params = _params()
    params, state = step(params, init(params), params)
    leaves, treedef = jax.tree.flatten((params, state))
    restored = jax.tree.unflatten(treedef, [np.asarray(leaf) for leaf in leaves])
    grads = _params()
    for a, b in zip(jax.tree.leaves(step(params, state, grads)), jax.tree.leaves(step(*restored, grads)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@every_subject
@pytest.mark.parametrize("axis_name", ["replica", None])
@pytest.mark.parametrize("bad", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_a_bad_replica_harms_no_other_before_an_average(name, axis_name, bad):
    init, step, _ = _compiled(name, axis_name)
    params = grads = _params()
    healthy, healthy_state = params, init(params)
    params = {**params, "w": params["w"].at[3, 0, 0].set(bad)}
    state = init(params)
    for _ in range(2):
        healthy, healthy_state = step(healthy, healthy_state, grads)
        params, state = step(params, state, grads)
    others = np.arange(NUM_REPLICAS) != 3
    np.testing.assert_array_equal(np.asarray(params["w"])[others], np.asarray(healthy["w"])[others])
    assert not np.isfinite(params["w"][3, 0, 0])
    # In the bad replica itself only the one weight is bad.
    assert np.isfinite(params["w"]).sum() == params["w"].size - 1
    for a, b in zip(jax.tree.leaves(params["layer"]), jax.tree.leaves(healthy["layer"]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ONLINE)
def test_an_average_spreads_a_nan_over_replicas_but_not_over_weights(name):
    init, step, _ = _compiled(name)
    params = grads = _params()
    params = {**params, "w": params["w"].at[3, 0, 0].set(np.nan)}
    state = init(params)
    for _ in range(3):
        params, state = step(params, state, grads)
    bad = ~np.isfinite(params["w"])
    assert bad[:, 0, 0].all() and bad.sum() == NUM_REPLICAS
    assert np.isfinite(np.asarray(params["half"], np.float32)).all()
