"""Seeds × particles in one program: numbers and records of each seed alone, resumes, divergences, signals, memory."""

import functools
import os
import signal

import jax
import numpy as np
import pytest

from hwa_jax.algorithms import hwa, imp, swamp
from hwa_jax.algorithms.pruning_run import PruningRun
from hwa_jax.errors import Diverged, UserError
from hwa_jax.training import together as driver
from hwa_jax.training.interruption import Interrupted
from hwa_jax.training.session import Session
from hwa_jax.training.together import alone, most_seeds, together
from compilations import compilations
from pruning_runs import IMP, cycle_weights, pruning_setup
from training_runs import checkpoint, compilation_cache_dir, compiled_once, exported, listing, rows, small_setup  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")

SEEDS = (0, 7, 3)
TWO = (7, 3)
# Everything that a step or an event carries.
HWA = {
    "model.norm": "batch", "optimizer.momentum": 0.9, "training.ema_decay": 0.9, "data.crop_padding": 1, "data.flip": True,
    "schedule.name": "cosine", "hwa.optimizer_state": "average", "training.duration": "11 steps",
}
SWAMP = {"model.norm": "batch", "data.crop_padding": 1, "swamp.averaging": "when_safe", "swamp.gate_fraction": 0.1}


@pytest.fixture
def stacked(monkeypatch):
    """The number of seeds in every program that is run; a step of a session alone counts as one seed."""
    sizes, step, run = [], Session.step, driver._Stack.run
    monkeypatch.setattr(Session, "step", lambda session, *args: sizes.append(1) or step(session, *args))
    monkeypatch.setattr(driver._Stack, "run", lambda stack, *args: sizes.append(len(stack._sessions)) or run(stack, *args))
    return sizes


def beginnings(algorithm, setup, directory, seeds=SEEDS):
    return [functools.partial(algorithm, setup.with_seed(seed), directory / str(seed)) for seed in seeds]


def assert_close(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=1e-5 * np.abs(theirs[name]).max(), err_msg=name)


def assert_same_records(mine, theirs):
    """Rows in the same order, of the same names, steps and numbers."""
    assert len(mine) == len(theirs)
    for a, b in zip(mine, theirs):
        assert a.keys() == b.keys()
        for name, value in b.items():
            assert a[name] == (pytest.approx(value, rel=1e-3, abs=1e-6) if isinstance(value, float) else value), (name, a)


@pytest.mark.parametrize("fields", [
    {**HWA, "num_devices": 2, "training.steps_per_call": 3}, {"hwa.num_replicas": 1, "optimizer.wrapper": "lookahead"},
], ids=["everything", "lookahead"])
def test_hwa_of_two_seeds_is_that_of_each(tmp_path, stacked, fields):
    setup = small_setup(fields)
    expected = [alone(begin()) for begin in beginnings(hwa.algorithm, setup, tmp_path / "alone", TWO)]
    stacked.clear()
    results = together(beginnings(hwa.algorithm, setup, tmp_path / "together", TWO))
    assert stacked == [2]
    for seed, mine, theirs in zip(TWO, results, expected):
        assert_close(exported(tmp_path / "together" / str(seed)), exported(tmp_path / "alone" / str(seed)))
        assert_same_records(rows(tmp_path / "together" / str(seed)), rows(tmp_path / "alone" / str(seed)))
        assert mine["config"]["seed"] == seed and {**mine, "seconds": 0, "final": 0} == {**theirs, "seconds": 0, "final": 0}
        assert mine["seconds"].keys() == theirs["seconds"].keys()
    first, second = (exported(tmp_path / "together" / str(seed))["params/dense1/kernel"] for seed in TWO)
    assert np.abs(first - second).max() > 0.1 * np.abs(first).max()


@pytest.mark.parametrize(("algorithm", "fields"), [(swamp, {**SWAMP, "swamp.num_particles": (1, 2)}), (imp, IMP)], ids=["swamp", "imp"])
def test_pruning_of_two_seeds_is_that_of_each(tmp_path, stacked, algorithm, fields):
    setup = pruning_setup(fields)
    for begin in beginnings(algorithm.algorithm, setup, tmp_path / "alone", TWO):
        alone(begin())
    stacked.clear()
    results = together(beginnings(algorithm.algorithm, setup, tmp_path / "together", TWO))
    # The ticket and three cycles, each under three masks of its own.
    assert stacked == [2] * 4
    for seed, mine in zip(TWO, results):
        for cycle in range(len(mine["cycles"])):
            (params, mask), (other_params, other_mask) = (cycle_weights(tmp_path / how / str(seed), cycle) for how in ("together", "alone"))
            assert_close(params, other_params)
            assert all(np.array_equal(mask[name], other_mask[name]) for name in mask)
        assert_same_records(rows(tmp_path / "together" / str(seed)), rows(tmp_path / "alone" / str(seed)))
    last = [cycle_weights(tmp_path / "together" / str(seed), 2)[1]["dense1/kernel"] for seed in TWO]
    assert (last[0] != last[1]).any()


def test_new_masks_compile_nothing(tmp_path, monkeypatch):
    counts, train = [], PruningRun.train_particles
    monkeypatch.setattr(PruningRun, "train_particles", lambda *args: counts.append(len(names)) or train(*args))
    with compilations() as names:
        together(beginnings(swamp.algorithm, pruning_setup({**SWAMP, "swamp.target_sparsity": 0.8}), tmp_path, SEEDS[:2]))
    # Two seeds at the start of cycles 0 to 4.
    assert len(counts) == 10 and counts[0] < counts[2]
    assert names[counts[3] : counts[-1]] == []


def signalled(begin, done):
    """An algorithm whose process gets a signal after so many steps of its part."""

    def look(at, state):
        if at == done:
            os.kill(os.getpid(), signal.SIGTERM)
        return state

    algorithm = begin()
    answer = None
    while True:
        try:
            request = algorithm.send(answer)
        except StopIteration as stop:
            if stop.value is None:
                raise Interrupted from None
            return stop.value
        answer = yield request._replace(after=[*request.after, request.after[0]._replace(name="signal", is_due=lambda at: True, act=look)])


def test_a_signal_stops_all_and_the_same_call_goes_on(tmp_path, stacked):
    setup = small_setup(HWA)
    together(beginnings(hwa.algorithm, setup, tmp_path / "whole"))
    begin = beginnings(hwa.algorithm, setup, tmp_path / "cut")
    with pytest.raises(Interrupted):
        together([functools.partial(signalled, begin[0], 8), *(functools.partial(signalled, one, None) for one in begin[1:])])
    assert not list(tmp_path.glob("cut/*/results.json"))
    assert all(int(checkpoint(tmp_path / "cut" / str(seed)).step) == 8 for seed in SEEDS)
    together(begin)
    # The same programs made the same steps.
    for seed in SEEDS:
        files = [listing(tmp_path / how / str(seed))["hwa.safetensors"] for how in ("whole", "cut")]
        assert files[0] == files[1] and rows(tmp_path / "whole" / str(seed)) == rows(tmp_path / "cut" / str(seed))
    assert stacked == [3, 3, 3]


class Died(BaseException):
    """The process is gone, as far as this one can act it."""


def test_what_a_kill_left_at_different_steps_meets_again(tmp_path, stacked, monkeypatch):
    """Seed 0 has finished; a kill between two checkpoints leaves seed 7 one cycle ahead of seed 3."""
    setup = pruning_setup({**IMP, "swamp.target_sparsity": 0.7})
    begin = beginnings(imp.algorithm, setup, tmp_path / "cut")
    alone(begin[0]())
    store, calls = PruningRun.store, []

    def dying(run, *args, **keywords):
        calls.append(run.config.seed)
        if calls == [7, 3, 7, 3]:
            raise Died
        return store(run, *args, **keywords)

    monkeypatch.setattr(PruningRun, "store", dying)
    with pytest.raises(Died):
        together(begin)
    monkeypatch.setattr(PruningRun, "store", store)
    assert len(list(tmp_path.glob("cut/7/cycles/*"))) == 2 and len(list(tmp_path.glob("cut/3/cycles/*"))) == 1
    stacked.clear()
    results = together(begin)
    # Cycle 1 of seed 3 was trained to its end, so nothing was left to train of it; cycles 2 and 3 are those of both.
    assert [size for size in stacked if size > 1] == [2, 2]
    for seed, mine in zip(SEEDS, results):
        theirs = alone(imp.algorithm(setup.with_seed(seed), tmp_path / "alone" / str(seed)))
        assert [cycle["num_weights"] for cycle in mine["cycles"]] == [cycle["num_weights"] for cycle in theirs["cycles"]]
        assert_close(cycle_weights(tmp_path / "cut" / str(seed), 3)[0], cycle_weights(tmp_path / "alone" / str(seed), 3)[0])


def caught(begin):
    try:
        return (yield from begin())
    except Diverged as error:
        return str(error)


def test_of_seeds_that_diverge_the_others_finish(tmp_path, stacked, caplog):
    setup = pruning_setup(IMP)
    broken = setup.with_seed(7)
    start = broken.particles_at

    def broken_in_cycle_0(origin, mask):
        state = start(origin, mask)
        return state._replace(params=jax.tree.map(lambda leaf: leaf * np.nan, state.params))

    object.__setattr__(broken, "particles_at", broken_in_cycle_0)
    begin = [functools.partial(imp.algorithm, one, tmp_path / str(one.config.seed)) for one in (setup, broken, setup.with_seed(3))]
    results = together([functools.partial(caught, one) for one in begin])
    assert "is not finite at step 5" in results[1] and "going on from the last checkpoints, seed by seed" in caplog.text
    # Ticket and cycle 0 of three, cycle 0 of each alone, cycles 1 and 2 of the two that are left.
    assert stacked[:2] == [3, 3] and set(stacked[2:-2]) == {1} and stacked[-2:] == [2, 2]
    for seed, mine in ((0, results[0]), (3, results[2])):
        alone(imp.algorithm(setup.with_seed(seed), tmp_path / "alone" / str(seed)))
        assert_close(cycle_weights(tmp_path / str(seed), 2)[0], cycle_weights(tmp_path / "alone" / str(seed), 2)[0])
        assert len(rows(tmp_path / str(seed))) == len(rows(tmp_path / "alone" / str(seed)))


def killed_at_the_end(begin):
    results = yield from begin()
    os.kill(os.getpid(), signal.SIGTERM)
    return results


def test_other_errors_and_late_signals_end_all(tmp_path, stacked):
    setup = small_setup()
    (tmp_path / "3").write_text("in the way")
    with pytest.raises(UserError, match="is a file"):
        together(beginnings(hwa.algorithm, setup, tmp_path))
    (tmp_path / "3").unlink()
    # No lock is held by those that had begun.
    begin = beginnings(hwa.algorithm, setup, tmp_path)
    results = together(begin)
    assert len(results) == 3 and stacked == [3]
    with pytest.raises(Interrupted):
        together([functools.partial(killed_at_the_end, begin[0]), *begin[1:]])
    assert together(begin) == results


def test_what_the_memory_does_not_hold_is_halved(tmp_path, stacked, monkeypatch, caplog):
    setup, seeds = small_setup(), (0, 1, 2, 3, 4)
    needed = []
    monkeypatch.setattr(driver, "free_bytes", lambda device: needed[0] / 2 if needed else 0.0)
    bytes_of = driver._Stack.bytes.fget
    monkeypatch.setattr(driver._Stack, "bytes", property(lambda stack: needed.append(bytes_of(stack)) or needed[-1]))
    results = together(beginnings(hwa.algorithm, setup, tmp_path, seeds))
    assert [result["config"]["seed"] for result in results] == list(seeds)
    assert stacked[:2] == [2, 2] and set(stacked[2:]) == {1}
    # Five states of five seeds are weights and a mean of two replicas, at the least.
    assert needed[0] > 5 * 2 * 4 * 50_000 and "5 seeds at once take" in caplog.text


def test_on_a_cpu_one_seed_at_a_time_elsewhere_all(monkeypatch):
    assert most_seeds(0, 5) == 1 and most_seeds(3, 5) == 3
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert most_seeds(0, 5) == 5 and most_seeds(0, 0) == 1 and most_seeds(3, 5) == 3
