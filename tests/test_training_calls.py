"""What a call of the step is: on the device alone, in its state's own buffers, of one or several steps with the same bits."""

import dataclasses
import signal
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwa_jax.algorithms import hwa
from hwa_jax.errors import UserError
from hwa_jax.training.session import Session
from hwa_jax.training.workdir import Workdir
from device_only import Waited, device_only, loops_on_the_device
from pruning_runs import prune
from training_runs import (  # noqa: F401
    checkpoint, compilation_cache_dir, compiled_once, exported, listing, rows, small_setup, train,
)

pytestmark = pytest.mark.usefixtures("compiled_once")
# Everything that a step or an event between steps may carry. Calls of three steps end before 4, 5, 6, 8, 9, ...
HWA = {
    "model.norm": "batch", "optimizer.momentum": 0.9, "training.ema_decay": 0.9, "data.crop_padding": 1, "data.flip": True,
    "schedule.name": "cosine", "hwa.sync_period": "7 steps", "training.duration": "21 steps", "checkpoint.every": "8 steps",
}
SWAMP = {"model.norm": "batch", "data.crop_padding": 1, "training.duration": "12 steps", "swamp.swa_period": "3 steps"}


def open_session(setup, directory):
    return Session(setup, Workdir(directory, setup.config, setup.dataset.fingerprint))


@pytest.mark.parametrize("look", [
    lambda x: jnp.sin(np.ones(3)), lambda x: x + 1, lambda x: jax.jit(jnp.add)(x, 1.0),
], ids=["array", "eager scalar", "scalar of a program"])
def test_the_guard_sees_what_comes_from_the_host(look):
    x = jnp.ones(3)
    with device_only(), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        look(x)


@pytest.mark.parametrize("look", [
    lambda x: np.asarray(x), lambda x: np.array(x), float, bool, str, lambda x: x.block_until_ready(),
    lambda x: jax.block_until_ready({"x": x}), lambda x: jax.device_get(x),
], ids=["asarray", "array", "float", "bool", "str", "wait", "wait for a tree", "get"])
def test_the_guard_sees_who_waits(look):
    x = jnp.float32(1)
    with device_only(), pytest.raises(Waited):
        look(x)


# Calls of three steps and of one.
def test_between_events_hwa_stays_on_the_device(tmp_path):
    setup = small_setup({**HWA, "training.steps_per_call": 3, "num_devices": 2})
    with loops_on_the_device() as acted:
        assert hwa.run(setup, tmp_path)["steps"] == 21
    assert acted == {"epoch", "inner evaluation", "synchronization", "push", "evaluation", "log", "checkpoint"}


def test_between_events_swamp_stays_on_the_device(tmp_path):
    with loops_on_the_device() as acted:
        prune(tmp_path, {**SWAMP, "training.steps_per_call": 3, "swamp.target_sparsity": 0.3})
    assert acted == {"epoch", "collect", "log", "checkpoint"}


def test_data_on_the_host_would_be_noticed(tmp_path):
    setup = small_setup()
    setup = dataclasses.replace(setup, train=jax.device_get(setup.train))
    with loops_on_the_device(), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        hwa.run(setup, tmp_path)


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_works_in_the_buffers_of_its_state(tmp_path, count):
    setup = small_setup(HWA)
    with warnings.catch_warnings(), Workdir(tmp_path, setup.config, setup.dataset.fingerprint) as workdir, Session(setup, workdir) as session:
        warnings.simplefilter("error")  # JAX warns of donated buffers that it cannot use
        state = session.state
        for done in (count, 2 * count):
            old, pointers = jax.tree.leaves(state), addresses(state)
            state = session.step(state, count)
            assert all(leaf.is_deleted() for leaf in old)
            assert int(state.step) == done
        large = {address for address, size in pointers.items() if size > 1000}
        assert len(large) > 10 and large <= addresses(state).keys()


def addresses(state):
    """Where the state's leaves lie: address -> bytes."""
    return {leaf.unsafe_buffer_pointer(): leaf.nbytes for leaf in jax.tree.leaves(state)}


@pytest.fixture(scope="module")
def one_by_one(compiled_once, tmp_path_factory):  # noqa: F811
    """HWA and SWAMP, a step at a time."""
    directory = tmp_path_factory.mktemp("one_by_one")
    train(directory / "hwa", {**HWA, "training.steps_per_call": 1})
    prune(directory / "swamp", {**SWAMP, "training.steps_per_call": 1})
    return directory


def assert_same_hwa(mine, theirs):
    # A network without convolutions; with them, in a loop on a CPU, the last bits differ.
    jax.tree.map(np.testing.assert_array_equal, (exported(mine), checkpoint(mine)), (exported(theirs), checkpoint(theirs)))
    assert rows(mine) == rows(theirs)


@pytest.fixture
def counts(monkeypatch):
    """The numbers of steps of all calls."""
    step, counts = Session.step, []
    monkeypatch.setattr(Session, "step", lambda session, state, count: counts.append(count) or step(session, state, count))
    return counts


@pytest.mark.parametrize("steps_per_call", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_several_steps_in_a_call_are_the_same_to_the_last_bit(one_by_one, tmp_path, counts, steps_per_call):
    train(tmp_path / "hwa", {**HWA, "training.steps_per_call": steps_per_call})
    assert_same_hwa(tmp_path / "hwa", one_by_one / "hwa")
    assert sum(counts) == 21 and set(counts) == {1, steps_per_call}
    prune(tmp_path / "swamp", {**SWAMP, "training.steps_per_call": steps_per_call})
    mine, theirs = (
        {path: digest for path, digest in listing(directory / "swamp").items() if path.endswith((".safetensors", "metrics.jsonl"))}
        for directory in (tmp_path, one_by_one)
    )
    # weights.safetensors says the configuration.
    assert mine.pop("weights.safetensors") != theirs.pop("weights.safetensors")
    assert mine == theirs and len(mine) == 1 + 3 * 3


def test_automatic_is_one_on_a_cpu_and_elsewhere_the_fewest_calls(one_by_one, tmp_path, monkeypatch, counts):
    setup = small_setup(HWA)
    assert setup.steps_per_call == 1
    gpu = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform="gpu")]))
    assert dataclasses.replace(setup, mesh=gpu).steps_per_call == 0
    assert dataclasses.replace(small_setup({**HWA, "training.steps_per_call": 7}), mesh=gpu).steps_per_call == 7
    monkeypatch.setattr(type(setup), "steps_per_call", 0)
    hwa.run(setup, tmp_path)
    assert_same_hwa(tmp_path, one_by_one / "hwa")
    # The borders are 6, 7, 8, 9, 12, 14, 16, 17, 18, 20, 21: stretches 6 1 1 1 3 2 2 1 1 2 1.
    # 2 at a time: 3+1+1+1+2+1+1+1+1+1+1 = 14 calls; 3: 2+1+1+1+1+2+2+1+1+2+1 = 15; 6: 1+1+1+1+3+2+2+1+1+2+1 = 16.
    assert len(counts) == 14 and set(counts) == {1, 2}


def test_a_stop_between_calls_loses_no_bit(one_by_one, tmp_path, monkeypatch):
    step, several = Session.step, {**HWA, "training.steps_per_call": 3}
    # Within an epoch; at the end of one; at a synchronization.
    for calls, stopped_at in [(1, 3), (4, 9), (3, 14)]:
        remaining = iter(range(calls, 0, -1))

        def stopping(session, state, count):
            if next(remaining) == 1:
                signal.raise_signal(signal.SIGTERM)
            return step(session, state, count)

        monkeypatch.setattr(Session, "step", stopping)
        assert train(tmp_path, several) is None
        assert int(checkpoint(tmp_path).step) == stopped_at
    monkeypatch.setattr(Session, "step", step)
    assert train(tmp_path, several)["steps"] == 21
    assert_same_hwa(tmp_path, one_by_one / "hwa")


def test_another_number_of_steps_is_another_run(one_by_one):
    with pytest.raises(UserError, match="training.steps_per_call was 1, now 2"):
        train(one_by_one / "hwa", {**HWA, "training.steps_per_call": 2})
