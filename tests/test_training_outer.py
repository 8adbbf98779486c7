"""The trainer with movements in bf16, an outer optimizer and weighted replicas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from report_cells import cell
from training_runs import checkpoint, compilation_cache_dir, compiled_once, exported, small_config, small_setup, train  # noqa: F401

from hwa_jax.algorithms import hwa, hwa_cells, hwa_comparison
from hwa_jax.errors import UserError
from hwa_jax.report.aggregation import aggregate
from hwa_jax.training.config import validate

pytestmark = pytest.mark.usefixtures("compiled_once")

OUTER = {
    "hwa.sync_dtype": "bfloat16", "hwa.outer_optimizer.name": "sgd", "hwa.replica_weights": (3, 1), "evaluation.every": "18 steps",
}


def test_an_extended_run_is_bit_identical_to_a_whole_one(tmp_path):
    # Outer weights, momentum and the counts of both are in the checkpoint of step 9, between two averages.
    train(tmp_path / "whole", OUTER)
    train(tmp_path / "parts", {**OUTER, "training.duration": "1 epoch"})
    assert checkpoint(tmp_path / "parts").opt_state.outer.weights["dense1"]["kernel"].dtype == np.float32
    train(tmp_path / "parts", OUTER)
    whole, parts = exported(tmp_path / "whole"), exported(tmp_path / "parts")
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name], err_msg=name)


def test_sgd_of_rate_one_and_equal_weights_are_the_plain_average(tmp_path):
    rate_one = {"hwa.outer_optimizer.name": "sgd", "hwa.outer_optimizer.learning_rate": 1.0, "hwa.outer_optimizer.momentum": 0.0}
    plain = train(tmp_path / "plain")
    same = train(tmp_path / "same", {**rate_one, "hwa.replica_weights": (5, 5)})
    for name, leaf in exported(tmp_path / "plain").items():
        np.testing.assert_allclose(exported(tmp_path / "same")[name], leaf, rtol=0, atol=1e-6 * np.abs(leaf).max(), err_msg=name)
    assert same["bytes_communicated"] == plain["bytes_communicated"]


def test_weights_reach_the_average_and_what_is_evaluated():
    setup = small_setup({"hwa.replica_weights": (3, 1)})
    stacked = {"w": jnp.array([[1.0], [5.0]])}
    assert setup.mean_over_replicas(stacked)["w"].tolist() == [2.0]
    assert small_setup().mean_over_replicas(stacked)["w"].tolist() == [3.0]


def test_bf16_halves_the_bytes_of_weights_but_not_of_statistics():
    def sent(fields):
        setup = small_setup({"model.norm": "none", **fields})
        state = setup.initial_state()
        return hwa.communication(setup, state)["bytes_per_synchronization"], state

    plain, state = sent({})
    half, _ = sent({"hwa.sync_dtype": "bfloat16"})
    assert plain == 4 * sum(leaf[0].size for leaf in jax.tree.leaves(state.params)) == 2 * half
    normalized, state = sent({"hwa.sync_dtype": "bfloat16", "model.name": "cnn_s", "model.norm": "batch"})
    assert normalized == sum(2 * leaf[0].size for leaf in jax.tree.leaves(state.params)) + sum(4 * leaf[0].size for leaf in jax.tree.leaves(state.batch_stats))
    averaged, state = sent({"hwa.sync_dtype": "bfloat16", "hwa.optimizer_state": "average", "optimizer.momentum": 0.9})
    assert averaged == 3 * half


def test_a_smaller_batch_is_one_of_its_own_images():
    setup = small_setup({"hwa.replica_batch_sizes": (5, 10), "model.norm": "none"})
    batch_key, noise_key = setup.keys()
    indices = setup.epoch_indices(0, batch_key)
    unequal, fives = (
        setup.step(setup.initial_state(), chosen, setup.train, noise_key, {}).params for chosen in (indices, indices[..., :5])
    )
    for ours, of_five in zip(jax.tree.leaves(unequal), jax.tree.leaves(fives)):
        # Replica 0 has seen the same five images in both, replica 1 ten in one and five in the other.
        np.testing.assert_allclose(ours[0], of_five[0], rtol=0, atol=1e-6)
        assert np.abs(ours[1] - of_five[1]).max() > 1e-4


@pytest.mark.parametrize(("fields", "message"), [
    ({"hwa.replica_weights": (1, 2, 3)}, r"hwa.replica_weights=\(1, 2, 3\): give hwa.num_replicas=2 numbers, at least 0 and not all 0"),
    ({"hwa.replica_weights": (0, 0)}, "hwa.replica_weights=.*not all 0"),
    ({"hwa.replica_weights": (1, float("nan"))}, "hwa.replica_weights=.*at least 0"),
    ({"hwa.replica_batch_sizes": (10,)}, r"hwa.replica_batch_sizes=\(10,\): give hwa.num_replicas=2 divisors of training.batch_size=10"),
    ({"hwa.replica_batch_sizes": (10, 4)}, "hwa.replica_batch_sizes=.*divisors of training.batch_size=10"),
    ({"hwa.replica_batch_sizes": (10, 0)}, "hwa.replica_batch_sizes=.*divisors"),
    ({"hwa.sync_dtype": "float16"}, "hwa.sync_dtype='float16': give one of '', 'bfloat16'"),
    ({"hwa.outer_optimizer.learning_rate": -1.0}, "hwa.outer_optimizer.learning_rate=-1.0: must be at least 0"),
])
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        validate(small_config(fields))


def test_an_unknown_outer_optimizer_is_named_with_its_field():
    with pytest.raises(UserError, match="hwa.outer_optimizer.name='adamm': optax has no optimizer of this name"):
        small_setup({"hwa.outer_optimizer.name": "adamm"})


VARIANTS = {
    "bf16": {"sync_dtype": "bfloat16"},
    "diloco": {"outer_optimizer": {"name": "sgd"}, "sync_period": "4 epochs"},
    "adam": {"outer_optimizer": {"name": "adam", "learning_rate": 0.01}},
    "weighted": {"replica_weights": (1, 3)},
    "reset": {"optimizer_state": "reset"},
    "unequal": {"replica_batch_sizes": (50, 10), "replica_weights": (5, 1)},
}


def test_a_comparison_studies_them_and_its_report_tells_them_apart():
    config = hwa_comparison.default_comparison()
    config.variants, config.seeds = VARIANTS, (0,)
    config.base.training.ema_decay = 0.99
    hwa_comparison._validate(config)
    chosen = {f"{o}/{s}": dict.fromkeys(("plain", "offline", "hwa"), {"learning_rate": 0.1, "weight_decay": 0.0})
              for o in config.optimizers for s in config.schedules}
    planned = {t.name.rsplit("-", 1)[1]: t.config.hwa for t in hwa_comparison.trajectories(config, chosen)}
    labels = {name: hwa_cells._averaging(planned[name]) for name in (*VARIANTS, "seed0")}
    assert labels == {
        "bf16": "bfloat16", "diloco": "outer sgd 0.7 Nesterov 0.9", "adam": "outer adam 0.01", "weighted": "weights 1:3",
        "reset": "optimizer state: reset", "unequal": "weights 5:1", "seed0": None,
    }
    cells = [cell("hwa", "both", averaging=label) for label in labels.values()]
    found = {row.label for row in aggregate(cells)[0].rows}
    assert found == {f"HWA (averaging={label or 'plain'})" for label in labels.values()}


def test_plain_trajectories_of_a_base_with_an_outer_optimizer_are_plain():
    config = hwa_comparison.default_comparison()
    config.base.hwa.update({"replica_weights": (1, 3), "replica_batch_sizes": (50, 10), "outer_optimizer": {"name": "sgd"}})
    kinds = {kind: hwa_comparison.training_of(config, kind, "sgd", "constant", 0).hwa for kind in ("plain", "hwa")}
    assert kinds["plain"].outer_optimizer.name == "" and kinds["plain"].replica_weights == () == kinds["plain"].replica_batch_sizes
    assert kinds["hwa"].outer_optimizer.name == "sgd" and kinds["hwa"].replica_weights == (1, 3)


def test_a_variant_that_no_row_would_show_is_refused():
    config = hwa_comparison.default_comparison()
    config.variants = {"window": {"window_size": 3}}
    config.base.training.ema_decay = 0.99
    with pytest.raises(UserError, match="variants.window=.*must change one of num_replicas, optimizer_state, outer_optimizer"):
        hwa_comparison._validate(config)
