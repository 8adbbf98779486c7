"""SWAMP and IMP against the algorithms written out, by hand for three weights and in NumPy for a network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hwa_jax import data, masks
from hwa_jax.algorithms import imp, swamp
from hwa_jax.algorithms.pruning_run import PruningRun, Trained
from hwa_jax.training.together import alone
from hwa_jax.data.batches import epoch_indices
from hwa_jax.storage.safetensors import named_leaves
from hwa_jax.training import setup as training_setup
from hwa_jax.training.evaluation import Evaluator
from hwa_jax.training.functional import FunctionalModel, from_nnx
from compilations import compilations
from pruning_runs import IMP, cycle_weights, prune, pruning_config, pruning_setup, stacked_state
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")
KERNELS = ("dense1/kernel", "dense2/kernel", "classifier/kernel")


def three_weights(target):
    """A model of three weights w whose gradient is w - target, if all labels are 0."""

    def train(params, batch_stats, images, key):
        height = ((params["kernel"] - jnp.array(target)) ** 2).sum()
        # The logits are (0, 0) whatever w, the probabilities (1/2, 1/2), and the loss moves by 1/2 of what the second logit does.
        second = jnp.broadcast_to(height - jax.lax.stop_gradient(height), len(images))
        return jnp.stack([jnp.zeros_like(second), second], axis=1), batch_stats

    return FunctionalModel(
        lambda key: ({"kernel": jnp.array([0.0, 2.0, 0.0])}, {}), train, lambda params, stats, images: jnp.zeros((len(images), 2)), None
    )


def test_three_weights_by_hand(tmp_path):
    # Rate 1/2, momentum 1/2: v = v/2 + (w - c), w = w - v/2, with c = (4, 1, -2).
    #   ticket   w = (0, 2, 0)                      v = (-4, 1, 2)     w = (2, 1.5, -1)
    #   cycle 0  v = (-2, 0.5, 1) + (-2, 0.5, 1) = (-4, 1, 2)          w = (4, 1, -2); 1 is the smallest, round(0.34 * 3) = 1 goes
    #   cycle 1  from (2, 0, -1) and v of the ticket                   w = (4, 0, -2); -2 goes, round(0.34 * 2) = 1
    #   cycle 2  from (2, 0, 0)                                        w = (4, 0, 0), 2/3 are pruned
    # Without rewinding, cycle 1 would go on from 4; with fresh momentum it would end at 3.
    setup = pruning_setup({
        **IMP, "optimizer.learning_rate": 0.5, "optimizer.weight_decay": 0.0, "training.duration": "1 steps",
        "swamp.ticket_duration": "1 steps", "swamp.fraction": 0.34, "swamp.target_sparsity": 0.6,
    })
    model = three_weights([4.0, 1.0, -2.0])
    setup = dataclasses.replace(
        setup, model=model, evaluator=Evaluator(model, setup.dataset.mean, setup.dataset.std, batch_size=64, mesh=setup.mesh),
        **{name: dataclasses.replace(split, labels=jnp.zeros_like(split.labels)) for name in ("train", "validation", "test", "train_sample")
           for split in [getattr(setup, name)]},
    )
    results = imp.run(setup, tmp_path)
    expected = [([4, 1, -2], [1, 1, 1]), ([4, 0, -2], [1, 0, 1]), ([4, 0, 0], [1, 0, 0])]
    assert len(results["cycles"]) == 3
    for cycle, (weights, mask) in enumerate(expected):
        params, kept = cycle_weights(tmp_path, cycle)
        np.testing.assert_allclose(params["kernel"], weights, rtol=1e-6)
        np.testing.assert_array_equal(kept["kernel"], np.bool_(mask))
        np.testing.assert_array_equal(params["kernel"] == 0, ~np.bool_(mask))


def logits(params, images):
    """Of the multilayer perceptron, in the dtype of its weights."""
    x = images
    for layer in ("dense1", "dense2"):
        x = jnp.maximum(x @ params[f"{layer}/kernel"] + params[f"{layer}/bias"], 0)
    return x @ params["classifier/kernel"] + params["classifier/bias"]


def loss(params, images, labels):
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


gradient = jax.jit(jax.grad(loss))
order = jax.jit(lambda part, particle, epoch: epoch_indices(
    jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), part), particle, epoch, num_examples=90, batch_size=10
))


def oracle(params, num_cycles, num_particles=1, swa=False, previous=False):
    """Averages and masks of every cycle: T0 = 4, T = 8, SWA from step 4 of a cycle, every 2 steps."""
    config = pruning_config().data
    dataset = data.load("digits", num_train=config.num_train, validation_fraction=config.validation_fraction)
    images, labels = ((dataset.train.images / 255 - dataset.mean) / dataset.std).reshape(90, -1).astype(np.float32), dataset.train.labels

    def train(params, moments, mask, part, particle, steps):
        collected = []
        for step in steps:
            batch = order(part, particle, step // 9)[step % 9]
            gradients = gradient(params, images[batch], labels[batch])
            rate = 0.02 if swa and step >= 4 + 4 else 0.05
            for name in params:
                g = np.asarray(gradients[name]) + (0.01 * params[name] if name in KERNELS else 0)
                moments = {**moments, name: mask[name] * (0.5 * moments[name] + g)}
                params = {**params, name: mask[name] * (params[name] - rate * moments[name])}
            if swa and step + 1 in (10, 12):
                collected.append(params)
        return mean(collected) if collected else params, moments

    zero = {name: np.zeros_like(leaf) for name, leaf in params.items()}
    mask = {name: np.ones(leaf.shape, bool) for name, leaf in params.items()}
    start, moments = ticket = train(params, zero, mask, 0, 0, range(4))
    for cycle in range(num_cycles):
        origin = {name: start[name] * mask[name] for name in start}
        average = mean([train(origin, moments, mask, cycle + 1, n, range(4, 12))[0] for n in range(num_particles)])
        yield average, mask
        magnitudes = np.concatenate([np.where(mask[name], abs(average[name]), np.inf).ravel() for name in sorted(KERNELS)])
        flat = np.concatenate([mask[name].ravel() for name in sorted(KERNELS)])
        flat[np.argsort(magnitudes, kind="stable")[: round(0.36 * flat.sum())]] = False
        ends = np.cumsum([mask[name].size for name in sorted(KERNELS)])
        mask = {**mask, **{n: part.reshape(mask[n].shape) for n, part in zip(sorted(KERNELS), np.split(flat, ends[:-1]))}}
        start, moments = (average, zero) if previous else ticket


def mean(trees):
    return {name: np.mean([tree[name] for tree in trees], axis=0) for name in trees[0]}


def assert_equals_oracle(directory, num_cycles, **keywords):
    params, _ = pruning_setup().model.init(jax.random.fold_in(jax.random.key(0), 0))
    start = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    for cycle, (average, mask) in enumerate(oracle(start, num_cycles, **keywords)):
        mine, kept = cycle_weights(directory, cycle)
        assert set(kept) == set(KERNELS)
        for name in kept:
            np.testing.assert_array_equal(kept[name], mask[name], err_msg=f"mask of {name} in cycle {cycle}")
        for name in average:
            np.testing.assert_allclose(mine[name], average[name], rtol=0, atol=1e-6, err_msg=f"{name} in cycle {cycle}")


@pytest.fixture(scope="module")
def pruned(compiled_once, tmp_path_factory):  # noqa: F811
    """SWAMP with two particles and SWA, three cycles."""
    directory = tmp_path_factory.mktemp("swamp")
    return directory, prune(directory)


@pytest.fixture(scope="module")
def pruned_by_imp(compiled_once, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("imp")
    return directory, prune(directory, IMP, imp)


def test_one_particle_without_swa_is_imp(pruned_by_imp, tmp_path):
    directory, results = pruned_by_imp
    assert_equals_oracle(directory, 3)
    mine = prune(tmp_path, IMP)
    assert mine["final"] == results["final"]
    for cycle in range(3):
        jax.tree.map(np.testing.assert_array_equal, cycle_weights(tmp_path, cycle), cycle_weights(directory, cycle))


def test_two_particles_with_swa(pruned):
    directory, results = pruned
    assert len(results["cycles"]) == 3
    assert_equals_oracle(directory, 3, num_particles=2, swa=True)
    # Each particle is a network of its own under the same mask, and the average is their mean.
    ours, [first, second] = cycle_weights(directory, 2), [cycle_weights(directory, 2, f"particle_{n}") for n in range(2)]
    jax.tree.map(np.testing.assert_array_equal, first[1], ours[1])
    assert max(abs(first[0][name] - second[0][name]).max() for name in KERNELS) > 1e-4
    for name in KERNELS:
        np.testing.assert_allclose((first[0][name] + second[0][name]) / 2, ours[0][name], rtol=0, atol=1e-7)


def test_a_cycle_may_start_from_the_previous_average(tmp_path):
    prune(tmp_path, {**IMP, "swamp.rewind": "previous"})
    assert_equals_oracle(tmp_path, 3, previous=True)


def test_particles_by_cycle(pruned_by_imp, tmp_path):
    results = prune(tmp_path, {**IMP, "swamp.num_particles": (1, 2)})
    assert [cycle["num_particles"] for cycle in results["cycles"]] == [1, 2, 2]
    # The first cycle is that of one particle.
    jax.tree.map(np.testing.assert_array_equal, cycle_weights(tmp_path, 0), cycle_weights(pruned_by_imp[0], 0))
    assert_equals_oracle(tmp_path, 1)


def test_density_is_the_recursion(pruned):
    remaining = size = 64 * 300 + 300 * 100 + 100 * 10
    for metrics in pruned[1]["cycles"]:
        assert metrics["num_weights"] == remaining
        assert metrics["sparsity"] == (size - remaining) / size
        layers = zip((1000, 19200, 30000), (metrics["density_per_layer"][name] for name in sorted(KERNELS)))
        assert sum(size * density for size, density in layers) == pytest.approx(remaining, abs=1e-6)
        remaining -= round(0.36 * remaining)
    # 1, 0.64 and 0.41: the third is the first with half of the weights gone.
    assert pruned[1]["sparsity"] >= 0.5 > pruned[1]["cycles"][1]["sparsity"]


OPTIMIZERS = {
    "momentum and decay": {"optimizer.weight_decay": 0.1, "optimizer.momentum": 0.9},
    "adamw and lookahead": {"optimizer.name": "adamw", "optimizer.wrapper": "lookahead", "optimizer.lookahead_period": 2},
}


@pytest.mark.parametrize("fields", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_pruned_weights_are_zero_everywhere(tmp_path, fields):
    setup = pruning_setup({**fields, "training.duration": "5 steps"})
    rng = np.random.default_rng(0)
    mask = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < 0.3), setup.dense_mask())
    with PruningRun(setup, tmp_path) as run:
        trained = alone(run.train_particles(0, 2, alone(run.train_ticket()), mask))
    outside = {keep.shape: ~np.asarray(keep) for keep in jax.tree.leaves(mask)}
    looked_at = 0
    for leaf in jax.tree.leaves(jax.device_get((trained.state.params, trained.state.opt_state, trained.state.ema))):
        if leaf.shape[1:] in outside:
            assert (leaf[:, outside[leaf.shape[1:]]] == 0).all() and leaf.any()
            looked_at += 1
    # Weights and SWA; a momentum, or two moments, slow weights and what Lookahead holds of them.
    assert looked_at >= 3 * 3


def test_the_order_of_particles_does_not_matter():
    setup = pruning_setup({"swamp.num_particles": 3, "swamp.swa": False})
    trees = [setup.model.init(jax.random.key(seed))[0] for seed in range(3)]
    mask, found = setup.dense_mask(), []
    for permutation in ([0, 1, 2], [2, 0, 1], [1, 0, 2]):
        trained = Trained(setup, 0, mask, stacked_state(setup, [trees[n] for n in permutation]), {})
        average = swamp.average_of(trained, swamp.particle_weights(trained))
        found.append((average.params, masks.prune_by_magnitude(average.params, mask, 0.5)))
    for average, pruned_mask in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), average, found[0][0])
        jax.tree.map(np.testing.assert_array_equal, pruned_mask, found[0][1])


def in_float64(build, *, data_axis):
    """The test's own perceptron with weights in float64, from those that `build` draws; no batches are shared."""
    assert data_axis is None
    model = from_nnx(build)

    def init(key):
        params, batch_stats = model.init(key)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params), batch_stats

    def predict(params, batch_stats, images):
        return logits(named_leaves(params), images.reshape(len(images), -1).astype(jnp.float64))

    return FunctionalModel(init, lambda *args: (predict(*args[:3]), args[1]), predict, None)


@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-5), (True, 1e-9)], ids=["float32", "float64"])
def test_eight_devices_against_one(tmp_path, monkeypatch, x64, tolerance):
    # The ticket has 4 steps, a cycle 16; the second one is under a mask that the first has pruned.
    fields = {"swamp.num_particles": 8, "swamp.target_sparsity": 0.3, "swamp.swa_start": "0%", "training.duration": "16 steps",
              "data.crop_padding": 1}
    if x64:
        monkeypatch.setattr(training_setup, "from_nnx", in_float64)
    with jax.enable_x64(x64):
        for devices in (1, 8):
            setup = pruning_setup({**fields, "num_devices": devices})
            assert setup.mesh.size == devices
            swamp.run(setup, tmp_path / str(devices))
    for cycle in range(2):
        (mine, my_mask), (theirs, their_mask) = (cycle_weights(tmp_path / devices, cycle) for devices in ("1", "8"))
        jax.tree.map(np.testing.assert_array_equal, my_mask, their_mask)
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype == ("float64" if x64 else "float32")
            np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=tolerance * abs(mine[name]).max(), err_msg=name)


def test_a_new_mask_compiles_nothing(pruned, tmp_path, monkeypatch):
    counts, train = [], PruningRun.train_particles

    def counted(*args):
        counts.append(len(names))
        return train(*args)

    monkeypatch.setattr(PruningRun, "train_particles", counted)
    with compilations() as names:
        prune(tmp_path, {
            "swamp.target_sparsity": 0.8, "model.norm": "batch", "swamp.gate_fraction": 0.1, "swamp.averaging": "when_safe",
            "training.steps_per_call": 2,
        })
    # At the start of cycles 0 to 4; the first one compiles everything.
    assert len(counts) == 5 and counts[0] < counts[1]
    assert names[counts[1] : counts[4]] == []
