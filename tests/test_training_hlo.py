"""The trainer's own programs over eight devices: one all-reduce for a synchronization, none between two."""

import jax
import pytest
from hwa_jax.training.hlo import collectives

from hwa_jax.algorithms import hwa
from hwa_jax.training.session import Session
from hwa_jax.training.workdir import Workdir
from training_runs import compilation_cache_dir, compiled_once, small_setup  # noqa: F401

pytestmark = pytest.mark.usefixtures("compiled_once")
EIGHT = {"num_devices": 8, "hwa.num_replicas": 8, "model.norm": "batch", "optimizer.momentum": 0.9}


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    setup, directory = small_setup(EIGHT), tmp_path_factory.mktemp("eight")
    with Workdir(directory, setup.config, setup.dataset.fingerprint) as workdir, Session(setup, workdir) as session:
        yield session


def assert_one_all_reduce(lines, leaves, *shape):
    """Of all weights, each as it lies on one device: a particle, of as many seeds as there are."""
    assert len(lines) == 1 and " all-reduce" in lines[0]
    carried = lines[0].split(" all-reduce")[0]
    assert carried.count("f32[") == len(leaves)
    for leaf in leaves:
        assert f"f32[{','.join(map(str, (*shape, *leaf.shape[1:])))}]" in carried


def test_a_step_communicates_once_where_an_average_is_due(session):
    indices, key, extra = session.inputs
    text = session.setup.step.lower(session.state, indices, session.setup.train, key, extra).compile().as_text()
    always, sometimes = collectives(text)
    assert always == []
    assert_one_all_reduce(sometimes, jax.tree.leaves(session.state.params))


def test_seeds_share_the_all_reduce(session):
    programs = session.setup.seed_programs
    state = programs.stack_states([session.state] * 3)
    indices, key, extra = programs.stack_inputs([session.inputs] * 3)
    always, sometimes = collectives(programs.step.lower(state, indices, session.setup.train, key, extra).compile().as_text())
    assert always == []
    assert_one_all_reduce(sometimes, jax.tree.leaves(session.state.params), 3)


def test_statistics_are_averaged_by_one_all_reduce(session, tmp_path):
    with hwa.open_window(session.setup, tmp_path) as window:
        average = hwa._Hwa(session, window)._average_batch_stats
        always, sometimes = collectives(average.lower(session.state.batch_stats).compile().as_text())
    assert sometimes == []
    assert_one_all_reduce(always, jax.tree.leaves(session.state.batch_stats))
