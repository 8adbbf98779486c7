"""Sparse predictions: equal to dense ones whichever layers run in SciPy, and files that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from flax import nnx

from hwa_jax import load_predictor, load_sparse_predictor, masks
from hwa_jax.errors import UserError
from hwa_jax.models import layers
from hwa_jax.storage.safetensors import named_leaves
from hwa_jax.storage.sparse_weights import save_sparse_weights
from hwa_jax.training import latency, predictor, program_pieces
from hwa_jax.training.linear_layers import intercept
from hwa_jax.training.numpy_pieces import NumpyPiece
from hwa_jax.training.sparse_predictor import SparseNetwork, nearest
from sparse_networks import description, images_of, pruned_weights
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

NETWORKS = {
    "mlp": description("mlp", (8, 8, 1)),
    "mlp with BatchNorm": description("mlp", (8, 8, 1), "batch"),
    "cnn_s": description("cnn_s", (9, 8, 2)),
    "resnet8": description("resnet8", (8, 8, 3), "batch"),
}


def dense_logits(metadata, params, batch_stats, images):
    return np.asarray(predictor.predictor(predictor.network(metadata), (params, batch_stats), metadata)(images))


@pytest.mark.parametrize("metadata", [
    pytest.param(metadata, id=name, marks=[pytest.mark.slow] if name == "resnet8" else []) for name, metadata in NETWORKS.items()
])
def test_the_same_outputs_whichever_layers_are_sparse(metadata):
    weights = pruned_weights(metadata, 0.9)
    network, images = SparseNetwork(metadata, *weights), images_of(metadata, 3)
    expected = dense_logits(metadata, *weights[:2], images)
    assert np.ptp(expected) > 0.1
    kernels = list(network.matrices)
    assert sorted(kernels) == sorted(named_leaves({"params": weights[2]}))
    for chosen in ([], kernels[::2], kernels):
        program = network.program(3, chosen)
        found = program(images)
        assert found.dtype == np.float32 and isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(program(images), found)


@pytest.mark.parametrize(("batch_size", "in_numpy"), [(2, 4), (2100, 1)])
def test_between_sparse_layers_small_arrays_are_numpys_and_large_ones_the_compilers(batch_size, in_numpy, monkeypatch):
    metadata = NETWORKS["mlp with BatchNorm"]
    weights, images = pruned_weights(metadata, 0.9), images_of(metadata, batch_size)
    expected = dense_logits(metadata, *weights[:2], images)
    network, pieces = SparseNetwork(metadata, *weights), []

    class Spy(NumpyPiece):
        def __init__(self, equations, *rest):
            pieces.append(len(equations))
            super().__init__(equations, *rest)

    monkeypatch.setattr(program_pieces, "NumpyPiece", Spy)
    program = network.program(batch_size, list(network.matrices))
    # Images to the first layer, between the three, and behind the last; only the logits of 2,100 images are small.
    assert len(pieces) == in_numpy and len(program._steps) == 4 + 3
    np.testing.assert_allclose(program(images), expected, rtol=1e-5, atol=1e-5)


def test_a_program_holds_the_weights_that_it_uses():
    metadata = NETWORKS["mlp"]
    params, batch_stats, mask = pruned_weights(metadata, 0.75)
    network = SparseNetwork(metadata, params, batch_stats, mask)
    # 64·300 + 300·100 + 100·10 = 50,200 weights and 410 biases; mean and standard deviation of the images as [1, 1, 1, 1].
    assert network.program(1, []).num_bytes == 4 * (50200 + 410 + 2)
    # 8 bytes a weight, and for each matrix 4 bytes a row and 4 for the end.
    remaining = masks.count(mask)
    assert 12000 < remaining < 13000
    assert network.program(1, list(network.matrices)).num_bytes == 8 * remaining + 4 * (301 + 101 + 11) + 4 * (410 + 2)


def test_operations_are_counted_from_shapes():
    def flops(metadata):
        found = SparseNetwork(metadata, *pruned_weights(metadata, 0.5)).layers(2)
        return [layer.flops(int(np.prod(layer.kernel.shape))) // 2 for layer in found.values()]

    assert flops(description("mlp", (28, 28, 1))) == [2 * 784 * 300, 2 * 300 * 100, 2 * 100 * 10]
    # 3x3, stride 2: 9x8 pixels become 5x4, 3x2 and 2x1.
    assert flops(NETWORKS["cnn_s"]) == [2 * 20 * 9 * 2 * 16, 2 * 6 * 9 * 16 * 32, 2 * 2 * 9 * 32 * 64, 2 * 2 * 64 * 10]


@pytest.mark.parametrize(("size", "stride", "padding", "shape"), [
    (3, 1, None, (2, 5, 6)), (3, 2, "SAME", (1, 7, 6)), (2, 3, "VALID", (2, 5, 8)),
])
def test_a_convolution_is_one_matrix_times_columns(size, stride, padding, shape):
    layer = layers.conv(3, 4, size, stride=stride, padding=padding, dtype=jnp.float32, rngs=nnx.Rngs(0))
    images = np.random.default_rng(0).standard_normal((*shape, 3), np.float32)
    expected = layer(images)

    def as_matrix(found, inputs, kernel):
        assert found.num_columns == np.prod(expected.shape[:-1])
        return found.outputs(kernel.reshape(-1, 4).T @ found.columns(inputs))

    np.testing.assert_allclose(intercept(layer, as_matrix)(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"feature_group_count": 2}, {"kernel_dilation": 2}, {"input_dilation": (2, 1), "padding": 1}])
def test_convolutions_that_are_not_one_matrix_are_left_alone(options):
    layer = nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0), **options)
    images = jnp.ones((1, 6, 6, 4))
    expected = layer(images)

    def refuse(*_):
        raise AssertionError("intercepted")

    np.testing.assert_array_equal(intercept(layer, refuse)(images), expected)


def test_bfloat16_networks_have_float32_products():
    metadata = description("mlp", (8, 8, 1), dtype="bfloat16")
    weights, images = pruned_weights(metadata, 0.5), images_of(metadata, 2)
    network = SparseNetwork(metadata, *weights)
    found = network.program(2, list(network.matrices))(images)
    assert found.dtype == np.float32
    # bfloat16 has 8 bits: against float32 throughout, an error of about 2^-8 a layer.
    exact = dense_logits(NETWORKS["mlp"], *weights[:2], images)
    np.testing.assert_allclose(found, exact, atol=0.03 * np.abs(exact).max())


def test_layers_are_chosen_by_their_times(monkeypatch):
    metadata = NETWORKS["mlp"]
    network = SparseNetwork(metadata, *pruned_weights(metadata, 0.9))
    alone = iter([{"dense": 2.0, "csr": 1.0}, {"dense": 1.0, "csr": 2.0}, {"dense": 1.0, "csr": 9.0}])

    def times(together):
        def measure(calls):
            seconds = together if 0 in calls else next(alone)
            assert set(calls) == set(seconds)
            return seconds
        return measure

    # One by one 12 s against 4 s: all layers in CSR are not tried.
    monkeypatch.setattr(latency, "median_seconds", times({0: 3.0, 1: 2.0}))
    choice = latency.choose_layers(network, 2)
    assert choice.chosen == ["params/dense1/kernel"] and list(choice.layers) == list(network.matrices)
    alone = iter([{"dense": 2.0, "csr": 1.0}, {"dense": 1.0, "csr": 2.0}, {"dense": 1.0, "csr": 3.0}])
    monkeypatch.setattr(latency, "median_seconds", times({0: 1.0, 1: 2.0, 3: 3.0}))
    assert latency.choose_layers(network, 2).chosen == []
    # A gain of 4 % is noise.
    alone = iter([{"dense": 2.0, "csr": 1.0}, {"dense": 1.0, "csr": 2.0}, {"dense": 1.0, "csr": 3.0}])
    monkeypatch.setattr(latency, "median_seconds", times({0: 1.0, 1: 0.96, 3: 3.0}))
    assert latency.choose_layers(network, 2).chosen == []


def test_the_median_is_of_repeats_in_turns(monkeypatch):
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    called = []
    latency.median_seconds({name: lambda name=name: called.append(name) for name in "ab"})
    assert "".join(called) == "ab" * 6


def test_columns_that_would_fill_the_memory_are_not_tried(monkeypatch):
    metadata = NETWORKS["cnn_s"]
    network = SparseNetwork(metadata, *pruned_weights(metadata, 0.9))
    assert network.candidates(8) == list(network.matrices)
    # The second convolution has the most: 144 rows of 8 images times 6 pixels, against 18 × 160, 288 × 16 and 128 × 8.
    monkeypatch.setattr("hwa_jax.training.sparse_predictor._LARGEST_COLUMNS", 4 * 144 * 48 - 1)
    assert network.candidates(8) == [name for name in network.matrices if "block2" not in name]


@pytest.fixture
def written(tmp_path):
    """Writes a file of a pruned MLP with this metadata in addition; returns its path and the weights."""

    def write(**metadata):
        weights = pruned_weights(NETWORKS["mlp"], 0.9)
        save_sparse_weights(tmp_path / "w.safetensors", *weights, {**NETWORKS["mlp"], **metadata})
        return tmp_path / "w.safetensors", weights

    return write


def test_the_file_decides_by_batch_size(written, monkeypatch):
    path, weights = written(execution={"1": ["params/dense1/kernel"], "64": []})
    chosen = []
    program = SparseNetwork.program
    monkeypatch.setattr(SparseNetwork, "program", lambda self, n, names: chosen.append((n, list(names))) or program(self, n, names))
    predict = load_sparse_predictor(path)
    for n in (1, 2, 9, 2):
        images = images_of(NETWORKS["mlp"], n)
        np.testing.assert_allclose(predict(images), dense_logits(NETWORKS["mlp"], *weights[:2], images), rtol=1e-5, atol=1e-5)
    assert chosen == [(1, ["params/dense1/kernel"]), (2, ["params/dense1/kernel"]), (9, [])]


def test_a_file_without_decisions_runs_dense(written):
    path, weights = written()
    images = images_of(NETWORKS["mlp"], 2)
    np.testing.assert_allclose(load_sparse_predictor(path)(images), dense_logits(NETWORKS["mlp"], *weights[:2], images), rtol=1e-6)
    assert nearest({}, 3) == ()


def test_files_and_images_that_do_not_fit(written, tmp_path):
    path, (params, batch_stats, mask) = written()
    predict = load_sparse_predictor(path)
    for images, words in (
        (np.zeros((1, 8, 8, 1), np.float32), r"images are float32\[1, 8, 8, 1\]: give uint8"),
        (np.zeros((1, 8, 9, 1), np.uint8), r"images are uint8\[1, 8, 9, 1\]: give uint8"),
        (np.zeros((0, 8, 8, 1), np.uint8), "n at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            predict(images)
    with pytest.raises(UserError, match="holds pruned weights: read it with hwa_jax.load_sparse_predictor"):
        load_predictor(path)
    save_sparse_weights(tmp_path / "nameless.safetensors", params, batch_stats, mask)
    with pytest.raises(UserError, match="nameless.safetensors: does not say which network"):
        load_sparse_predictor(tmp_path / "nameless.safetensors")
    path, _ = written(model={**NETWORKS["mlp"]["model"], "num_classes": 11})
    with pytest.raises(UserError, match=r"w.safetensors: params/classifier/bias is float32\[10\], in the network it is float32\[11\]"):
        load_sparse_predictor(path)


def test_matrices_hold_what_remains():
    metadata = NETWORKS["cnn_s"]
    params, batch_stats, mask = pruned_weights(metadata, 0.9)
    network = SparseNetwork(metadata, params, batch_stats, mask)
    assert all(isinstance(matrix, scipy.sparse.csr_array) for matrix in network.matrices.values())
    assert sum(matrix.nnz for matrix in network.matrices.values()) == masks.count(mask)
