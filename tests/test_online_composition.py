"""The online average together with other optax transforms, in and around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from replicas import assert_close, oracle, problem, run

from hwa_jax import online_average, with_online_average

STEPS = 7


def _last(tx, num_steps=STEPS, layout="vmap"):
    params, data = problem(2)
    return run(layout, tx, params, data, num_steps)[0][-1]


def _wanted(num_steps=STEPS, **kwargs):
    params, data = problem(2)
    return oracle(params, data, num_steps, every=3, **kwargs)[-1]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def test_inject_hyperparams():
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9)
    assert_close(_last(optax.chain(injected, online_average(3, "replica"))), _wanted(inner="momentum"), 1e-6)
    # The rate is held in float32 there, hence 1e-6; in float64 it is exact.
    exact = optax.inject_hyperparams(optax.sgd, hyperparam_dtype=jnp.float64)(learning_rate=0.1, momentum=0.9)
    assert_close(_last(with_online_average(exact, 3, "replica")), _wanted(inner="momentum"), 1e-14)


def test_multi_transform_around_the_average_can_leave_a_group_out():
    averaged = optax.chain(optax.sgd(0.1), online_average(3, "replica"))
    tx = optax.multi_transform({"average": averaged, "alone": optax.sgd(0.1)},
                               {"kernel": "average", "bias": "alone", "scale": "average"})
    params, data = problem(2)
    alone = oracle(params, data, STEPS, every=100)[-1]
    assert_close(_last(tx), {**_wanted(), "bias": alone["bias"]}, 1e-14)


def test_multi_transform_inside_with_a_frozen_group():
    params, _ = problem(2)
    inner = optax.multi_transform({"train": optax.sgd(0.1), "freeze": optax.set_to_zero()},
                                  {"kernel": "train", "bias": "freeze", "scale": "train"})
    last = _last(optax.chain(inner, online_average(3, "replica")))
    # A frozen leaf is not trained, but replicas do agree on it.
    mean = np.broadcast_to(params["bias"].mean(0), params["bias"].shape)
    assert_close(last, {**_wanted(), "bias": mean}, 1e-14)


def test_masked_average():
    params, data = problem(2)
    alone = oracle(params, data, STEPS, every=100)[-1]
    mask = {"kernel": True, "bias": False, "scale": True}
    tx = optax.chain(optax.sgd(0.1), optax.masked(online_average(3, "replica"), mask))
    assert_close(_last(tx), {**_wanted(), "bias": alone["bias"]}, 1e-14)


def test_multi_steps_stays_inside_and_counts_micro_steps():
    # k = 2 micro-batches per step, H = 3 steps: chain(MultiSteps(inner, k), online_average(k * H)).
    tx = optax.chain(
        optax.MultiSteps(optax.sgd(0.1, momentum=0.9), 2, accumulator_dtype=jnp.float64), online_average(2 * 3, "replica")
    )
    # Weights stand still between two micro-steps, so both gradients are the same and so is their mean.
    assert_close(_last(tx, 2 * STEPS), _wanted(inner="momentum"), 1e-14)


@pytest.mark.parametrize("layout", [pytest.param("shard_map", marks=pytest.mark.slow), "vmap in shard_map"])
def test_a_replica_that_skips_a_bad_step_still_meets_the_others(layout):
    # A skip that depends on data belongs inside; the average around it keeps everybody's count.
    params, data = problem()
    data["kernel"]["b"][3, 0, 0] = np.nan  # replica 3 has NaN gradients for ever
    skipping = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=100)
    axis_name = "replica" if layout == "shard_map" else ("device", "particle")
    tx = optax.chain(skipping, online_average(2, axis_name))
    trajectory, state = run(layout, tx, params, data, 4)
    assert np.isfinite(trajectory[-1]["kernel"]).all()
    assert np.ptp(trajectory[3]["kernel"], axis=0).max() < 1e-14
    np.testing.assert_array_equal(trajectory[0]["kernel"][3], params["kernel"][3])
    assert np.asarray(state[1].count).tolist() == [4] * 8


def test_the_average_sees_the_final_update():
    # Weight decay and clipping in front of it take part in W̄; behind it, they act on a finished update.
    params, data = problem(2)
    tx = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1), online_average(1, "replica"))
    grads = {name: data[name]["a"] * (params[name] - data[name]["b"]) + 0.5 * params[name] for name in params}
    wanted = {name: np.broadcast_to((params[name] - 0.1 * grads[name]).mean(0), params[name].shape) for name in params}
    assert_close(_last(tx, 1), wanted, 1e-14)


def test_the_average_has_to_be_last():
    first = _last(optax.chain(online_average(3, "replica"), optax.sgd(0.1)), 3)
    assert np.ptp(first["kernel"], axis=0).max() > 0.1


def test_extra_arguments_reach_the_inner_optimizer():
    tx = with_online_average(optax.polyak_sgd(), 2, None)
    params = jnp.array([[1.0], [3.0]])
    updates, _ = tx.update(params, tx.init(params), params, value=jnp.float64(5.0))
    # Polyak's rate is value / ‖g‖² = 5 / (1 + 9), here below its limit of 1.
    np.testing.assert_allclose(updates, [[-0.5], [-1.5]], rtol=1e-6)


def test_averages_may_be_nested_over_two_axes():
    # Every step inside a pair, every second step over all: local SGD in a hierarchy.
    tx = optax.chain(optax.sgd(0.0), online_average(1, "inner"), online_average(2, ("outer", "inner")))
    params, data = problem()
    trajectory, _ = run("two vmaps", tx, params, data, 2)
    pairs = params["kernel"].reshape(4, 2, 3, 2).mean(1, keepdims=True)
    np.testing.assert_allclose(
        trajectory[0]["kernel"].reshape(4, 2, 3, 2), np.broadcast_to(pairs, (4, 2, 3, 2)), rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(trajectory[1]["kernel"], np.broadcast_to(params["kernel"].mean(0), (8, 3, 2)), atol=1e-14)
