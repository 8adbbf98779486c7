"""One of two processes, or both, killed in every phase, one stopped or asked to end in some: nobody hangs, and the same command goes on to the same bits.

A pruning is killed before or within each phase, not after it.
"""

import collections
import itertools
import random

import numpy as np
import pytest

from killed_processes import Kill, kill_once, phases_of_both, signal_once, stop_once
from process_runs import PRUNING_FIELDS, TRAIN_HWA, TRAIN_SWAMP, run
from training_runs import SMALL, checkpoint, compilation_cache_dir, exported, listing, rows  # noqa: F401

pytestmark = pytest.mark.slow

# A small part of everything: statistics to average, momentum, a window and checkpoints that lose members.
FIELDS = {
    **SMALL, "num_devices": 0, "hwa.num_replicas": 2, "model.norm": "batch", "optimizer.momentum": 0.9, "training.duration": "60 steps",
    "hwa.sync_period": "2 steps", "hwa.window_size": 2, "evaluation.every": "4 steps", "checkpoint.every": "3 steps", "logging.every": "2 steps",
}
PHASES_OF_ALL = ("epoch", "step", "inner evaluation", "synchronization", "push", "evaluation", "log", "checkpoint")
# Process 0 alone writes and removes.
PHASES_OF_0 = ("checkpoints commit", "checkpoints eviction", "window commit", "window eviction")
MOMENTS = ("enter", "within", "exit")
# Ten cycles of five steps, since every kill may let one through; three checkpoints in each, of which the first one goes.
PRUNING = {
    **PRUNING_FIELDS, "swamp.target_sparsity": 0.98, "swamp.num_particles": 2, "training.duration": "5 steps", "swamp.swa_start": "1 steps",
    "checkpoint.every": "2 steps",
}
PRUNING_PHASES = {
    "epoch": 1, "step": 0, "collect": 1, "log": 0, "checkpoint": 1, "checkpoints commit": 0, "checkpoints eviction": 0, "weights": 0, "store": 1, "prune": 1,
}


def planned():
    """Three runs of thirteen kills, the last one at the end: every phase before, within and after it; what both do with each of them and with both."""
    both = [(0,), (1,), (0, 1)]
    victims = {**dict.fromkeys(PHASES_OF_ALL, both), **dict.fromkeys(PHASES_OF_0, [(0,), (0, 1), (0,)]), "finish": both}
    kills = [
        Kill(phase, MOMENTS[(turn + place) % 3], these)
        for turn, (phase, each) in enumerate(victims.items()) for place, these in enumerate(each)
    ]
    # Where both are killed after the end, nobody is left to wait for what is complete.
    *kills, first, second, third = kills
    random.Random(0).shuffle(kills)
    return [[*kills[:12], first], [*kills[12:24], second], [*kills[24:], third]]


def test_the_plan_has_all_phases():
    runs = planned()
    assert [len(kills) for kills in runs] == [13, 13, 13]
    assert [kills[-1] for kills in runs] == [Kill("finish", "enter", (0,)), Kill("finish", "within", (1,)), Kill("finish", "exit", (0, 1))]
    kills = list(itertools.chain(*runs))
    assert {(kill.phase, kill.moment) for kill in kills} == set(itertools.product((*PHASES_OF_ALL, *PHASES_OF_0, "finish"), MOMENTS))
    by_victims = collections.Counter(kill.victims for kill in kills)
    assert by_victims == {(0,): 17, (1,): 9, (0, 1): 13}
    assert {kill.phase for kill in kills if kill.victims == (1,)} == {*PHASES_OF_ALL, "finish"}


@pytest.fixture(scope="module")
def layout(compilation_cache_dir):  # noqa: F811
    return {"program": TRAIN_HWA._replace(fields=FIELDS), "devices": 1, "compiled": compilation_cache_dir}


@pytest.fixture(scope="module")
def uninterrupted(layout, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    of_all = {*PHASES_OF_ALL, "finish"}
    assert phases_of_both(directory, **layout) == [{*of_all, *PHASES_OF_0}, of_all]
    return directory


def assert_same_run(directory, uninterrupted):
    mine, whole = exported(directory), exported(uninterrupted)
    assert mine.keys() == whole.keys() and int(checkpoint(directory).step) == 60
    for name, leaf in whole.items():
        np.testing.assert_array_equal(mine[name], leaf, err_msg=name)
    assert rows(directory) == rows(uninterrupted)


@pytest.mark.parametrize("number", range(3))
def test_kills_in_every_phase(layout, uninterrupted, tmp_path, number):
    rng, least = random.Random(number), 1
    for kill in planned()[number]:
        done = kill_once(tmp_path / "run", kill, 1 if "eviction" in kill.phase else least, rng, **layout)
        # Back and forth: sometimes at once after the resume, sometimes further on.
        least = min(done + rng.randint(-2, 3), 30)
    run(tmp_path / "run", 2, **layout)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named_by_the_other_and_then_killed(layout, uninterrupted, tmp_path, stopped):
    stop_once(tmp_path / "run", stopped, "step", 12, random.Random(stopped), **layout)
    assert not (tmp_path / "run" / "results.json").exists()
    run(tmp_path / "run", 2, **layout)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(("asked", "phase"), [(0, "step"), (1, "evaluation"), (0, "push"), (1, "checkpoint")])
def test_a_signal_to_one_of_them_makes_a_checkpoint(layout, uninterrupted, tmp_path, asked, phase):
    done = signal_once(tmp_path / "run", asked, phase, 8, random.Random(asked), **layout)
    # They agree on a step that none of them has begun.
    assert done <= int(checkpoint(tmp_path / "run").step) < 60
    run(tmp_path / "run", 2, **layout)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_kills_in_every_phase_of_a_pruning_and_a_signal(compilation_cache_dir, tmp_path):  # noqa: F811
    layout, rng = {"program": TRAIN_SWAMP._replace(fields=PRUNING), "devices": 1, "compiled": compilation_cache_dir}, random.Random(3)
    of_0 = {*PRUNING_PHASES, "finish"}
    # Process 0 alone writes and removes.
    assert phases_of_both(tmp_path / "whole", **layout) == [of_0, of_0 - {"checkpoints commit", "checkpoints eviction", "weights"}]
    for turn, (phase, process) in enumerate(PRUNING_PHASES.items()):
        victims = (process,) if turn % 3 else (process, 1 - process)
        kill_once(tmp_path / "run", Kill(phase, MOMENTS[turn % 2], victims), 0, rng, **layout)
    signal_once(tmp_path / "run", 1, "step", 0, rng, **layout)
    kill_once(tmp_path / "run", Kill("finish", "enter", (0,)), 0, rng, **layout)
    run(tmp_path / "run", 2, **layout)
    mine, whole = listing(tmp_path / "run"), listing(tmp_path / "whole")
    weights = [path for path in whole if path.endswith(".safetensors")]
    assert len(weights) > 20 and all(mine[path] == whole[path] for path in weights)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
