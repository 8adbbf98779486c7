"""What goes wrong in other pruning and averaging codes, and not here; what else does has its test beside what it is about."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwa_jax import masks
from hwa_jax.algorithms import swamp
from hwa_jax.algorithms.pruning_run import PruningRun, Trained
from hwa_jax.training.together import alone
from hwa_jax.errors import UserError
from hwa_jax.storage.sparse_weights import load_sparse_weights, save_sparse_weights
from pruning_runs import prune, pruning_setup, stacked_state
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_magnitudes_are_not_normalized_by_layer():
    # Half of eight go: all of the layer of small weights. Divided by its norm, each layer would lose its two smallest.
    params = {"small": jnp.array([[1.0, 2.0, 3.0, 4.0]]), "large": jnp.array([[10.0, 20.0, 30.0, 40.0]])}
    with pytest.warns(UserWarning, match="no weight in small"):
        mask = masks.prune_by_magnitude(params, masks.ones(params), 0.5)
    assert mask["small"].tolist() == [[False] * 4] and mask["large"].tolist() == [[True] * 4]


def statistics_of_first_layer(setup, params, num_examples):
    """Mean and variance of what the first layer gives on training images, in float64; its inputs are the images themselves."""
    images = (setup.dataset.train.images[:num_examples] / 255.0 - np.float64(setup.dataset.mean)) / np.float64(setup.dataset.std)
    hidden = images.reshape(num_examples, -1) @ np.float64(params["dense1"]["kernel"])
    return hidden.mean(0), hidden.var(0)


def test_statistics_are_those_of_the_weights_that_are_evaluated_and_shipped(tmp_path):
    fields = {"model.norm": "batch", "swamp.recalibration_examples": 25}
    prune(tmp_path, fields)
    setup = pruning_setup(fields)
    for name in ("average", "particle_0", "particle_1"):
        params, batch_stats, _ = load_sparse_weights(tmp_path / "cycles" / "002" / f"{name}.safetensors")
        for key, expected in zip(("mean", "var"), statistics_of_first_layer(setup, params, 25)):
            np.testing.assert_allclose(batch_stats["norm1"][key], expected, rtol=1e-4, atol=1e-5, err_msg=f"{key} of {name}")


def test_particles_last_weights_have_statistics_of_their_own(tmp_path):
    # Without SWA a particle is its last weights.
    final = prune(tmp_path, {"model.norm": "batch", "swamp.swa": False, "swamp.target_sparsity": 0.01})["final"]
    for n in range(2):
        for split, metrics in final[f"particle_{n}"].items():
            assert final[f"last_{n}"][split] == pytest.approx(metrics, abs=1e-6)


def test_no_decision_looks_at_validation_or_test_images(tmp_path):
    # The same weights, and every label outside of the held-out images is wrong: the gate measures and decides the same.
    setup = pruning_setup({"swamp.gate_fraction": 0.1, "swamp.averaging": "when_safe", "swamp.swa": False})
    trees = [setup.model.init(jax.random.key(seed))[0] for seed in range(2)]
    wrong = {name: dataclasses.replace(getattr(setup, name), labels=(getattr(setup, name).labels + 1) % 10)
             for name in ("train", "validation", "test", "train_sample")}
    found = []
    for number, one in enumerate((setup, dataclasses.replace(setup, **wrong))):
        with PruningRun(one, tmp_path / str(number)) as run:
            found.append(swamp.find_solution(run, Trained(one, 0, one.dense_mask(), stacked_state(one, trees), {})).metrics)
    assert found[0]["gate"] == found[1]["gate"] and found[0]["solution"] == found[1]["solution"]
    assert found[0]["evaluation"]["average"]["test"] != found[1]["evaluation"]["average"]["test"]


def test_particles_under_different_masks_are_not_averaged():
    setup = pruning_setup({"swamp.num_particles": 3, "swamp.swa": False})
    params, dense = setup.model.init(jax.random.key(0))[0], setup.dense_mask()
    mask = masks.prune_by_magnitude(params, dense, 0.5)
    other = masks.prune(params, dense, 0.5, "random", key=jax.random.key(0))
    trees = [masks.apply(keep, params) for keep in (mask, other, mask)]
    trained = Trained(setup, 0, mask, stacked_state(setup, trees), {})
    with pytest.raises(UserError, match=r"^particle 1 has \d+ weights of \w+/kernel where the mask has none: particles that are"):
        swamp.average_of(trained, swamp.particle_weights(trained))


def test_a_stored_cycle_under_another_mask_is_refused(tmp_path):
    # A weight of the second cycle's files has moved to a place that the mask does not have.
    prune(tmp_path)
    path = tmp_path / "cycles" / "001" / "average.safetensors"
    params, batch_stats, mask = load_sparse_weights(path)
    kept = mask["classifier"]["kernel"]
    first, second = np.argwhere(kept)[0], np.argwhere(~kept)[0]
    kept[tuple(first)], kept[tuple(second)] = False, True
    save_sparse_weights(path, params, batch_stats, mask)
    with pytest.raises(UserError, match="differ in 2 of 1000 weights of classifier/kernel: particles that are averaged share one mask"):
        prune(tmp_path, {"swamp.target_sparsity": 0.7})


def test_all_particles_start_from_the_ticket(tmp_path):
    setup = pruning_setup({"swamp.num_particles": 4})
    with PruningRun(setup, tmp_path) as run:
        ticket = alone(run.train_ticket())
    mask = masks.prune_by_magnitude(ticket.params, setup.dense_mask(), 0.5)
    start = jax.device_get(setup.particles_at(ticket, mask))
    assert int(start.step) == int(ticket.step) == 4
    jax.tree.map(lambda leaf, one: np.testing.assert_array_equal(leaf, np.stack([one] * 4)), start.params, masks.apply(mask, ticket.params))
    jax.tree.map(lambda leaf, one: np.testing.assert_array_equal(leaf, np.stack([one] * 4)), start.opt_state, ticket.opt_state)
