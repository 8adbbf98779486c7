"""What is known of a pruning beforehand: counts against masks that were pruned, and what a dry run says against a run."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwa_jax import masks
from hwa_jax.algorithms.pruning_run import sparsity
from hwa_jax.errors import UserError
from programs import ROOT, call
from pruning_runs import SMALL_PRUNING, prune, pruning_setup
from training_runs import compilation_cache_dir, compiled_once, listing  # noqa: F401

# Few shapes, each of which XLA compiles once: none, one number, a vector, whose every element is an output, and kernels.
shapes = st.lists(st.sampled_from([(0, 2), (), (4,), (5, 3), (2, 3, 4)]), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(shapes, st.floats(0.05, 0.95), st.sampled_from(masks.PRUNERS), st.booleans(), st.integers(0, 2**32 - 1))
def test_counts_are_those_of_masks_that_are_pruned(shapes, fraction, pruner, keep_one, seed):
    rng = np.random.default_rng(seed)
    params = {"bias": np.ones(2), "kernels": [rng.choice([0.0, 0.5, 1.0], size=shape) for shape in shapes]}
    mask = {"bias": optax.MaskedNode(), "kernels": [np.ones(shape, bool) for shape in shapes]}
    planned = list(itertools.islice(masks.planned_counts(mask, fraction, pruner, keep_one_per_output=keep_one), 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers without a weight
        for cycle in range(6):
            # Once none goes, none ever does.
            assert masks.count(mask) == planned[min(cycle, len(planned) - 1)]
            mask = masks.prune(params, mask, fraction, pruner, key=jax.random.key(cycle), keep_one_per_output=keep_one)


def test_counts_by_hand():
    # Together: 12 - round(6) = 6 - round(3) = 3 - round(1.5) = 1 - round(0.5) = 1; halves round to even.
    # Layer by layer: 8, 4, 2, 1 and 4, 2, 1, 1. With one for each of two and one outputs: 12, 6, 3.
    mask = {"a": jnp.ones((4, 2), bool), "b": jnp.ones((4, 1), bool)}
    assert list(masks.planned_counts(mask, 0.5)) == [12, 6, 3, 1]
    assert list(masks.planned_counts(mask, 0.5, "layerwise")) == [12, 6, 3, 2]
    assert list(masks.planned_counts(mask, 0.5, keep_one_per_output=True)) == [12, 6, 3]


def test_the_plan_ends_with_the_first_cycle_at_the_target():
    plan = pruning_setup({"swamp.num_particles": (1, 2), "swamp.target_sparsity": 0.5903}).plan()
    assert [cycle.num_particles for cycle in plan] == [1, 2, 2]
    assert [cycle.num_weights for cycle in plan] == [50200, 32128, 20562]
    # 0.590398..., so a target of 0.5904 needs a cycle more.
    assert plan[-1].sparsity == (50200 - 20562) / 50200
    [*_, last] = pruning_setup({"swamp.target_sparsity": 0.5904}).plan()
    assert last.num_weights == 20562 - round(0.36 * 20562)


@pytest.fixture(scope="module")
def dry_run(compiled_once, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("dry")
    fields = [f"--config.{field}={value}" for field, value in SMALL_PRUNING.items()]
    config = ROOT / "configs" / "swamp_digits.py"
    ended = call("train_swamp.py", f"--config={config}", f"--workdir={directory / 'run'}", *fields, "--dry_run")
    assert (ended.code, ended.stderr) == (0, "")
    assert listing(directory) == {}
    return ended.stdout.splitlines()


def number_of_bytes(text):
    number, unit = text.split()[:2]
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]


def test_a_dry_run_says_what_a_run_takes(dry_run, compiled_once, tmp_path):  # noqa: F811
    said = {line[:24].strip(): line[24:] for line in dry_run if line[:1].isalpha()}
    # A ticket of 4 steps, then 3 cycles of 8 with two particles; 9 steps are an epoch.
    assert said["cycles"] == "3 of 8 steps after 4 of the ticket, 9 per epoch"
    assert said["training"] == f"{(4 + 3 * 2 * 8) / 9:g} epochs, those of all particles together"
    assert said["prunable"] == "50,200 of 50,610 parameters"
    assert said["particles N"] == "at most 2 on 1 device(s)"
    assert said["images"].startswith("90 training, 30 validation, 500 test, 0 held out")
    assert "temporary" in said["memory of the step"] and "ms per step" in said["time"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in dry_run if line.startswith("| ")][2:]
    results = prune(tmp_path)
    assert len(rows) == len(results["cycles"])
    for row, cycle in zip(rows, results["cycles"]):
        weights, percent, epochs = f"{cycle['num_weights']:,}", f"{100 * cycle['sparsity']:.2f}", f"{cycle['particle_epochs']:g}"
        assert row == [str(cycle["cycle"]), str(cycle["num_particles"]), weights, percent, epochs]
    # Two checkpoints are kept while a cycle runs and are gone now; logs are not counted.
    stored = [path for place in ("ticket", "cycles") for path in (tmp_path / place).rglob("*")] + [tmp_path / "weights.safetensors"]
    written = sum(path.stat().st_size for path in stored if path.is_file())
    expected = number_of_bytes(said["disk"]) - 2 * number_of_bytes(said["memory of the step"].split(", ")[1])
    assert written == pytest.approx(expected, rel=0.05)


def test_a_target_that_is_never_reached_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="of the 50200 weights that remain in cycle 0 none would go"):
        prune(tmp_path / "run", {"swamp.fraction": 1e-6})
    assert listing(tmp_path) == {}


def test_sparsity_of_the_plan_is_that_of_the_mask():
    setup = pruning_setup({"swamp.fraction": 0.1})
    params, mask = setup.model.init(jax.random.key(0))[0], setup.dense_mask()
    for cycle in setup.plan():
        assert sparsity(mask) == cycle.sparsity
        mask = masks.prune_by_magnitude(params, mask, 0.1)
