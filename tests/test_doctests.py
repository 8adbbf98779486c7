"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import hwa_jax
from training_runs import compilation_cache_dir, compiled_once  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

MODULES = ["hwa_jax", *(module.name for module in pkgutil.walk_packages(hwa_jax.__path__, "hwa_jax."))]
# What an extra installs; a module that needs it is skipped where it is absent, any other missing module is an error.
OPTIONAL = {"tensorflow", "torch", "equinox"}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", [
    "online", "offline", "particles", "batch_stats", "replica_mean", "paths",
    "sparsity.masks", "sparsity.checks", "sparsity.pruners", "sparsity.selection", "sparsity.update",
])
def test_every_public_function_of_the_core_has_an_example(name):
    module = importlib.import_module(f"hwa_jax.{name}")
    without = [
        test.name for test in doctest.DocTestFinder(exclude_empty=False).find(module)
        if not test.examples and callable(getattr(module, test.name.rpartition(".")[2], None))
        and not test.name.rpartition(".")[2].startswith("_") and not isinstance(getattr(module, test.name.rpartition(".")[2]), type)
    ]
    assert without == []
