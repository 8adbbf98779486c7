"""Every file that a run leaves, truncated, with a flipped bit, or missing: the same command ends right, warns, or says in one line how it will."""

import random
import shutil

import pytest

from damaged_files import COMMON_ENDS, DAMAGES, end_after, expected_end, files_by_kind
from short_runs import RUN, compilation_cache_dir, compiled_once, exported, give_again, outside, train, whole  # noqa: F401

# How the same command ends where such a file, or one of such a directory, is truncated, has a flipped bit, or is missing.
ENDS = {
    **COMMON_ENDS,
    "hwa.safetensors": ("same", "same", "same"),
    # A lost member of the window cannot be made again, but it is not lost in silence.
    "window": ("warned", "warned", "warned"),
}


@pytest.fixture(scope="module")
def interrupted(outside, tmp_path_factory):  # noqa: F811
    """The work directory of a run that has done 12 of 16 steps."""
    directory = tmp_path_factory.mktemp("damaged") / "run"
    train(directory, {**RUN, "training.duration": "12 steps"})
    return directory


def test_kinds_of_files(interrupted):
    kinds = files_by_kind(interrupted)
    assert {"config.json", "environment.json", "metrics.jsonl", "results.json", "hwa.safetensors", "checkpoints/tree.json", "window/tree.json"} <= set(kinds)
    assert any(kind.startswith("checkpoints/arrays") for kind in kinds) and any(kind.startswith("window/arrays") for kind in kinds)


@pytest.mark.parametrize(("kind", "damage"), [
    ("config.json", "missing"), ("metrics.jsonl", "missing"), ("results.json", "truncated"), ("checkpoints/tree.json", "bit flipped"),
    ("window/tree.json", "truncated"), ("environment.json", "missing"), ("hwa.safetensors", "truncated"),
])
def test_one_damaged_file(interrupted, whole, tmp_path, kind, damage):  # noqa: F811
    path, rng = files_by_kind(interrupted)[kind][-1], random.Random(0)
    end = end_after(damage, interrupted, path, tmp_path, rng, whole=whole, give_again=give_again, exported=exported)
    assert end == expected_end(ENDS, kind, damage)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_kind_of_file(interrupted, whole, tmp_path, damage):  # noqa: F811
    rng, ends, expected = random.Random(damage), {}, {}
    for kind, paths in files_by_kind(interrupted).items():
        place = tmp_path / str(len(ends))
        ends[kind] = end_after(damage, interrupted, paths[-1], place, rng, whole=whole, give_again=give_again, exported=exported)
        expected[kind] = expected_end(ENDS, kind, damage)
        shutil.rmtree(place)
    assert ends == expected
