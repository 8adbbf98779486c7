"""Every file in configs/ loads, fits and says what it is; those that train make a step, on small synthetic data."""

import importlib.util

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from hwa_jax import data
from hwa_jax.data.dataset import Dataset, Split
from hwa_jax.training import setup as training_setup
from hwa_jax.training import sparse_setup
from hwa_jax.training.config import default_config, default_swamp_config, validate
from programs import ROOT
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

FILES = sorted((ROOT / "configs").glob("*.py"))
# Data set: (image shape, classes).
SHAPES = {
    "digits": ((8, 8, 1), 10), "fashion_mnist": ((28, 28, 1), 10), "cifar10": ((32, 32, 3), 10), "cifar100": ((32, 32, 3), 100),
    "pictures": ((32, 32, 3), 5), "mnist1d": ((40, 1, 1), 10),
    "imagenet2012": ((64, 64, 3), 1000),
}
SMALL_ENOUGH = {"mlp", "cnn_s"}
# Configuration file: the networks that may stand after the colon of --config.
NETWORKS = {"hwa_cifar": ("resnet20", "resnet56", "wrn-28-10", "vgg16"), "swamp_cifar": ("wrn-28-2", "wrn-32-4", "vgg19", "resnet20")}


def load(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(file):
    """What may stand after the colon of --config, None where nothing may."""
    if file.stem not in NETWORKS:
        return [None]
    return [f"{name},{model}" for name in ("cifar10", "cifar100") for model in NETWORKS[file.stem]]


def build(file, variant):
    get_config = load(file).get_config
    return get_config() if variant is None else get_config(variant)


CONFIGS = [pytest.param(file, variant, id=file.stem + (f":{variant}" if variant else "")) for file in FILES for variant in variants(file)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_says_what_it_is(file):
    words = load(file).__doc__
    assert "Hardware: " in words and "our choice" in words


@pytest.mark.parametrize(("file", "variant"), CONFIGS)
def test_it_is_valid(file, variant):
    config = build(file, variant)
    base = config.get("base", config)
    begin = default_swamp_config if "swamp" in base else default_config
    validate(base, begin)
    assert base.data.name in SHAPES
    # Nothing but what a configuration has.
    assert set(base.keys()) == set(begin().keys())
    assert isinstance(config, ConfigDict) and config.is_locked


@pytest.mark.parametrize("stem", NETWORKS)
def test_another_network_is_refused(stem):
    get_config = load(ROOT / "configs" / f"{stem}.py").get_config
    with pytest.raises(ValueError, match=f"{stem}.py:cifar10,mlp: write DATASET,MODEL with one of {NETWORKS[stem][0]}, "):
        get_config("cifar10,mlp")
    assert get_config().to_dict() == get_config(f"cifar10,{NETWORKS[stem][0]}").to_dict()


def test_swamp_cifar_is_the_papers_where_that_is_known():
    config = build(ROOT / "configs" / "swamp_cifar.py", "cifar100,wrn-32-4")
    assert config.swamp.swa and config.swamp.swa_learning_rate == 0.05 and config.swamp.rewind == "ticket"
    # 20 prunings of 20 % leave 1.15 %.
    assert 1 - 0.8**19 < config.swamp.target_sparsity <= 1 - 0.8**20


def synthetic(name, **_):
    shape, num_classes = SHAPES[name]
    rng = np.random.default_rng(0)

    def split(count):
        return Split(rng.integers(0, 256, (count, *shape), np.uint8), np.arange(count, dtype=np.int32) % num_classes)

    channels = shape[-1]
    mean, std = np.full(channels, 0.5, np.float32), np.full(channels, 0.25, np.float32)
    return Dataset(name, num_classes, split(8), split(4), split(4), mean, std, "synthetic")


def step_cases():
    cases = []
    for parameters in CONFIGS:
        file, variant = parameters.values
        config = build(file, variant)
        model = config.get("base", config).model.name
        marks = [] if model in SMALL_ENOUGH else [pytest.mark.slow]
        cases.append(pytest.param(file, variant, id=parameters.id, marks=marks))
    return cases


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize(("file", "variant"), step_cases())
def test_it_makes_a_step(file, variant, monkeypatch):
    monkeypatch.setattr(data, "load", synthetic)
    config = build(file, variant)
    base = config.get("base", config)
    base.update({"num_devices": 1})
    base.training.batch_size = 4
    if "streamed" in base.data:
        base.data.update({"streamed": False, "random_resized_crop": False})
    # Epochs have two steps here; what is given in steps may be longer than that.
    base.schedule.warmup = "0 steps"
    if "swamp" in base:
        base.swamp.swa_period = "1 epoch"
    setup = (sparse_setup if "swamp" in base else training_setup).prepare(base)
    assert setup.train.num_examples == 8 and setup.periods.epoch == 2
    state, (batch_key, noise_key) = setup.initial_state(), setup.keys()
    extra = {"mask": setup.dense_mask()} if "swamp" in base else {}
    before = jax.device_get(state.params)
    state = setup.step(state, setup.epoch_indices(state.step, batch_key), setup.train, noise_key, extra)
    assert int(state.step) == 1
    assert np.isfinite(state.progress.loss).all() and (np.asarray(state.progress.loss) > 0).all()
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(state.params)))]
    assert max(moved) > 0 and np.isfinite(moved).all()
