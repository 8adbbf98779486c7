"""sparse_update: exact zeros in weights, moments and averages under every optimizer; remaining weights move as if alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hwa_jax
from hwa_jax import masks, particles
from hwa_jax.training.optimizers import lookahead

# Shapes of the prunable leaves occur nowhere else, so that parts of a state are known by their shapes.
SHAPES = {"first": {"kernel": (7, 5), "bias": (5,)}, "second": {"kernel": (5, 3), "bias": (3,)}}
RATE = 0.1


def is_kernel(path, leaf):
    return path[-1].key == "kernel"


def only_kernels(params):
    return jax.tree_util.tree_map_with_path(is_kernel, params)


ELEMENTWISE = {
    "sgd": optax.sgd(RATE),
    "momentum and decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(RATE, momentum=0.9)),
    "nesterov": optax.sgd(RATE, momentum=0.9, nesterov=True),
    "adam": optax.adam(RATE),
    "adamw": optax.adamw(RATE, weight_decay=0.1),
    "adamw masked": optax.adamw(RATE, weight_decay=0.1, mask=only_kernels),
    "lookahead": lookahead(optax.adam(RATE), 2, 0.5),
    # Hyperparameters in bf16 would make Adam's second decay 1.
    "injected": optax.inject_hyperparams(optax.adamw, hyperparam_dtype=jnp.float32)(optax.linear_schedule(RATE, 0.0, 10), weight_decay=0.1),
    "clipped": optax.chain(optax.add_decayed_weights(0.5), optax.clip_by_global_norm(0.5), optax.sgd(RATE, momentum=0.9)),
    "labelled": optax.multi_transform(
        {True: optax.adamw(RATE), False: optax.sgd(RATE, momentum=0.9)},
        {"first": {"kernel": True, "bias": False}, "second": {"kernel": False, "bias": False}},
    ),
    "accumulating": optax.MultiSteps(optax.adam(RATE), 2),
}
OTHERS = {
    "lbfgs": optax.scale_by_lbfgs(memory_size=3),
    "muon": optax.contrib.muon(RATE),
    "adafactor": optax.adafactor(RATE, min_dim_size_to_factor=2),
    "noise": optax.chain(optax.add_noise(0.5, 0.5, jax.random.key(0)), optax.adam(RATE)),
    "lamb": optax.lamb(RATE, weight_decay=0.1),
    "schedule-free": optax.contrib.schedule_free_adamw(RATE),
}


def random_tree(seed, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    make = lambda shape: jnp.asarray(rng.normal(size=shape), dtype)
    return jax.tree.map(make, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def stepper(tx):
    def step(params, state, grads, mask):
        updates, state = tx.update(grads, state, params, mask=mask)
        return optax.apply_updates(params, updates), state

    return step


def assert_zero_outside(mask, tree):
    """Every array that ends in the shape of a prunable leaf is zero where its mask is False; how many there are."""
    by_shape = {np.shape(keep): np.asarray(keep) for keep in jax.tree.leaves(mask)}
    found = 0
    for leaf in jax.tree.leaves(tree):
        keep = by_shape.get(np.shape(leaf)[-2:])
        if keep is not None:
            assert (np.asarray(leaf)[..., ~keep] == 0).all()
            found += 1
    return found


def two_masks(params):
    first = masks.prune_by_magnitude(params, masks.ones(params), 0.4)
    return first, masks.prune(params, first, 0.5, "random", key=jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in ELEMENTWISE | OTHERS]
    + [(name, "bfloat16") for name in ("momentum and decay", "nesterov", "adam", "adamw", "lookahead")]
    + [pytest.param(name, "bfloat16", marks=pytest.mark.slow) for name in ("injected", "labelled", "accumulating", *OTHERS)],
)
def test_zeros_are_exact_from_the_first_step_and_new_masks_compile_nothing(name, dtype):
    tx = hwa_jax.sparse_update({**ELEMENTWISE, **OTHERS}[name])
    step = jax.jit(stepper(tx))
    params = random_tree(0, dtype)
    state = tx.init(params)
    num_like_weights = assert_zero_outside(masks.ones(params), (params, state))
    programs = []
    # Weights and state are dense when the first mask comes, and again where the second removes more.
    for i, mask in enumerate([masks.ones(params)] * 2 + [m for m in two_masks(params) for _ in range(3)]):
        params, state = step(params, state, random_tree(i + 1, dtype), mask)
        programs.append(step._cache_size())
        assert assert_zero_outside(mask, (params, state)) == num_like_weights
        for leaf, keep in zip((params["first"]["kernel"], params["second"]["kernel"]), jax.tree.leaves(mask), strict=True):
            leaf = np.asarray(leaf, np.float32)
            assert np.isfinite(leaf).all() and (leaf[np.asarray(keep)] != 0).all()
    # States that begin weakly typed settle in the second step, before any mask but `ones`.
    assert programs[1] == programs[-1]
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_remaining_weights_move_as_if_the_others_did_not_exist(name):
    # The same optimizer without a mask on vectors of the remaining weights alone.
    inner = optax.with_extra_args_support(ELEMENTWISE[name])
    params = random_tree(0)
    mask = two_masks(params)[0]

    def compact(tree):
        return {
            layer: {"kernel": leaves["kernel"][np.asarray(mask[layer]["kernel"])], "bias": leaves["bias"]}
            for layer, leaves in tree.items()
        }

    tx = hwa_jax.sparse_update(inner)
    state, alone = tx.init(params), compact(params)
    state_alone = inner.init(alone)
    step = jax.jit(stepper(tx))
    for i in range(5):
        grads = random_tree(i + 1)
        params, state = step(params, state, grads, mask)
        updates, state_alone = inner.update(compact(grads), state_alone, alone)
        alone = optax.apply_updates(alone, updates)
        # Compiled and not, sums of squares in another order: a few units in the last place.
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-7), compact(params), alone)


def test_momentum_by_hand():
    # rate 1, momentum 0.5, gradient 1, weights 4 and 4. Dense: m = 1, p = 3. Then the second weight goes: its
    # momentum of 1 goes too. First: m = 1.5, p = 1.5. A mask that lets it return finds it without momentum: m = 1, p = -1.
    tx = hwa_jax.sparse_update(optax.sgd(1.0, momentum=0.5))
    params, grads = {"w": jnp.array([4.0, 4.0])}, {"w": jnp.ones(2)}
    state, seen = tx.init(params), []
    for mask in ([True, True], [True, False], [True, True]):
        params, state = stepper(tx)(params, state, grads, {"w": jnp.array(mask)})
        seen.append(params["w"].tolist())
    assert seen == [[3.0, 3.0], [1.5, 0.0], [-0.25, -1.0]]


def test_what_goes_leaves_no_trace_in_norms_by_hand():
    # Gradient (3, 4): the trace is (3, 4), of norm 5, and the update -(0.6, 0.8). Then the second weight goes. The trace
    # is 0.5 · 3 + 3 = 4.5, alone, so clipped to 1; with the old 0.5 · 4 = 2 beside it the update would be -4.5 / 4.92.
    tx = hwa_jax.sparse_update(optax.chain(optax.trace(0.5), optax.clip_by_global_norm(1.0), optax.scale(-1.0)))
    params, grads = {"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([3.0, 4.0])}
    params, state = stepper(tx)(params, tx.init(params), grads, {"w": jnp.array([True, True])})
    np.testing.assert_allclose(params["w"], [0.4, 0.2], rtol=1e-6)
    params, state = stepper(tx)(params, state, grads, {"w": jnp.array([True, False])})
    np.testing.assert_allclose(params["w"], [-0.6, 0.0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("weight", "grad"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float16"), ("float16", "float32")]
)
def test_any_weight_reaches_zero_whatever_the_dtypes(weight, grad):
    # A bf16 update cannot hold -p of a float32 weight.
    info = jnp.finfo(weight)
    values = np.array([0.1, -1 / 3, np.pi, -0.0, info.max, info.min, info.tiny, info.smallest_subnormal])
    params = {"w": jnp.asarray(values, weight), "free": jnp.ones(2, weight)}
    mask = {"w": jnp.zeros(8, bool), "free": optax.MaskedNode()}
    grads = jax.tree.map(lambda p: jnp.full(p.shape, jnp.nan, grad), params) | {"free": jnp.ones(2, grad)}
    # Without momentum the update has the dtype of the gradient, with it that of the weight.
    for momentum, compiled in ((None, False), (None, True), (0.9, True)):
        tx = hwa_jax.sparse_update(optax.sgd(RATE, momentum))
        step = jax.jit(stepper(tx)) if compiled else stepper(tx)
        after, state = step(params, tx.init(params), grads, mask)
        assert (np.asarray(after["w"], np.float32) == 0).all() and after["w"].dtype == weight
        np.testing.assert_allclose(np.asarray(after["free"], np.float32), 0.9, rtol=0.01)
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(state))


def test_leaves_that_are_not_prunable_move_as_without_a_mask():
    params, inner = random_tree(0), optax.adamw(RATE)
    mask = masks.prune_by_magnitude(params, masks.ones(params), 0.5)
    tx = hwa_jax.sparse_update(inner)
    updates, _ = tx.update(params, tx.init(params), params, mask=mask)
    plain, _ = inner.update(params, inner.init(params), params)
    for layer in params:
        np.testing.assert_array_equal(updates[layer]["bias"], plain[layer]["bias"])


def test_extra_arguments_reach_the_inner_optimizer():
    sam = optax.contrib.sam(optax.sgd(RATE, momentum=0.9), optax.sgd(0.5), opaque_mode=True)
    tx, params = hwa_jax.sparse_update(sam), random_tree(0)
    mask = masks.prune_by_magnitude(params, masks.ones(params), 0.5)
    seen = []
    grad_fn = lambda p, _: seen.append(p) or jax.tree.map(jnp.ones_like, p)
    updates, state = tx.update(random_tree(1), tx.init(params), params, mask=mask, grad_fn=grad_fn)
    assert len(seen) == 1 and assert_zero_outside(mask, seen) == 2
    assert assert_zero_outside(mask, (optax.apply_updates(params, updates), state)) == 4


def test_what_is_missing_or_does_not_fit_is_named():
    params = random_tree(0)
    mask, tx = masks.ones(params), hwa_jax.sparse_update(optax.adam(RATE))
    state = tx.init(params)
    with pytest.raises(ValueError, match="mask=None; call update"):
        tx.update(params, state, params)
    with pytest.raises(ValueError, match="params=None; call update"):
        tx.update(params, state, mask=mask)
    with pytest.raises(ValueError, match=r"mask of first/kernel has shape \(7,\), the weights \(7, 5\)"):
        tx.update(params, state, params, mask=mask | {"first": {"kernel": jnp.ones(7, bool), "bias": optax.MaskedNode()}})
    with pytest.raises(ValueError, match="map_params cannot tell.*optax.flatten"):
        hwa_jax.sparse_update(optax.flatten(optax.adam(RATE))).init(params)
    labels = lambda tree: {layer: {"kernel": "w", "bias": "b"} for layer in tree.keys()}
    by_name = optax.partition({"w": optax.sgd(RATE), "b": optax.sgd(RATE)}, labels)
    with pytest.raises(ValueError, match="labels of optax.partition as a tree"):
        hwa_jax.sparse_update(by_name).init(params)


ARRANGEMENTS = {
    "inside": lambda tx, every, axis: hwa_jax.with_online_average(hwa_jax.sparse_update(tx), every, axis, optimizer_state="average"),
    "reset": lambda tx, every, axis: hwa_jax.with_online_average(hwa_jax.sparse_update(tx), every, axis, optimizer_state="reset"),
    "outside": lambda tx, every, axis: hwa_jax.sparse_update(hwa_jax.with_online_average(tx, every, axis)),
    "chained": lambda tx, every, axis: optax.chain(hwa_jax.sparse_update(tx), hwa_jax.online_average(every, axis)),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("layout", ["vmap", "stacked"])
def test_averaged_particles_stay_masked_and_agree(arrangement, layout):
    # The mask is one particle's, unbatched; it changes at step 3, where particles are averaged: dense weights meet a mask.
    axis = "particle" if layout == "vmap" else None
    tx = ARRANGEMENTS[arrangement](lookahead(optax.adamw(RATE), 2, 0.5), 3, axis)
    one = stepper(tx)
    step = jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None), axis_name=axis) if axis else one)
    params = particles.stack([random_tree(i) for i in range(3)])
    state = jax.vmap(tx.init)(params) if axis else tx.init(params)
    dense = masks.ones(random_tree(0))
    sparse = masks.prune_by_magnitude(random_tree(0), dense, 0.6)
    for i, mask in enumerate([dense, dense, sparse, sparse, sparse, sparse]):
        params, state = step(params, state, particles.stack([random_tree(10 * i + j) for j in range(3)]), mask)
        assert assert_zero_outside(mask, (params, state)) >= 8
        assert (float(particles.spread(params)) < 1e-6) == (i in (2, 5))
    assert step._cache_size() <= 2
    jax.tree.map(np.testing.assert_array_equal, masks.mean(sparse, params), particles.mean(params))


def test_online_offline_and_sparse_at_once(tmp_path):
    # Four particles on two devices; outer weights go to the window, every step to a uniform average.
    tx = hwa_jax.with_online_average(hwa_jax.sparse_update(optax.adamw(RATE)), 2, ("device", "particle"))
    average = hwa_jax.uniform_average()

    def one(params, state, averaged, grads, mask):
        params, state = stepper(tx)(params, state, grads, mask)
        return params, state, average.update(averaged, params)

    mesh = particles.device_mesh(jax.devices()[:2])
    step = jax.jit(particles.vectorize(one, in_axes=(0, 0, 0, 0, None), mesh=mesh))
    start = random_tree(0)
    mask = masks.prune_by_magnitude(start, masks.ones(start), 0.7)
    start = masks.apply(mask, start)
    params, state, averaged = (particles.replicate(tree, 4) for tree in (start, tx.init(start), average.init(start)))
    members = []
    with hwa_jax.WindowStore(tmp_path / "window", size=2) as window:
        for i in range(6):
            grads = particles.stack([random_tree(10 * i + j) for j in range(4)])
            params, state, averaged = step(params, state, averaged, grads, mask)
            if i % 2:
                members.append(masks.mean(mask, params))
                window.push(i, members[-1])
    with hwa_jax.WindowStore(tmp_path / "window", size=2) as window:
        offline = window.mean()
    everything = (params, state, averaged, members, offline, particles.mean(average.value(averaged)))
    # weights, mu, nu, their average; three outer weights, the window's mean and the mean of averages: two kernels each
    assert assert_zero_outside(mask, everything) == 2 * (4 + 3 + 1 + 1)
    expected = jax.tree.map(lambda a, b: (np.float64(a) + np.float64(b)) / 2, *members[-2:])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), offline, expected)
    kept = np.asarray(mask["first"]["kernel"])
    assert (offline["first"]["kernel"][kept] != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "adabelief", "adadelta", "adagrad", "adamax", "adan", "amsgrad", "fromage", "lars", "lion", "nadamw", "noisy_sgd", "novograd",
    "optimistic_gradient_descent", "radam", "rmsprop", "rprop", "sign_sgd", "signum", "sm3", "yogi",
])
def test_zeros_are_exact_under_the_other_optimizers_of_optax(name):
    if not hasattr(optax, name):
        pytest.skip("not in this version of optax")
    tx, params = hwa_jax.sparse_update(getattr(optax, name)(RATE)), random_tree(0)
    step, state = jax.jit(stepper(tx)), tx.init(params)
    for i, mask in enumerate([masks.ones(params), *two_masks(params)]):
        for j in range(2):
            params, state = step(params, state, random_tree(2 * i + j), mask)
            assert assert_zero_outside(mask, (params, state)) >= 2
