"""Whole models: published sizes, shapes, precision, statistics, and the trip through pytrees."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hwa_jax import models
from hwa_jax.conv import conv_general_dilated
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

SMALL = ("mlp", "cnn_s", "resnet8", "wrn-10-1")
FAMILIES = (*SMALL, "resnet18", "resnet50", "vgg16")
EVERY = (*(name for name in models.NAMES if name != "wrn-D-k"), "wrn-16-4", "wrn-28-10")


@functools.cache
def _built(name, seed, settings):
    arguments = {"input_shape": (8, 8, 3), "num_classes": 10} | dict(settings)
    return models.create(name, rngs=nnx.Rngs(seed), **arguments)


def build(name, *, seed=0, **settings):
    return nnx.clone(_built(name, seed, tuple(settings.items())))


@functools.cache
def abstract(name, *, input_shape=(32, 32, 3), num_classes=10, **settings):
    def make():
        arguments = {"input_shape": input_shape, "num_classes": num_classes} | settings
        return models.create(name, rngs=nnx.Rngs(0), **arguments)

    return nnx.eval_shape(make)


def abstract_logits(model, input_shape, batch=2):
    images = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)
    return nnx.eval_shape(lambda module, x: module(x), model, images)


def count(model, kind=nnx.Param):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, kind)))


def images(batch=4, shape=(8, 8, 3), seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "input_shape", "num_classes", "published", "exact"),
    [
        # Frankle & Carbin 2019, figure 2: 266K.
        ("mlp", (28, 28, 1), 10, "0.27", 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10),
        # 3x3x1x16+16, 3x3x16x32+32, 3x3x32x64+64, and a 4x4x64 map into 10 classes.
        ("cnn_s", (28, 28, 1), 10, "0.03", 160 + 4640 + 18496 + 10250),
        ("cnn_m", (28, 28, 1), 10, "0.11", 320 + 18496 + 73856 + 20490),
        # He et al. 2016, table 6.
        ("resnet20", (32, 32, 3), 10, "0.27", 269_722),
        ("resnet32", (32, 32, 3), 10, "0.46", 464_154),
        ("resnet56", (32, 32, 3), 10, "0.85", 853_018),
        ("resnet18", (32, 32, 3), 10, "11.17", 11_173_962),
        ("resnet50", (224, 224, 3), 1000, "25.56", 25_557_032),
        # Zagoruyko & Komodakis 2016, tables 4 and 5.
        ("wrn-16-4", (32, 32, 3), 10, "2.7", 2_748_890),
        ("wrn-16-8", (32, 32, 3), 10, "11.0", 10_961_370),
        ("wrn-28-10", (32, 32, 3), 10, "36.5", 36_479_194),
        ("wrn-40-4", (32, 32, 3), 10, "8.9", 8_949_210),
        ("vgg16", (32, 32, 3), 10, "14.7", 14_724_042),
        ("vgg19", (32, 32, 3), 10, "20.0", 20_035_018),
    ],
)
def test_parameter_count_is_the_published_one(name, input_shape, num_classes, published, exact):
    total = count(abstract(name, input_shape=input_shape, num_classes=num_classes))
    assert total == exact
    decimals = len(published.partition(".")[2])
    assert f"{total / 1e6:.{decimals}f}" == published


def test_cifar_resnet_count_follows_from_the_layers():
    # n blocks per group of c channels: the first block has c/2 -> c and c -> c, the others c -> c.
    def expected(n):
        total = 3 * 16 * 9 + 2 * 16 + 64 * 10 + 10
        for in_channels, channels in ((16, 16), (16, 32), (32, 64)):
            total += 9 * in_channels * channels + (2 * n - 1) * 9 * channels**2
            total += 2 * n * 2 * channels
        return total

    for name, n in (("resnet8", 1), ("resnet20", 3), ("resnet56", 9)):
        assert count(abstract(name)) == expected(n)


def test_wrn_depths_counted_with_and_without_shortcuts_are_the_same_network():
    assert nnx.graphdef(abstract("wrn-34-4")) == nnx.graphdef(abstract("wrn-32-4"))
    assert count(abstract("wrn-28-4")) < count(abstract("wrn-32-4")) == 7_399_130
    groups = nnx.to_pure_dict(nnx.state(abstract("wrn-32-4"), nnx.Param))["blocks"]
    assert [sum(name.startswith(f"group{g}_") for name in groups) for g in (1, 2, 3)] == [5, 5, 5]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("input_shape", [(7, 5, 2), (1, 1, 1)])
def test_any_image_size_gives_logits_and_no_map_is_ever_empty(name, input_shape):
    graphdef, state = nnx.split(abstract(name, input_shape=input_shape, num_classes=7))
    x = jax.ShapeDtypeStruct((2, *input_shape), jnp.float32)
    program = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    (logits,) = program.out_avals
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    # The mean over an empty map has the right shape too.
    assert all(var.aval.size > 0 for equation in program.eqns for var in equation.outvars)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_norm_decides_parameters_statistics_and_biases(name, norm):
    model = abstract(name, norm=norm)
    assert abstract_logits(model, (32, 32, 3)).shape == (2, 10)
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    scales = [path for path, _ in params if path[-1] == "scale"]
    biases = [path for path, _ in params if path[-1] == "bias"]
    kernels = [path for path, _ in params if path[-1] == "kernel"]
    assert bool(scales) == (norm != "none")
    assert (count(model, nnx.BatchStat) > 0) == (norm == "batch")
    # Every layer has exactly one bias: a convolution's own, or that of the norm after it. Only in
    # pre-activation networks norms and convolutions do not come in pairs.
    if norm == "none" or "wrn" not in name:
        assert len(biases) == len(kernels)
    assert all(path[-2] in ("norm", "norm1", "norm2", "classifier") for path in biases) == (
        norm != "none"
    )


@pytest.mark.parametrize("name", EVERY)
def test_default_norm_is_the_architectures_own(name):
    has_statistics = count(abstract(name), nnx.BatchStat) > 0
    assert has_statistics == (name not in ("mlp", "cnn_s", "cnn_m"))


@pytest.mark.parametrize("name", SMALL)
def test_forward_pass_is_finite_and_differs_between_images(name):
    model = build(name)
    logits = np.asarray(nnx.jit(lambda module, x: module(x))(model, images()))
    assert logits.shape == (4, 10)
    assert np.isfinite(logits).all()
    assert len(np.unique(logits[:, 0])) == 4


@pytest.mark.parametrize("name", SMALL)
def test_bf16_compute_keeps_fp32_parameters_statistics_and_logits(name):
    settings = {"norm": "batch"}
    half, full = build(name, dtype=jnp.bfloat16, **settings), build(name, **settings)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    run = nnx.jit(lambda module, x: module(x))
    for module in (half, full):
        module.train()
    y_half, y_full = run(half, images()), run(full, images())
    assert y_half.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    error = np.linalg.norm(y_half - y_full) / np.linalg.norm(y_full)
    # bf16 keeps 8 bits: more than fp32's rounding, so it was used, and not much more than 2**-8.
    assert 1e-4 < error < 5e-2


def test_float64_compute_keeps_float64_logits():
    with jax.enable_x64(True):
        model = abstract("mlp", dtype=jnp.float64)
        assert abstract_logits(model, (32, 32, 3)).dtype == jnp.float64


def test_mlp_against_numpy():
    model = build("mlp")
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(model)))
    x = np.asarray(images(), np.float64).reshape(4, -1)
    x = np.maximum(x @ p["dense1"]["kernel"] + p["dense1"]["bias"], 0)
    x = np.maximum(x @ p["dense2"]["kernel"] + p["dense2"]["bias"], 0)
    expected = x @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    np.testing.assert_allclose(model(images()), expected, rtol=1e-4, atol=1e-5)


def test_train_and_eval_differ_and_only_train_moves_the_statistics():
    model = build("resnet8")
    run = nnx.jit(lambda module, x: module(x))
    before = nnx.clone(nnx.state(model, nnx.BatchStat))
    model.eval()
    y_eval = run(model, images())
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model, nnx.BatchStat))
    model.train()
    y_train = run(model, images())
    assert not np.allclose(y_train, y_eval, atol=1e-2)
    after = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(after["stem"]["norm"]["mean"]))


def test_group_norm_is_per_image():
    model = build("resnet8", norm="group")
    run = nnx.jit(lambda module, x: module(x))
    alone = run(model, images()[:1])
    np.testing.assert_allclose(run(model, images())[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "norm"), [("mlp", "none"), ("cnn_s", "batch"), ("resnet8", "batch")]
)
def test_vmap_over_stacked_parameters_equals_one_by_one(name, norm):
    built = [build(name, norm=norm, seed=seed) for seed in range(3)]
    graphdef, _, _ = nnx.split(built[0], nnx.Param, nnx.BatchStat)
    trees = [
        tuple(nnx.to_pure_dict(state) for state in nnx.split(model, nnx.Param, nnx.BatchStat)[1:])
        for model in built
    ]

    def forward(params, batch_stats, x):
        model = nnx.merge(graphdef, nnx.State(params), nnx.State(batch_stats))
        logits = model(x)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    together = jax.jit(jax.vmap(forward, in_axes=(0, 0, None)))(*stacked, images())
    single = jax.jit(forward)
    for index, (params, batch_stats) in enumerate(trees):
        expected = single(params, batch_stats, images())
        member = jax.tree.map(lambda leaf: leaf[index], together)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), member, expected
        )


@pytest.mark.parametrize("name", EVERY)
def test_paths_are_strings_and_the_model_survives_the_trip(name):
    # Integer keys come back from checkpoints as strings.
    model = abstract(name)
    graphdef, state = nnx.split(model)
    pure = nnx.to_pure_dict(state)
    paths = jax.tree_util.tree_leaves_with_path(pure)
    assert all(isinstance(key.key, str) for path, _ in paths for key in path)
    again = nnx.merge(graphdef, nnx.State(pure))
    assert abstract_logits(again, (32, 32, 3)).shape == (2, 10)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_models_of_a_kind_share_one_compiled_program(name):
    first, second = abstract(name), abstract.__wrapped__(name)
    assert first is not second
    assert nnx.graphdef(first) == nnx.graphdef(second)
    assert hash(nnx.graphdef(first)) == hash(nnx.graphdef(second))


def test_convolutions_use_the_particle_aware_hook():
    for name in ("cnn_s", "resnet50", "wrn-16-4", "vgg16"):
        hooks = [
            module.conv_general_dilated
            for _, module in nnx.iter_graph(abstract(name))
            if isinstance(module, nnx.Conv)
        ]
        assert hooks
        assert all(hook is conv_general_dilated for hook in hooks)


def test_same_seed_same_weights_and_another_seed_others():
    arguments = {"num_classes": 10, "input_shape": (8, 8, 3)}
    again = models.create("cnn_s", rngs=nnx.Rngs(0), **arguments)
    first, other = build("cnn_s"), build("cnn_s", seed=1)
    leaves = [jax.tree.leaves(nnx.state(model)) for model in (first, again, other)]
    assert all(jnp.array_equal(a, b) for a, b in zip(leaves[0], leaves[1]))
    kernels = [(a, b) for a, b in zip(leaves[0], leaves[2]) if a.ndim > 1]
    assert not any(jnp.array_equal(a, b) for a, b in kernels)
