"""What is compiled, and when: nothing after the first cycle, two programs for steps, nothing at a second start."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from hwa_jax.training.program import enable_compilation_cache
from hwa_jax.training.session import Session
from compilations import cache_requests, compilations
from programs import ROOT, call
from pruning_runs import SMALL_PRUNING
from training_runs import SMALL, compilation_cache_dir, compiled_once, train  # noqa: F401

# Averages, pushes, evaluations, logs and checkpoints after 6, 12, 18 and 24 steps; epochs end after 9 and 18.
CYCLES = {
    "model.norm": "batch", "training.ema_decay": 0.5, "training.duration": "24 steps",
    **{field: "6 steps" for field in ("hwa.sync_period", "evaluation.every", "logging.every", "checkpoint.every")},
}


@pytest.mark.parametrize(("fields", "settled"), [({}, 6), ({"evaluation.averaging_health": True}, 12)], ids=["plain", "watched"])
def test_hwa_compiles_nothing_after_its_first_cycles(compiled_once, tmp_path, monkeypatch, fields, settled):  # noqa: F811
    checkpoint, compiled_by = Session.checkpoint, {}

    def last_event(session, done, *args):
        state = checkpoint(session, done, *args)
        compiled_by[done] = len(names)
        return state

    monkeypatch.setattr(Session, "checkpoint", last_event)
    with compilations() as names:
        train(tmp_path, {**CYCLES, **fields, "training.steps_per_call": 2})
    assert list(compiled_by) == [6, 12, 18, 24] and compiled_by[6] > 0
    assert names[compiled_by[settled] : compiled_by[24]] == []
    # One program for a step, one for several; and one to evaluate one set of weights, whatever the split and its last batch.
    assert names.count("jit(steps)") == 2
    assert names.count("jit(sums)") == 1


@pytest.fixture
def cache_of_the_program(monkeypatch):
    """JAX as a program finds it, but faster to compile; as before afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_disable_most_optimizations")
    before = {name: getattr(jax.config, name, False) for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_disable_most_optimizations", True)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("program, config, fields", [
    ("train_hwa.py", "hwa_digits.py", SMALL), ("train_swamp.py", "swamp_digits.py", SMALL_PRUNING),
])
def test_a_second_start_compiles_nothing(cache_of_the_program, tmp_path, program, config, fields):
    arguments = [f"--config={ROOT / 'configs' / config}", *(f"--config.{name}={value}" for name, value in fields.items())]

    def start(program, *arguments):
        jax.clear_caches()  # what a new process does not have
        with cache_requests() as counts:
            assert call(program, f"--workdir={tmp_path / 'run'}", *arguments).code == 0
        return counts

    first, kept = start(program, *arguments), list((tmp_path / "run.compiled").iterdir())
    assert first["hits"] < first["requests"] <= len(kept) + first["hits"]
    second = start(program, "--overwrite", *arguments)
    assert second["hits"] == second["requests"] == first["requests"] > 30
    if program == "train_hwa.py":
        start("evaluate.py")
        again = start("evaluate.py")
        assert again["hits"] == again["requests"] > 0


def test_where_nothing_can_be_written_nothing_is_kept(cache_of_the_program, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    enable_compilation_cache(tmp_path / "run.compiled")
    assert jax.config.jax_compilation_cache_dir is None
    enable_compilation_cache(tmp_path.parent / "run.compiled")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path.parent / "run.compiled")
