"""Every file that a run leaves, truncated, with a flipped bit, or missing: the same command ends right, or says one clear line."""

import pathlib
import random
import shutil

import numpy as np
import pytest

from hwa_jax.training import workdir
from programs import ROOT, call
from training_runs import SMALL, compilation_cache_dir, compiled_once, exported, train  # noqa: F401

RUN = {"training.duration": "16 steps", "checkpoint.every": "4 steps", "evaluation.every": "16 steps"}


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def remove(path, rng):
    path.unlink()


DAMAGES = {"truncated": truncate, "bit flipped": flip, "missing": remove}


@pytest.fixture(autouse=True, scope="module")
def outside(compiled_once):  # noqa: F811
    """As in test_bad_input: the cache lies elsewhere, and the environment is the same all the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir, "environment", lambda: {"python": "3"})
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled_once))
        yield


@pytest.fixture(scope="module")
def interrupted(outside, tmp_path_factory):
    """The work directory of a run that has done 12 of 16 steps, and the weights of a whole one."""
    directory = tmp_path_factory.mktemp("damaged")
    train(directory / "run", {**RUN, "training.duration": "12 steps"})
    train(directory / "whole", RUN)
    return directory / "run", exported(directory / "whole")


def files_by_kind(directory):
    """The name of a file, or of the last directory below a numbered step, -> paths; empty files hold nothing to damage."""
    kinds = {}
    for path in sorted(pathlib.Path(directory).rglob("*")):
        if path.is_file() and path.stat().st_size:
            parts = [part for part in path.relative_to(directory).parts if not part.startswith("step_")]
            kinds.setdefault("/".join([*parts[:-1][:3], "*" if "d" in parts[:-1] else parts[-1]]), []).append(path.relative_to(directory))
    return kinds


def continue_damaged(interrupted, path, damage, rng, place):
    """Damages a copy and gives the same command; its end, and how it went."""
    run, whole = interrupted
    copy = pathlib.Path(shutil.copytree(run, place / "run"))
    DAMAGES[damage](copy / path, rng)
    fields = [f"--config.{field}={value}" for field, value in {**SMALL, **RUN}.items()]
    ended = call("train_hwa.py", f"--config={ROOT / 'configs/hwa_digits.py'}", f"--workdir={copy}", *fields)
    if ended.code:
        assert ended.code == 2, ended
        [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in ended.stderr and len(line) < 700
        return "refused"
    mine = exported(copy)
    assert mine.keys() == whole.keys()
    same = all(np.array_equal(mine[name], whole[name]) for name in whole)
    # A lost member of the window cannot be made again, but it is not lost in silence.
    assert same or "the window has lost its members" in ended.stderr, (path, damage, ended.stderr)
    return "same" if same else "warned"


def test_kinds_of_files(interrupted):
    kinds = files_by_kind(interrupted[0])
    assert {"config.json", "environment.json", "metrics.jsonl", "results.json", "hwa.safetensors", "checkpoints/tree.json", "window/tree.json"} <= set(kinds)
    assert any(kind.startswith("checkpoints/arrays") for kind in kinds) and any(kind.startswith("window/arrays") for kind in kinds)


@pytest.mark.parametrize(("kind", "damage"), [
    ("config.json", "missing"), ("metrics.jsonl", "missing"), ("results.json", "truncated"), ("checkpoints/tree.json", "bit flipped"),
    ("window/tree.json", "truncated"), ("environment.json", "missing"), ("hwa.safetensors", "truncated"),
])
def test_one_damaged_file(interrupted, tmp_path, kind, damage):
    path = files_by_kind(interrupted[0])[kind][-1]
    continue_damaged(interrupted, path, damage, random.Random(0), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_file(interrupted, tmp_path, damage):
    rng, ends = random.Random(damage), {}
    for kind, paths in files_by_kind(interrupted[0]).items():
        place = tmp_path / str(len(ends))
        ends[kind] = continue_damaged(interrupted, rng.choice(paths), damage, rng, place)
        shutil.rmtree(place)
    # The newest checkpoint is passed over for the one before it, and what is written at the end is written anew.
    assert ends["hwa.safetensors"] == "same" and ends["checkpoints/tree.json"] == "same"
