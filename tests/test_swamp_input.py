"""Bad input to SWAMP and IMP, one line each; layers pruned to nothing; files of pruned weights."""

import json
import shutil
import warnings

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hwa_jax import load_predictor, masks
from hwa_jax.algorithms import imp
from hwa_jax.algorithms.pruning_run import PruningRun
from hwa_jax.errors import UserError
from hwa_jax.storage.safetensors import save_weights
from hwa_jax.storage.sparse_weights import load_sparse_weights, save_sparse_weights
from hwa_jax.training.weights import Weights
from programs import ROOT, call
from pruning_runs import IMP, prune, pruning_setup
from training_runs import compilation_cache_dir, compiled_once, listing  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

REFUSED = {
    "nothing is prunable": ({"swamp.prunable": "kernels$"}, "prunable='kernels$' matches no parameter; paths look like"),
    "no regular expression": ({"swamp.prunable": "("}, "prunable='(' is no regular expression"),
    "no fraction": ({"swamp.fraction": 0.0}, "swamp.fraction=0.0: must be above 0 and below 1"),
    "everything": ({"swamp.fraction": 1.0}, "swamp.fraction=1.0: must be above 0 and below 1"),
    "not a fraction": ({"swamp.fraction": float("nan")}, "swamp.fraction=nan: must be above 0 and below 1"),
    "target of everything": ({"swamp.target_sparsity": 1.0}, "swamp.target_sparsity=1.0: must be above 0 and below 1"),
    "no particles": ({"swamp.num_particles": 0}, "swamp.num_particles=0: give a whole number of at least 1"),
    "empty schedule": ({"swamp.num_particles": ()}, "swamp.num_particles=(): give"),
    "unknown pruner": ({"swamp.pruner": "magic"}, "swamp.pruner='magic': give one of 'magnitude'"),
    "unknown gate": ({"swamp.averaging": "maybe"}, "swamp.averaging='maybe': give one of 'always', 'when_safe'"),
    "a gate without images": ({"swamp.averaging": "when_safe"}, "swamp.gate_fraction=0.0"),
    "SWA too late": ({"swamp.swa_start": "90%"}, "swamp.swa_start='90%', swamp.swa_period='2 steps': a cycle of 8 steps ends before"),
    "percent of what": ({"training.duration": "50%"}, "training.duration='50%': percent of what?"),
    "too many devices": ({"num_devices": 99}, "num_devices=99: JAX sees 8 devices"),
    "a small step": ({"swamp.fraction": 1e-6}, "swamp.fraction=1e-06: of the 50200 weights that remain in cycle 0 none would go"),
    # One weight for each of 300, 100 and 10 outputs.
    "a target beyond what stays": (
        {"swamp.keep_one_per_output": True, "swamp.target_sparsity": 0.995}, "of the 410 weights that remain in cycle 11 none would go",
    ),
    "diverged": ({"optimizer.learning_rate": 1e30}, "is not finite at step"),
}


@pytest.mark.parametrize(("fields", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_line(tmp_path, fields, words):
    with pytest.raises(UserError) as refused:
        prune(tmp_path, fields)
    assert words in str(refused.value) and "\n" not in str(refused.value)


PROGRAM = {
    "another program's configuration": ("hwa_digits.py", [], "swamp.averaging is missing in the configuration: get_config() begins"),
    "unknown field": ("swamp_digits.py", ["--config.swamp.num_particle=3"], "no field 'num_particle': did you mean 'num_particles'?"),
    "letters for a number": ("swamp_digits.py", ["--config.swamp.fraction=much"], "swamp.fraction=much"),
    "letters for N": ("swamp_digits.py", ["--config.swamp.num_particles=many"], "swamp.num_particles="),
    "a dry run": ("swamp_digits.py", ["--config.swamp.fraction=2.0", "--dry_run"], "swamp.fraction=2.0: must be above 0 and below 1"),
}


@pytest.mark.parametrize(("config", "flags", "words"), PROGRAM.values(), ids=PROGRAM)
def test_the_program_ends_with_one_line(tmp_path, monkeypatch, compiled_once, config, flags, words):  # noqa: F811
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled_once))
    ended = call("train_swamp.py", f"--config={ROOT / 'configs' / config}", f"--workdir={tmp_path / 'run'}", *flags)
    [line] = ended.stderr.splitlines()
    assert ended.code == 2 and line.startswith("error: ") and words in line
    assert listing(tmp_path) == {}


def test_imp_has_one_particle(tmp_path):
    with pytest.raises(UserError, match="swamp.num_particles=2: is 1 in iterative magnitude pruning"):
        prune(tmp_path, {**IMP, "swamp.num_particles": 2}, imp)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def pruned(compiled_once, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("pruned")
    prune(directory, {**IMP, "model.norm": "batch"})
    return directory


CHANGED = {
    "another N": ({"swamp.num_particles": 3}, "swamp.num_particles was 1, now 3"),
    "another fraction": ({"swamp.fraction": 0.2}, "swamp.fraction was 0.36, now 0.2"),
    "another model": ({"model.name": "cnn_s"}, "model.name was 'mlp', now 'cnn_s'"),
    "another cycle": ({"training.duration": "9 steps"}, "training.duration was '8 steps', now '9 steps'"),
    "a lower target": ({"swamp.target_sparsity": 0.2}, "swamp.target_sparsity=0.2: the run has already reached 0.5904 in cycle 2"),
}


@pytest.mark.parametrize(("fields", "words"), CHANGED.values(), ids=CHANGED)
def test_a_run_that_does_not_fit_its_directory(pruned, fields, words):
    before = listing(pruned)
    with pytest.raises(UserError) as refused:
        prune(pruned, {**IMP, "model.norm": "batch", **fields})
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert listing(pruned) == before


def test_a_damaged_cycle_is_named(pruned, tmp_path):
    shutil.copytree(pruned, tmp_path / "run")
    path = tmp_path / "run" / "cycles" / "001" / "average.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="001/average.safetensors: not a complete safetensors file"):
        prune(tmp_path / "run", {**IMP, "model.norm": "batch", "swamp.target_sparsity": 0.7})


def test_the_final_network_predicts(pruned):
    results = json.loads((pruned / "results.json").read_text())
    predict, test = load_predictor(pruned / "weights.safetensors"), pruning_setup().dataset.test
    accuracy = np.mean(np.asarray(predict(test.images)).argmax(1) == test.labels)
    assert accuracy == pytest.approx(results["final"]["average"]["test"]["accuracy"], abs=1e-6)


@pytest.mark.parametrize("keep_one", [False, True])
def test_a_layer_pruned_to_nothing(tmp_path, keep_one):
    setup = pruning_setup({"swamp.fraction": 0.5, "swamp.keep_one_per_output": keep_one})
    params, batch_stats = jax.device_get(setup.model.init(jax.random.key(0)))
    # 19,200 of the 25,100 weights that go.
    params["dense1"]["kernel"] = 1e-6 * params["dense1"]["kernel"]
    with PruningRun(setup, tmp_path) as run, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mask = run.prune(0, Weights(params, batch_stats), setup.dense_mask())
    assert masks.count(mask) == 25100
    assert int(mask["dense1"]["kernel"].sum()) == (300 if keep_one else 0)
    assert [("dense1/kernel" in str(warning.message)) for warning in caught] == ([] if keep_one else [True])


def test_training_goes_on_without_a_layer(tmp_path):
    # 50,200, 502 and 5 weights: three layers cannot all have some for long.
    with pytest.warns(UserWarning, match="pruning left no weight in .*/kernel; keep_one_per_output=True keeps one"):
        results = prune(tmp_path, {**IMP, "swamp.fraction": 0.99, "swamp.target_sparsity": 0.9999})
    densities = results["cycles"][-1]["density_per_layer"]
    assert [cycle["num_weights"] for cycle in results["cycles"]] == [50200, 502, 5] and 0.0 in densities.values()
    assert all(np.isfinite(metrics["nll"]) for metrics in results["final"]["average"].values())


def test_nan_weights_are_not_ranked(tmp_path):
    setup = pruning_setup()
    params, batch_stats = jax.device_get(setup.model.init(jax.random.key(0)))
    params["dense2"]["kernel"] = np.full_like(params["dense2"]["kernel"], np.nan)
    with PruningRun(setup, tmp_path) as run, pytest.raises(UserError, match="weights of dense2/kernel are NaN"):
        run.prune(0, Weights(params, batch_stats), setup.dense_mask())


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(0, 2**32 - 1), st.sampled_from(["float32", "float16"]))
def test_files_of_pruned_weights(tmp_path_factory, shape, seed, dtype):
    rng, path = np.random.default_rng(seed), tmp_path_factory.mktemp("sparse") / "w.safetensors"
    keep = rng.random(shape) < 0.3
    params = {"a": {"kernel": np.where(keep, rng.normal(size=shape), 0).astype(dtype), "bias": rng.normal(size=3)}}
    statistics = {"norm": {"mean": rng.normal(size=2)}}
    save_sparse_weights(path, params, statistics, {"a": {"kernel": keep, "bias": optax.MaskedNode()}})
    loaded = load_sparse_weights(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, (params, statistics, {"a": {"kernel": keep, "bias": optax.MaskedNode()}}))
    assert loaded[0]["a"]["kernel"].dtype == dtype


def test_a_file_of_pruned_weights_is_small_and_read_by_numpy(tmp_path):
    rng = np.random.default_rng(0)
    keep = rng.random((400, 500)) < 0.02
    kernel = np.where(keep, rng.normal(size=keep.shape), 0).astype(np.float32)
    save_sparse_weights(tmp_path / "w.safetensors", {"kernel": kernel}, {}, {"kernel": keep})
    assert (tmp_path / "w.safetensors").stat().st_size <= 0.06 * kernel.nbytes
    with safe_open(tmp_path / "w.safetensors", framework="np") as file:
        shape = json.loads(file.metadata()["hwa_jax"])["shapes"]["params/kernel"]
        dense = np.zeros(shape, np.float32)
        bits = np.unpackbits(file.get_tensor("params/kernel:mask"), count=dense.size)
        dense[bits.astype(bool).reshape(shape)] = file.get_tensor("params/kernel:values")
    np.testing.assert_array_equal(dense, kernel)


def test_dense_weights_are_no_pruned_ones(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"kernel": np.ones((2, 2))}, {})
    with pytest.raises(UserError, match="w.safetensors: not a file of pruned weights"):
        load_sparse_weights(tmp_path / "w.safetensors")
