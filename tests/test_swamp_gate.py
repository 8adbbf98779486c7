"""The gate of SWAMP: average and particles compared on training images that no step has seen."""

import jax
import numpy as np
import pytest

from hwa_jax.algorithms import swamp
from hwa_jax.algorithms.pruning_run import PruningRun, Trained
from hwa_jax.storage.sparse_weights import load_sparse_weights
from pruning_runs import prune, pruning_setup, stacked_state
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def good(compiled_once, tmp_path_factory):  # noqa: F811
    """Weights of a dense network that has learned something."""
    directory = tmp_path_factory.mktemp("good")
    prune(directory, {"swamp.target_sparsity": 0.01, "swamp.fraction": 0.01})
    return load_sparse_weights(directory / "cycles" / "000" / "average.safetensors")[0]


def permuted(params, rng):
    """The same function of images by a network whose hidden units come in another order."""
    first, second = rng.permutation(300), rng.permutation(100)
    return {
        "dense1": {"kernel": params["dense1"]["kernel"][:, first], "bias": params["dense1"]["bias"][first]},
        "dense2": {"kernel": params["dense2"]["kernel"][first][:, second], "bias": params["dense2"]["bias"][second]},
        "classifier": {"kernel": params["classifier"]["kernel"][second], "bias": params["classifier"]["bias"]},
    }


@pytest.mark.parametrize("averaging", ["always", "when_safe"])
def test_the_gate(good, tmp_path, averaging):
    setup = pruning_setup({"swamp.averaging": averaging, "swamp.gate_fraction": 0.1, "swamp.swa": False})
    # Two equal functions whose average is none, and a worse one in front of the better.
    hurting = [jax.tree.map(lambda leaf: 0.5 * leaf, good), permuted(good, np.random.default_rng(0))]
    helping = [jax.tree.map(lambda leaf: leaf + 0.1 * np.sign(leaf), good), jax.tree.map(lambda leaf: leaf - 0.1 * np.sign(leaf), good)]
    for number, (trees, hurts) in enumerate([(hurting, True), (helping, False)]):
        with PruningRun(setup, tmp_path / str(number)) as run:
            solution = swamp.find_solution(run, Trained(setup, 0, setup.dense_mask(), stacked_state(setup, trees), {}))
        gate = solution.metrics["gate"]
        assert gate["averaging_hurts"] is hurts
        assert hurts == (gate["average"] > np.mean(gate["particles"]))
        chosen = "particle_1" if hurts and averaging == "when_safe" else "average"
        assert solution.metrics["solution"] == chosen
        expected = trees[1] if chosen == "particle_1" else jax.tree.map(lambda a, b: (a + b) / 2, *trees)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), solution.weights.params, expected)


@pytest.mark.parametrize(
    ("average", "losses", "best"),
    [
        (0.5, [0.4, 0.3], 1), (0.34, [0.4, 0.3], None), (0.3, [0.4, 0.3], None), (0.2, [0.4, 0.3], None), (np.nan, [0.4, 0.3], 1),
        (0.5, [np.nan, 0.4], 1), (0.5, [np.nan, np.inf], None), (np.nan, [np.nan, np.nan], None),
    ],
)
def test_the_gates_decision(average, losses, best):
    assert swamp.best_particle_if_averaging_hurts(average, losses) == best


def test_held_out_images_are_in_no_other_split():
    setup, without = pruning_setup({"swamp.gate_fraction": 0.2}), pruning_setup()
    splits = {name: getattr(setup, name) for name in ("held_out", "train", "validation", "test")}
    images = {name: {bytes(image) for image in np.asarray(split.images)} for name, split in splits.items()}
    assert setup.held_out.num_examples == 18 and setup.train.num_examples == 72 and setup.periods.epoch == 7
    assert not images["held_out"] & (images["train"] | images["validation"] | images["test"])
    np.testing.assert_array_equal(setup.validation.images, without.validation.images)
    assert images["held_out"] | images["train"] == {bytes(image) for image in np.asarray(without.train.images)}
