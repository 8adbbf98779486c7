"""experiments/smoke.py: good devices pass, each fault gives its verdict, and nothing heavy is loaded."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from hwa_jax.storage.checkpoint import CheckpointStore
from hwa_jax.storage.window_store import WindowStore
from hwa_jax.training import smoke
from programs import ROOT, call


def test_the_command_passes_and_says_what_it_saw():
    ended = call("smoke.py")
    assert ended.code == 0, ended.stdout
    rows = {line.split()[0]: line for line in ended.stdout.splitlines()}
    assert rows.keys() == {"check", *smoke.CHECKS} and all(" ok " in rows[name] for name in smoke.CHECKS)
    assert "8 × cpu" in rows["devices"] and "16 replicas over 8 device(s)" in rows["sync"] and "192 of 768" in rows["masks"]


def test_it_loads_no_data_library_and_no_configuration():
    code = "import sys, hwa_jax.training.smoke; print(sorted({'tensorflow_datasets', 'ml_collections', 'grain', 'sklearn', 'flax'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def no_average(monkeypatch):
    monkeypatch.setattr(smoke, "online_average", lambda every, axes: smoke.optax.identity())


def wrong_mean(monkeypatch):
    mean = WindowStore.mean
    monkeypatch.setattr(WindowStore, "mean", lambda store: mean(store, size=2))


def nothing_pruned(monkeypatch):
    monkeypatch.setattr(smoke, "sparse_update", lambda inner: smoke.optax.with_extra_args_support(inner))


def one_bit(monkeypatch):
    restore = CheckpointStore.restore

    def altered(store, like):
        found = restore(store, like)
        if found is None:
            return None
        weights, state = found.tree
        weights["bias"] = jax.tree.map(lambda leaf: jnp.nextafter(leaf, jnp.inf), weights["bias"])
        return found._replace(tree=(weights, state))

    monkeypatch.setattr(CheckpointStore, "restore", altered)


def wrong_products(monkeypatch):
    dot = jnp.dot
    monkeypatch.setattr(smoke.jnp, "dot", lambda *args, **keywords: dot(*args, **keywords).at[0, 0].add(1))


FAULTS = {"devices": wrong_products, "sync": no_average, "window": wrong_mean, "masks": nothing_pruned, "resume": one_bit}


@pytest.mark.parametrize("check", FAULTS)
def test_a_fault_is_found(check, monkeypatch):
    FAULTS[check](monkeypatch)
    with pytest.raises(AssertionError):
        smoke.CHECKS[check]()


def test_a_failed_check_does_not_hide_the_others(monkeypatch):
    monkeypatch.setattr(smoke, "CHECKS", {"devices": smoke.devices, "sync": lambda: 1 / 0, "masks": lambda: "well"})
    ended = call("smoke.py")
    assert ended.code == 1
    assert [line.split()[1] for line in ended.stdout.splitlines()[1:]] == ["ok", "FAILED", "ok"]
    assert "ZeroDivisionError" in ended.stdout
