"""Optimizers and schedules: hand-computed trajectories and a float64 NumPy oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hwa_jax.errors import UserError
from hwa_jax.training.config import default_config
from hwa_jax.training.optimizers import lookahead, make_optimizer, make_schedule, matching

# Ten steps per epoch, a hundred in all.
EPOCH, TOTAL = 10, 100


def schedule(learning_rate=1.0, **fields):
    config = default_config()
    config.schedule.update(fields)
    return make_schedule(config.schedule, learning_rate, EPOCH, TOTAL)


def optimizer(rate=0.5, **fields):
    config = default_config()
    config.optimizer.update({"momentum": 0.0, "nesterov": False, **fields})
    return make_optimizer(config.optimizer, optax.constant_schedule(rate))


def trajectory(tx, params, gradient, steps):
    """Parameters after every step, `gradient` a function of them."""
    state, seen = tx.init(params), []
    for _ in range(steps):
        updates, state = tx.update(gradient(params), state, params, grad_fn=lambda p, _: gradient(p))
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "constant"}, {0: 1.0, 99: 1.0}),
        # (1 + cos(π t / 100)) / 2
        ({"name": "cosine"}, {0: 1.0, 25: (1 + 2**-0.5) / 2, 50: 0.5, 75: (1 - 2**-0.5) / 2, 100: 0.0}),
        # between 1 and 0.2: 0.2 + 0.8 · 0.5 in the middle
        ({"name": "cosine", "final_fraction": 0.2}, {0: 1.0, 50: 0.6, 100: 0.2}),
        ({"name": "step"}, {49: 1.0, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
        ({"name": "step", "milestones": ("2 epochs", "90 steps"), "factor": 0.5}, {19: 1.0, 20: 0.5, 89: 0.5, 90: 0.25}),
        ({"name": "constant", "warmup": "2 epochs"}, {0: 0.0, 5: 0.25, 10: 0.5, 20: 1.0, 99: 1.0}),
        # the cosine begins after the warm-up: its middle is at 20 + 80 / 2
        ({"name": "cosine", "warmup": "20%"}, {10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
        # milestones are counted from the start of training, warm-up included
        ({"name": "step", "warmup": "20 steps"}, {10: 0.5, 20: 1.0, 49: 1.0, 50: 0.1, 75: 0.01}),
        # two milestones at one step both count
        ({"name": "step", "milestones": ("5 epochs", "50%")}, {49: 1.0, 50: 0.01}),
        # one that lies within the warm-up holds from its end
        ({"name": "step", "milestones": ("1 epochs",), "warmup": "20 steps"}, {10: 0.5, 20: 0.1, 99: 0.1}),
    ],
    ids=str,
)
def test_schedules(fields, expected):
    rates = schedule(**fields)
    for step, rate in expected.items():
        np.testing.assert_allclose(rates(step), rate, rtol=1e-6, atol=1e-7, err_msg=f"step {step}")


def test_schedule_scales_with_the_rate():
    np.testing.assert_allclose(schedule(0.3, name="cosine")(50), 0.15, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "cosin"}, "schedule.name='cosin'"),
        ({"warmup": "10 epochs"}, "schedule.warmup='10 epochs'"),
        ({"name": "step", "milestones": ("half",)}, "schedule.milestones='half'"),
    ],
    ids=str,
)
def test_bad_schedules(fields, words):
    with pytest.raises(UserError, match=words):
        schedule(**fields)


def test_sgd_by_hand():
    # rate 0.5, momentum 0.5, gradient 1, no decay:  m = 1, 1.5, 1.75;  p = -0.5, -1.25, -2.125
    seen = trajectory(optimizer(momentum=0.5), {"kernel": jnp.array(0.0)}, lambda p: {"kernel": jnp.array(1.0)}, 3)
    assert [float(p["kernel"]) for p in seen] == [-0.5, -1.25, -2.125]


def test_coupled_and_decoupled_decay_by_hand():
    # p = 2, gradient 0, rate 0.5, decay 0.25, momentum 0.5.
    # coupled: the decay goes through the momentum. g = 0.25·2 = 0.5, m = 0.5, p = 1.75;
    #          g = 0.4375, m = 0.25 + 0.4375 = 0.6875, p = 1.75 - 0.34375 = 1.40625
    # decoupled: p shrinks by 1 - 0.5·0.25 = 0.875: 1.75, 1.53125
    start, zero = {"kernel": jnp.array(2.0)}, lambda p: {"kernel": jnp.array(0.0)}
    coupled = trajectory(optimizer(momentum=0.5, weight_decay=0.25), start, zero, 2)
    decoupled = trajectory(optimizer(momentum=0.5, weight_decay=0.25, decoupled=True), start, zero, 2)
    assert [float(p["kernel"]) for p in coupled] == [1.75, 1.40625]
    assert [float(p["kernel"]) for p in decoupled] == [1.75, 1.53125]


def sgd_oracle(params, gradient, steps, rate, momentum, nesterov, decay, decoupled):
    """SGD in float64 NumPy; only "kernel" decays."""
    params = {name: np.float64(p) for name, p in params.items()}
    trace, seen = {name: 0.0 for name in params}, []
    for _ in range(steps):
        gradients = gradient(params)
        for name, p in params.items():
            decayed = decay * p if name == "kernel" else 0.0
            g = gradients[name] + (0.0 if decoupled else decayed)
            trace[name] = momentum * trace[name] + g
            step = momentum * trace[name] + g if nesterov else trace[name]
            params[name] = p - rate * (step + (decayed if decoupled else 0.0))
        seen.append(dict(params))
    return seen


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_numpy(momentum, nesterov, decoupled):
    rng = np.random.default_rng(0)
    start = {"bias": rng.normal(size=3), "kernel": rng.normal(size=(2, 3))}
    target = {name: rng.normal(size=p.shape) for name, p in start.items()}

    def gradient(params):
        return {name: params[name] - target[name] for name in params}

    tx = optimizer(0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.05, decoupled=decoupled)
    seen = trajectory(tx, jax.tree.map(jnp.float32, start), gradient, 20)
    expected = sgd_oracle(start, gradient, 20, 0.1, momentum, nesterov, 0.05, decoupled)
    for mine, theirs in zip(seen, expected, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), mine, theirs)


@pytest.mark.parametrize("name", ["adamw", "lion", "lamb"])
def test_optax_by_name_equals_optax(name):
    start = {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3))}
    mine = trajectory(optimizer(0.1, name=name, weight_decay=0.2), start, lambda p: jax.tree.map(jnp.sin, p), 5)
    tx = optax.with_extra_args_support(getattr(optax, name)(0.1, weight_decay=0.2, mask={"bias": False, "kernel": True}))
    assert_equal(mine, trajectory(tx, start, lambda p: jax.tree.map(jnp.sin, p), 5))


def test_options_reach_the_optimizer():
    config = default_config()
    with config.unlocked():
        config.optimizer.update({"name": "adam", "options": {"b1": 0.5}})
    tx, start = make_optimizer(config.optimizer, optax.constant_schedule(0.1)), {"kernel": jnp.ones(2)}
    expected = trajectory(optax.with_extra_args_support(optax.adam(0.1, b1=0.5)), start, lambda p: p, 3)
    assert_equal(trajectory(tx, start, lambda p: p, 3), expected)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "adamx"}, "optimizer.name='adamx'.*did you mean.*adam"),
        ({"name": "adam", "weight_decay": 0.1}, "optimizer.name='adam' does not take these arguments"),
        ({"wrapper": "swa"}, "optimizer.wrapper='swa'.*lookahead"),
        # names of optax that are no optimizers
        ({"name": "Params"}, "optimizer.name='Params'"),
        ({"name": "apply_updates"}, "optimizer.name='apply_updates'"),
        ({"name": "cosine_decay_schedule"}, "optimizer.name='cosine_decay_schedule'"),
        ({"name": "constant_schedule"}, "optimizer.name='constant_schedule': is no optimizer"),
        ({"name": "_src"}, "optimizer.name='_src'"),
    ],
    ids=str,
)
def test_bad_optimizers(fields, words):
    with pytest.raises(UserError, match=words):
        optimizer(**fields)


def test_decay_pattern():
    params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "b": {"kernel": jnp.ones(2)}}
    assert matching("^b/", params) == {"a": {"kernel": False, "bias": False}, "b": {"kernel": True}}
    tx = optimizer(weight_decay=1.0, decoupled=True, decay_pattern="a/")
    after = trajectory(tx, params, lambda p: jax.tree.map(jnp.zeros_like, p), 1)[0]
    assert [float(leaf[0]) for leaf in jax.tree.leaves(after)] == [0.5, 0.5, 1.0]
    with pytest.raises(UserError, match=r"optimizer.decay_pattern='weight\$' matches no parameter; paths look like a/bias"):
        optimizer(weight_decay=1.0, decay_pattern="weight$").init(params)
    with pytest.raises(UserError, match=r"optimizer.decay_pattern='\(' is no regular expression"):
        optimizer(weight_decay=1.0, decay_pattern="(").init(params)


@pytest.mark.parametrize("inner", [optax.sgd(0.1, 0.9), optax.adam(0.1)], ids=["sgd", "adam"])
def test_lookahead_equals_optax(inner):
    start = {"kernel": jnp.arange(4.0)}
    tx = optax.lookahead(inner, 3, 0.5)
    both = optax.LookaheadParams.init_synced(start)
    mine, mine_state = start, lookahead(inner, 3, 0.5).init(start)
    state = tx.init(both)
    for _ in range(7):
        updates, state = tx.update(jax.tree.map(jnp.cos, both.fast), state, both)
        both = optax.apply_updates(both, updates)
        updates, mine_state = lookahead(inner, 3, 0.5).update(jax.tree.map(jnp.cos, mine), mine_state, mine)
        mine = optax.apply_updates(mine, updates)
        assert_equal((both.fast, both.slow), (mine, mine_state.slow))


def test_lookahead_by_hand():
    # rate 0.5, gradient 1: fast -0.5, -1, then slow = 0 + 0.5·(-1 - 0) = -0.5 and fast = slow; -1, -1.5, then
    # slow = -0.5 + 0.5·(-1.5 + 0.5) = -1
    tx = optimizer(wrapper="lookahead", lookahead_period=2, lookahead_rate=0.5)
    seen = trajectory(tx, {"kernel": jnp.array(0.0)}, lambda p: {"kernel": jnp.array(1.0)}, 4)
    assert [float(p["kernel"]) for p in seen] == [-0.5, -0.5, -1.0, -1.0]


def test_sam_first_step_by_hand():
    # loss p²/2 summed, p = (3, 4): g = (3, 4), |g| = 5. With radius 0.5 the adversary is at
    # p + 0.5·g/|g| = (3.3, 4.4), whose gradient is itself; rate 0.1: p - 0.1·(3.3, 4.4) = (2.67, 3.56)
    tx = optimizer(0.1, wrapper="sam", sam_radius=0.5)
    seen = trajectory(tx, {"kernel": jnp.array([3.0, 4.0])}, lambda p: p, 1)
    np.testing.assert_allclose(seen[0]["kernel"], [2.67, 3.56], rtol=1e-6)


def assert_equal(mine, theirs):
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
