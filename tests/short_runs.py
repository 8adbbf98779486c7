"""A run of 16 steps with checkpoints after every 4, given again and again, and the weights it must end with."""

import pytest

from hwa_jax.training import workdir
from programs import ROOT, call
from training_runs import SMALL, compilation_cache_dir, compiled_once, exported, train  # noqa: F401

RUN = {"training.duration": "16 steps", "checkpoint.every": "4 steps", "evaluation.every": "16 steps"}


@pytest.fixture(autouse=True, scope="module")
def outside(compiled_once):  # noqa: F811
    """The compilation cache lies outside of what is damaged, and the environment is the same all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir, "environment", lambda: {"python": "3"})
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled_once))
        yield


@pytest.fixture(scope="module")
def whole(outside, tmp_path_factory):
    """The weights of a run that nothing happened to."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    train(directory, RUN)
    return exported(directory)


def give_again(directory, *flags, program="train_hwa.py", config="hwa_digits.py", fields={**SMALL, **RUN}):
    """The end of the program in this work directory; where it refuses, one clear line is all that it says."""
    overrides = [f"--config.{field}={value}" for field, value in fields.items()]
    ended = call(program, f"--config={ROOT / 'configs' / config}", f"--workdir={directory}", *overrides, *flags)
    if ended.code:
        assert ended.code == 2, ended
        [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in ended.stderr and len(line) < 700, ended.stderr
    return ended
