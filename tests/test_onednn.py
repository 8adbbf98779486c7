"""oneDNN's convolutions, where they are built: the numbers of lax, only where they are asked for."""

import ctypes
import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conv_cases import GEOMETRIES, assert_same_as_lax, nonlinear, random_pair

from hwa_jax import UserError, onednn
from hwa_jax.conv import conv_general_dilated
from hwa_jax.training.environment import environment

TESTS = Path(__file__).parent
built = pytest.mark.skipif(not onednn.is_built(), reason="oneDNN is not built: make onednn")


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    """Programs that were lowered with the other library are forgotten."""
    monkeypatch.setenv(onednn.SETTING, "onednn")
    jax.clear_caches()
    yield
    jax.clear_caches()


def is_called(convolve, options, *operands):
    program = jax.jit(jax.vmap(jax.grad(nonlinear(convolve, options), (0, 1))))
    return "hwa_jax_convolution" in program.lower(*operands).as_text()


@built
@pytest.mark.slow
def test_all_tests_of_the_convolution_hold():
    files = [TESTS / "test_conv.py", f"{TESTS / 'test_conv_programs.py'}::test_shard_map_around_vmap"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", *files]
    run = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert run.returncode == 0, run.stdout[-5000:]


@built
@pytest.mark.parametrize("name", GEOMETRIES)
def test_value_and_gradients_of_what_it_supports(name):
    lhs_shape, rhs_shape, options = GEOMETRIES[name]
    operands = random_pair(lhs_shape, rhs_shape, (3,), (3,))
    # Dilated input, batch groups and negative padding stay with XLA.
    supported = name not in ("transposed", "batch groups", "uneven")
    assert is_called(conv_general_dilated, options, *operands) == supported
    assert_same_as_lax(lambda f: jax.vmap(jax.value_and_grad(nonlinear(f, options), (0, 1))), *operands)


@built
def test_uneven_padding_and_dilated_windows():
    options = dict(window_strides=(2, 1), padding=[(2, 0), (1, 3)], rhs_dilation=(2, 3))
    operands = random_pair((3, 11, 9, 16), (3, 2, 16, 32), (2,), (2,))
    assert is_called(conv_general_dilated, options, *operands)
    assert_same_as_lax(lambda f: jax.vmap(jax.value_and_grad(nonlinear(f, options), (0, 1))), *operands)


@built
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_batches_that_threads_share(particles, batch):
    """Fewer particles than threads: parts of a batch, as even as they can be, and their sums."""
    options = dict(window_strides=(1, 1), padding="SAME")
    operands = random_pair((batch, 6, 6, 16), (3, 3, 16, 16), (particles,), (particles,))
    assert_same_as_lax(lambda f: jax.vmap(jax.value_and_grad(nonlinear(f, options), (0, 1))), *operands)


@built
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes_stay_with_xla(dtype):
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    assert not is_called(conv_general_dilated, options, *random_pair(lhs_shape, rhs_shape, (2,), (2,), dtype))


@built
def test_calls_at_once_do_not_disturb_each_other():
    options = dict(window_strides=(1, 1), padding="SAME")
    gradient = jax.jit(jax.vmap(jax.grad(nonlinear(conv_general_dilated, options), (0, 1))))
    pairs = [random_pair((8, 8, 8, 16), (3, 3, 16, 16), (n,), (n,)) for n in (1, 2, 3, 4)]
    expected = [jax.device_get(gradient(*pair)) for pair in pairs]
    with futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: jax.device_get(gradient(*pairs[i % 4])), range(64)))
    for index, gradients in enumerate(found):
        jax.tree.map(np.testing.assert_array_equal, gradients, expected[index % 4])


@built
def test_other_users_of_openmp_keep_their_threads():
    operands = random_pair(*GEOMETRIES["strided"][:2])
    openmp = ctypes.CDLL("libgomp.so.1")
    before = openmp.omp_get_max_threads()
    try:
        openmp.omp_set_num_threads(3)
        jax.block_until_ready(conv_general_dilated(*operands, **GEOMETRIES["strided"][2], dimension_numbers=("NHWC", "HWIO", "NHWC")))
        assert openmp.omp_get_max_threads() == 3
    finally:
        openmp.omp_set_num_threads(before)


def test_without_the_setting_xla_computes(monkeypatch):
    monkeypatch.delenv(onednn.SETTING)
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    assert not is_called(conv_general_dilated, options, *random_pair(lhs_shape, rhs_shape, (2,), (2,)))
    assert environment()["conv_library"] == "xla"


def test_the_setting_is_recorded():
    assert environment()["conv_library"] == "onednn"


def test_another_value_is_an_error(monkeypatch):
    monkeypatch.setenv(onednn.SETTING, "mkl")
    with pytest.raises(UserError, match="HWA_JAX_CONV=mkl: the only value is onednn"):
        onednn.switched_on()


def test_what_is_not_built_says_how(monkeypatch):
    monkeypatch.setattr(onednn, "is_built", lambda: False)
    onednn._register.cache_clear()
    lhs_shape, rhs_shape, options = GEOMETRIES["strided"]
    with pytest.raises(UserError, match="HWA_JAX_CONV=onednn: .* run `make onednn`"):
        is_called(conv_general_dilated, options, *random_pair(lhs_shape, rhs_shape, (2,), (2,)))


def test_a_build_without_the_extra_names_it(monkeypatch):
    monkeypatch.setattr(onednn, "_PACKAGE", "onednn-that-does-not-exist")
    assert not onednn.is_built()
    with pytest.raises(UserError, match="does-not-exist is not installed: run `make onednn`"):
        onednn.build()
