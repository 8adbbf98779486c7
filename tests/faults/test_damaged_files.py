"""Every file that a run leaves, truncated, with a flipped bit, or missing: the same command ends right, or says one clear line."""

import random
import shutil

import pytest

from damaged_files import DAMAGES, are_equal, files_by_kind, give_again_after
from short_runs import RUN, compilation_cache_dir, compiled_once, exported, give_again, outside, train, whole  # noqa: F401


@pytest.fixture(scope="module")
def interrupted(outside, tmp_path_factory):  # noqa: F811
    """The work directory of a run that has done 12 of 16 steps."""
    directory = tmp_path_factory.mktemp("damaged") / "run"
    train(directory, {**RUN, "training.duration": "12 steps"})
    return directory


def continue_damaged(run, whole, path, damage, rng, place):  # noqa: F811
    """Damages a copy and gives the same command; how it went."""
    _, ended, weights = give_again_after(damage, run, path, place, rng, give_again=give_again, exported=exported)
    if weights is None:
        return "refused"
    same = are_equal(weights, whole)
    # A lost member of the window cannot be made again, but it is not lost in silence.
    assert same or "the window has lost its members" in ended.stderr, (path, damage, ended.stderr)
    return "same" if same else "warned"


def test_kinds_of_files(interrupted):
    kinds = files_by_kind(interrupted)
    assert {"config.json", "environment.json", "metrics.jsonl", "results.json", "hwa.safetensors", "checkpoints/tree.json", "window/tree.json"} <= set(kinds)
    assert any(kind.startswith("checkpoints/arrays") for kind in kinds) and any(kind.startswith("window/arrays") for kind in kinds)


@pytest.mark.parametrize(("kind", "damage", "end"), [
    ("config.json", "missing", "refused"), ("metrics.jsonl", "missing", "same"), ("results.json", "truncated", "refused"),
    ("checkpoints/tree.json", "bit flipped", "same"), ("window/tree.json", "truncated", "warned"), ("environment.json", "missing", "same"),
    ("hwa.safetensors", "truncated", "same"),
])
def test_one_damaged_file(interrupted, whole, tmp_path, kind, damage, end):  # noqa: F811
    path = files_by_kind(interrupted)[kind][-1]
    assert continue_damaged(interrupted, whole, path, damage, random.Random(0), tmp_path) == end


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_file(interrupted, whole, tmp_path, damage):  # noqa: F811
    rng, ends = random.Random(damage), {}
    for kind, paths in files_by_kind(interrupted).items():
        place = tmp_path / str(len(ends))
        ends[kind] = continue_damaged(interrupted, whole, rng.choice(paths), damage, rng, place)
        shutil.rmtree(place)
    # The newest checkpoint is passed over for the one before it, and what is written at the end is written anew.
    assert ends["hwa.safetensors"] == "same" and ends["checkpoints/tree.json"] == "same"
