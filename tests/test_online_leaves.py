"""Which leaves the online average takes and how it says that a call is wrong."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replicas import over_shards

import hwa_jax


def _average(params, updates, axis_name="replica"):
    """Weights after one averaging step over the stacked trees."""
    tx = hwa_jax.online_average(1, axis_name)

    def step(params, updates):
        return tx.update(updates, tx.init(params), params)[0]

    return (jax.vmap(step, axis_name="replica") if axis_name else step)(params, updates)


@pytest.mark.parametrize("axis_name", ["replica", None])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_averaged_in_float32(dtype, axis_name):
    # 256 weights of 1 and one of 257: in bf16 a running sum stalls at 256, in fp16 at 2048; the mean is 2.
    params = jnp.ones((256, 1), dtype).at[0].set(257)
    updates = _average(params, jnp.zeros_like(params), axis_name)
    assert updates.dtype == dtype
    assert (params + updates)[1:].astype(jnp.float32).tolist() == [[2.0]] * 255
    large = jnp.full((256, 1), 3e4, dtype)  # 256 of these overflow fp16
    assert np.isfinite(np.asarray(_average(large, jnp.zeros_like(large), axis_name), np.float32)).all()


@pytest.mark.parametrize("axis_name", ["replica", None])
def test_low_precision_updates_still_lead_float32_weights_to_one_mean(axis_name):
    params = jnp.array([[1.0], [1.1], [7.3]], jnp.float32)
    updates = _average(params, jnp.zeros((3, 1), jnp.bfloat16), axis_name)
    after = np.asarray(optax.apply_updates(params, updates))
    assert np.ptp(after) <= 2 * np.spacing(np.float32(7.3))
    assert after[0, 0] == pytest.approx(9.4 / 3, rel=1e-6)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        params = jnp.array([1.0, 1.0 + 1e-12])
        after = params + _average(params, jnp.zeros(2))
        assert after.dtype == jnp.float64
        np.testing.assert_allclose(after - 1, 5e-13, rtol=1e-3)


@pytest.mark.parametrize("axis_name", ["replica", None])
def test_integers_and_keys_pass_through(axis_name):
    params = {"w": jnp.array([1.0, 3.0]), "n": jnp.array([1, 2]), "flag": jnp.array([True, False])}
    updates = {"w": jnp.zeros(2), "n": jnp.array([5, 6]), "flag": jnp.array([False, True])}
    result = _average(params, updates, axis_name)
    assert result["w"].tolist() == [1.0, -1.0]
    assert result["n"].tolist() == [5, 6] and result["n"].dtype == jnp.int32
    assert result["flag"].tolist() == [False, True]
    keys = {"k": jax.random.split(jax.random.key(0), 2)}
    moved = jax.random.split(jax.random.key(1), 2)
    assert (_average(keys, {"k": moved}, axis_name)["k"] == moved).all()
    synchronize = lambda t: hwa_jax.synchronize(t, axis_name)
    synchronized = (jax.vmap(synchronize, axis_name="replica") if axis_name else synchronize)({**params, **keys})
    assert synchronized["w"].tolist() == [2.0, 2.0] and synchronized["n"].tolist() == [1, 2]
    assert (synchronized["k"] == keys["k"]).all()


@pytest.mark.parametrize("axis_name", ["replica", None])
def test_empty_leaves_empty_trees_and_none(axis_name):
    params = {"w": jnp.array([1.0, 3.0]), "empty": jnp.zeros((2, 0)), "none": None, "nothing": {}}
    result = _average(params, jax.tree.map(jnp.zeros_like, params), axis_name)
    assert result["none"] is None and result["nothing"] == {} and result["empty"].shape == (2, 0)
    tx = hwa_jax.with_online_average(optax.adam(0.1), 1, None)
    assert tx.update({}, tx.init({}), {})[0] == {}
    assert hwa_jax.synchronize({}, None) == {}


@pytest.mark.parametrize("axis_name", ["replica", None])
def test_a_missing_update_leaves_a_frozen_weight_alone(axis_name):
    # Equinox's filtered gradients are None where a weight is frozen.
    params = {"frozen": jnp.array([1.0, 2.0]), "w": jnp.array([1.0, 3.0])}
    result = _average(params, {"frozen": None, "w": jnp.zeros(2)}, axis_name)
    assert result["frozen"] is None
    assert eqx.apply_updates(params, result)["frozen"].tolist() == [1.0, 2.0]
    assert eqx.apply_updates(params, result)["w"].tolist() == [2.0, 2.0]


def test_complex_weights_have_a_mean():
    params = jnp.array([1 + 2j, 3 - 4j])
    np.testing.assert_allclose(params + _average(params, 0 * params), [2 - 1j, 2 - 1j], rtol=1e-6)


@pytest.mark.parametrize("every", [0, -1, 1.5, "2", None, True])
def test_bad_every(every):
    for make in (hwa_jax.online_average, lambda e, a: hwa_jax.with_online_average(optax.sgd(1.0), e, a)):
        with pytest.raises(ValueError, match=rf"online_average: every={every!r} must be a whole number of steps"):
            make(every, "replica")


@pytest.mark.parametrize("start_step", [-1, 0.5, None])
def test_bad_start_step(start_step):
    with pytest.raises(ValueError, match=f"start_step={start_step!r} must be a whole number of steps, at least 0"):
        hwa_jax.online_average(2, "replica", start_step=start_step)


@pytest.mark.parametrize("axis_name", [3, (), ("device", 1), {"device"}])
def test_bad_axis_name(axis_name):
    with pytest.raises(ValueError, match="must be a name, a tuple of names, or None"):
        hwa_jax.online_average(2, axis_name)
    with pytest.raises(ValueError, match="^synchronize: axis_name="):
        hwa_jax.synchronize({}, axis_name)


def test_numpy_integers_and_lists_of_names_are_accepted():
    tx = hwa_jax.online_average(np.int64(1), ["outer", "inner"], start_step=np.int32(0))
    step = jax.vmap(jax.vmap(lambda p: tx.update(0 * p, tx.init(p), p)[0], axis_name="inner"), axis_name="outer")
    assert step(jnp.array([[0.0, 2.0], [4.0, 6.0]])).tolist() == [[3.0, 1.0], [-1.0, -3.0]]


def test_bad_policy_names_the_choices():
    with pytest.raises(ValueError, match="optimizer_state='keep' must be one of local, average, reset"):
        hwa_jax.with_online_average(optax.sgd(1.0), 2, "replica", optimizer_state="keep")


@pytest.mark.parametrize("wrap", [False, True])
def test_missing_params(wrap):
    tx = hwa_jax.online_average(2, "replica")
    tx = hwa_jax.with_online_average(optax.sgd(1.0), 2, "replica") if wrap else tx
    with pytest.raises(ValueError, match="params=None; call update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_an_unbound_axis_is_named_with_those_that_are_bound():
    tx = hwa_jax.online_average(2, ("device", "replica"))
    step = lambda p: tx.update(p, tx.init(p), p)[0]
    with pytest.raises(ValueError, match="axis_name='device' is not bound here; bound axes: none"):
        step(jnp.ones(3))
    with pytest.raises(ValueError, match="axis_name='device' is not bound here; bound axes: other"):
        jax.vmap(step, axis_name="other")(jnp.ones(3))
    with pytest.raises(ValueError, match="axis_name='replica' is not bound here; bound axes: device"):
        jax.vmap(step, axis_name="device")(jnp.ones(3))


@pytest.mark.parametrize("axis_name", ["particle", ("replica", "particle")])
def test_a_vmap_axis_in_a_checked_shard_map_says_what_to_do(axis_name):
    tx = hwa_jax.online_average(2, axis_name)
    step = jax.vmap(lambda p: tx.update(p, tx.init(p), p)[0], axis_name="particle")
    with pytest.raises(ValueError, match=r"needs jax.shard_map\(..., check_vma=False\)"):
        over_shards(step, check_vma=True)(jnp.ones((8, 2)))


@pytest.mark.parametrize("params", [{"w": jnp.ones(3), "b": jnp.ones(2)}, {"w": jnp.ones(3), "b": jnp.ones(())}])
def test_stacked_leaves_that_disagree(params):
    tx = hwa_jax.online_average(2, None)
    with pytest.raises(ValueError, match=r"every leaf must be stacked .* got shapes \[.*see hwa_jax.particles.replicate"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="every leaf must be stacked"):
        hwa_jax.synchronize(params, None)
