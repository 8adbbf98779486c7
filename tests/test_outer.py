"""Outer optimizers and movements in bf16: against NumPy, by hand, and read from the compiled program."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hwa_jax.training.hlo import collectives
from replicas import LAYOUTS, K, assert_close, compiled, gradients, one_step, oracle, place, problem, run, start

from hwa_jax import online_average, with_online_average
from hwa_jax.particles import device_mesh, vectorize
from hwa_jax.training.optimizers import lookahead

FAST = ("vmap in shard_map", "stacked")
layouts = pytest.mark.parametrize("layout", [x if x in FAST else pytest.param(x, marks=pytest.mark.slow) for x in LAYOUTS])


def equal_start(num_replicas=K, dtype=np.float64):
    """`problem` with replicas that start from the weights of the first."""
    params, data = problem(num_replicas, dtype)
    return {name: np.broadcast_to(p[:1], p.shape).copy() for name, p in params.items()}, data


def diloco(params, data, num_steps, every, rate=0.1, outer_rate=0.7, momentum=0.9):
    """DiLoCo with SGD inside and Nesterov's momentum outside, in float64: algorithm 1 of its paper."""
    replicas, trajectory = dict(params), []
    outer = {name: p[0] for name, p in params.items()}
    velocity = {name: 0 * p for name, p in outer.items()}
    for step in range(1, num_steps + 1):
        grads = gradients(replicas, data)
        replicas = {name: p - rate * grads[name] for name, p in replicas.items()}
        if step % every == 0:
            for name, p in replicas.items():
                gradient = (outer[name] - p).mean(0)
                velocity[name] = momentum * velocity[name] + gradient
                outer[name] = outer[name] - outer_rate * (gradient + momentum * velocity[name])
                replicas[name] = np.broadcast_to(outer[name], p.shape)
        trajectory.append(dict(replicas))
    return trajectory


def _nesterov():
    return optax.sgd(0.7, momentum=0.9, nesterov=True)


@layouts
def test_nesterov_outside_is_diloco(layout):
    with jax.enable_x64(True):
        params, data = equal_start()
        tx = with_online_average(optax.sgd(0.1), 3, LAYOUTS[layout][0], outer_optimizer=_nesterov())
        trajectory, state = run(layout, tx, params, data, 10)
        for actual, wanted in zip(trajectory, diloco(params, data, 10, every=3), strict=True):
            assert_close(actual, wanted, rtol=1e-13)
        for leaf in jax.tree.leaves(state.outer):
            np.testing.assert_array_equal(leaf, np.broadcast_to(np.asarray(leaf)[:1], leaf.shape))


@layouts
def test_sgd_of_rate_one_outside_is_the_plain_average(layout):
    with jax.enable_x64(True):
        params, data = equal_start()
        tx = optax.chain(optax.sgd(0.1), online_average(3, LAYOUTS[layout][0], start_step=1, outer_optimizer=optax.sgd(1.0)))
        trajectory, _ = run(layout, tx, params, data, 8)
        for actual, wanted in zip(trajectory, oracle(params, data, 8, every=3, start_step=1), strict=True):
            assert_close(actual, wanted, rtol=1e-14)


def test_how_exactly_sgd_of_rate_one_is_the_plain_average():
    rng = np.random.default_rng(0)
    start = np.broadcast_to(rng.normal(size=5000), (3, 5000)).astype(np.float32)

    def after(params, **options):
        tx = online_average(1, None, **options)
        return params + np.asarray(jax.jit(lambda p: tx.update(0 * p, tx.init(start), p)[0])(params))

    def both(params):
        return after(params), after(params, outer_optimizer=optax.sgd(1.0))

    # x/2 <= w̄ <= 2x makes x - w̄ exact (Sterbenz), so x - (x - w̄) is w̄.
    near = (start * rng.uniform(0.55, 1.9, start.shape)).astype(np.float32)
    np.testing.assert_array_equal(*both(near))
    far = rng.normal(size=start.shape).astype(np.float32)
    plain, outer = both(far)
    unit = np.spacing(np.maximum(np.abs(start), np.abs(far).max(0)))
    assert 0 < (np.abs(plain - outer) / unit).max() <= 2


def test_an_outer_step_by_hand():
    # K=3, H=1, inner rate 1, outer rate 1/2 with momentum 1/2. All start at 8, gradients 1, 2 and 6: the mean moves by -3.
    #   t=1  outer gradient 3   velocity 3              8 - 1.5  = 6.5
    #   t=2  outer gradient 3   velocity 3 + 1.5 = 4.5  6.5 - 2.25 = 4.25
    tx = with_online_average(optax.sgd(1.0), 1, "replica", outer_optimizer=optax.sgd(0.5, momentum=0.5))
    step = jax.jit(jax.vmap(lambda p, s, g: _apply(tx, p, s, g), axis_name="replica"))
    params, state = jnp.full(3, 8.0), jax.vmap(tx.init)(jnp.full(3, 8.0))
    params, state = step(params, state, jnp.array([1.0, 2.0, 6.0]))
    assert params.tolist() == [6.5] * 3
    # The spread is that of the replicas around their mean, not around the outer weights: 7, 6, 2 around 5.
    assert state.distance.tolist() == [2.0, 1.0, 3.0]
    params, state = step(params, state, jnp.array([1.0, 2.0, 6.0]))
    assert params.tolist() == [4.25] * 3 and state.outer.weights.tolist() == [4.25] * 3


def _apply(tx, params, state, grads, **extra):
    updates, state = tx.update(grads, state, params, **extra)
    return optax.apply_updates(params, updates), state


def test_one_replica_with_sgd_outside_is_lookahead():
    with jax.enable_x64(True):
        params, data = problem(1)
        ours, _ = run("vmap", with_online_average(optax.adam(0.1), 3, "replica", outer_optimizer=optax.sgd(0.5)), params, data, 7)
        theirs, _ = run("vmap", lookahead(optax.adam(0.1), 3, 0.5), params, data, 7)
        for actual, wanted in zip(ours, theirs, strict=True):
            assert_close(actual, wanted, rtol=1e-14)


def _average_in(dtype, params, updates):
    tx = online_average(1, None, sync_dtype=dtype)
    return np.asarray(params + jax.jit(lambda u: tx.update(u, tx.init(params), params)[0])(updates), np.float64)


def test_movements_survive_bf16_and_weights_would_not():
    rng = np.random.default_rng(1)
    params = np.broadcast_to(rng.normal(size=4000), (4, 4000)).astype(np.float32)
    updates = (1e-3 * rng.normal(size=params.shape)).astype(np.float32)
    exact = (params + updates).astype(np.float64).mean(0)
    error = np.abs(_average_in(jnp.bfloat16, params, updates) - exact).max()
    weights = (params + updates).astype(ml_dtypes.bfloat16).astype(np.float64).mean(0)
    largest = np.abs(updates).max()
    # Roundings of 2^-9 of each movement and of each sum of four, divided by four; and float32 of weights.
    assert 1e-7 < error <= 5 * 2**-9 * largest
    assert np.abs(weights - exact).max() > 100 * error


def test_exact_movements_lose_nothing_in_bf16():
    # Movements of 1/2, 1/4 and 3/4 from 1000, which bf16 itself would hold in steps of 4: the mean moves by 1/2.
    params = jnp.full((3, 1), 1000.0)
    updates = jnp.array([[0.5], [0.25], [0.75]])
    assert _average_in("bfloat16", params, updates).tolist() == [[1000.5]] * 3


def test_roundings_do_not_pile_up():
    # On losses that pull back, fifty averages are as far off as one may be; replicas agree after each.
    params, data = equal_start(4, np.float32)
    tx = with_online_average(optax.sgd(0.1), 2, "replica", sync_dtype=jnp.bfloat16)
    trajectory, state = run("vmap", tx, params, data, 100)
    wanted = oracle(*(jax.tree.map(np.float64, tree) for tree in (params, data)), 100, every=2)
    movement = 2 * 0.1 * max(np.abs(g).max() for g in gradients(params, data).values())
    for name, p in trajectory[-1].items():
        assert 0 < np.abs(p - wanted[-1][name]).max() <= 5 * 2**-9 * movement
        assert (np.ptp(p, axis=0) <= 4 * np.spacing(np.abs(p).max())).all()
        np.testing.assert_array_equal(state.outer.weights[name][0], state.outer.weights[name][1])


@pytest.mark.slow
def test_layouts_agree_to_bf16_of_the_movement():
    params, data = equal_start(dtype=np.float32)
    last = []
    for layout in FAST:
        tx = with_online_average(optax.sgd(0.1), 3, LAYOUTS[layout][0], sync_dtype=jnp.bfloat16, outer_optimizer=_nesterov())
        last.append(run(layout, tx, params, data, 6)[0][-1])
    for name, p in params.items():
        moved = np.abs(last[0][name] - p).max()
        np.testing.assert_allclose(last[0][name], last[1][name], rtol=0, atol=2**-7 * moved)


def test_bf16_weights_have_outer_weights_in_float32():
    # Movements of 2^-9 are half a unit of a bf16 weight of 1: rounded away (to even) from the weight, not from x.
    params = jnp.ones((2, 1), jnp.bfloat16)
    tx = with_online_average(optax.sgd(1.0), 1, None, outer_optimizer=optax.sgd(2**-9))
    _, state = tx.update(jnp.ones_like(params), tx.init(params), params)
    assert state.outer.weights.dtype == jnp.float32 and state.outer.weights.tolist() == [[1 - 2**-9]] * 2
    assert tx.init({"n": jnp.ones((2, 1), jnp.int32)}).outer.weights["n"] is None


def test_a_frozen_weight_stays_where_it_is():
    params = {"frozen": jnp.array([1.0, 1.0]), "w": jnp.array([2.0, 2.0]), "none": None}
    tx = online_average(1, None, sync_dtype=jnp.bfloat16, outer_optimizer=optax.sgd(1.0, momentum=0.9))
    updates, state = tx.update({"frozen": None, "w": jnp.array([1.0, 3.0]), "none": None}, tx.init(params), params)
    assert updates["frozen"] is None and updates["w"].tolist() == [2.0, 2.0]
    assert state.outer.weights["frozen"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("layout", "policy"), [("vmap in shard_map", "average"), ("shard_map", "local"), ("stacked and sharded", "local")])
def test_bf16_is_reduced_and_only_in_a_conditional(layout, policy):
    axis_name = LAYOUTS[layout][0]
    tx = with_online_average(
        optax.adam(0.1), 5, axis_name, optimizer_state=policy, sync_dtype=jnp.bfloat16, outer_optimizer=_nesterov()
    )
    params, data = (place(layout, tree) for tree in problem(16 if "vmap" in layout else 8, np.float32))
    step = jax.jit(vectorize(one_step(tx), mesh=device_mesh())) if "vmap" in layout else compiled(layout, tx)
    lowered = step.lower(params, start(layout, tx, params), data)
    always, sometimes = collectives(lowered.compile().as_text())
    assert always == [] and sometimes
    # The compiler for CPUs, which cannot sum bf16, has made float32 of it: what it was asked for is in the program it got.
    operation = "stablehlo.reduce(" if axis_name is None else '"stablehlo.all_reduce"('
    asked = [line for line in _signatures(lowered.as_text(), operation) if "bf16" in line]
    assert len(asked) == len(params)


def _signatures(text, operation):
    """The types of every such operation, which for those with a body stand behind it."""
    found, lines = [], text.splitlines()
    for number, line in enumerate(lines):
        if operation in line:
            body = line.rstrip().endswith("({")
            found.append(next(later for later in lines[number:] if later.strip().startswith("})")) if body else line)
    return found


def test_off_by_default_nothing_is_kept():
    params = {"w": jnp.zeros((2, 3))}
    assert online_average(2, None).init(params)._fields == ("count",)
    assert with_online_average(optax.sgd(1.0), 2, None).init(params)._fields == ("count", "distance", "inner_state")


@pytest.mark.parametrize("make", [online_average, lambda *args, **options: with_online_average(optax.sgd(1.0), *args, **options)])
def test_bad_options(make):
    for dtype in ("bf16", jnp.float16, jnp.float32, 16):
        with pytest.raises(ValueError, match="online_average: sync_dtype=.* must be jnp.bfloat16 or None"):
            make(2, "replica", sync_dtype=dtype)
    with pytest.raises(ValueError, match="online_average: outer_optimizer='sgd' must be an optax optimizer or None"):
        make(2, "replica", outer_optimizer="sgd")
