"""A disk that runs full at one file or another: one clear line, and the same command goes on once there is room."""

import os
import subprocess

import numpy as np
import pytest

from short_runs import compilation_cache_dir, compiled_once, exported, give_again, outside, whole  # noqa: F401


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a file system of so many kilobytes, or gives the mounted one another size."""
    place = tmp_path / "disk"
    place.mkdir()

    def size(kilobytes, *more):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kilobytes}k", *more]), "tmpfs", place]
        if os.getuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small file system")
        return place

    yield size
    subprocess.run(["umount", place], capture_output=True)


@pytest.mark.parametrize("kilobytes", [900, *(pytest.param(k, marks=pytest.mark.slow) for k in (60, 300, 1200, 1600, 2000, 2600, 3200))])
def test_the_run_goes_on_once_there_is_room(disk, whole, kilobytes):  # noqa: F811
    place = disk(kilobytes)
    ended = give_again(place / "run")
    assert kilobytes > 1600 or (ended.code == 2 and "disk is full" in ended.stderr), ended
    disk(64_000, "remount")
    assert give_again(place / "run").code == 0
    mine = exported(place / "run")
    for name, leaf in whole.items():
        np.testing.assert_array_equal(mine[name], leaf, err_msg=name)
