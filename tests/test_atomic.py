"""Files that are complete or absent: faults in the middle, full disks, torn lines."""

import errno
import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from hwa_jax.errors import UserError
from hwa_jax.storage import atomic
from hwa_jax.storage.checkpoint import CheckpointStore
from hwa_jax.storage.json_lines import append_json_lines, read_json_lines, rewrite_json_lines
from hwa_jax.storage.window_store import WindowStore


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 1 MiB; skips where it cannot be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip(f"a tmpfs needs root: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_writes_replace_the_whole_file(tmp_path):
    path = tmp_path / "file"
    atomic.write_bytes(path, bytes(range(256)) * 5000)
    atomic.write_text(str(path), "ü\n")
    assert path.read_bytes() == b"\xc3\xbc\n"
    atomic.write_json(path, {"b": [1, 2.5], "a": None})
    assert json.loads(path.read_text()) == {"b": [1, 2.5], "a": None}
    assert path.read_text().endswith("}\n")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_fault_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch, function):
    path = tmp_path / "file"
    atomic.write_text(path, "old")

    def fault(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, function, fault)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_new_file_is_synchronized_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    real = {name: getattr(os, name) for name in ("fsync", "replace")}
    for name in real:
        monkeypatch.setattr(
            os, name, lambda *args, name=name: (calls.append(name), real[name](*args))
        )
    atomic.write_text(tmp_path / "file", "new")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_leftover_of_a_killed_write_is_replaced(tmp_path):
    (tmp_path / ".file.tmp").write_text("half of a longer te")
    atomic.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_what_json_does_not_know_leaves_the_old_file(tmp_path):
    atomic.write_json(tmp_path / "file", 1)
    with pytest.raises(TypeError):
        atomic.write_json(tmp_path / "file", {"a": object()})
    assert (tmp_path / "file").read_text() == "1\n"


def test_a_path_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "missing" / "a", tmp_path / "file" / "a", tmp_path):
        with pytest.raises(UserError, match="cannot be written") as error:
            atomic.write_text(path, "x")
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_full_disk_leaves_the_old_file_and_says_what_is_needed(tiny_disk):
    path = tiny_disk / "file"
    atomic.write_text(path, "old")
    with pytest.raises(UserError, match=r"disk is full, 2,000,000 bytes are needed and [\d,]+ are"):
        atomic.write_bytes(path, bytes(2_000_000))
    assert path.read_text() == "old"
    assert os.listdir(tiny_disk) == ["file"]
    atomic.write_text(path, "new")
    assert path.read_text() == "new"


def test_a_full_disk_stops_an_append_and_the_log_stays_readable(tiny_disk):
    path = tiny_disk / "metrics.jsonl"
    append_json_lines(path, [{"step": 1}])
    with pytest.raises(UserError, match="disk is full"):
        append_json_lines(path, [{"text": "x" * 2_000_000}])
    assert read_json_lines(path) == [{"step": 1}]


@pytest.mark.parametrize("asked_first", [True, False])
def test_a_full_disk_leaves_the_window_and_pushing_goes_on(tiny_disk, monkeypatch, asked_first):
    if not asked_first:  # Orbax itself runs into the end of the disk.
        monkeypatch.setattr(atomic, "free_bytes", lambda path: 1 << 40)
    rng = np.random.default_rng(0)
    window = WindowStore(tiny_disk / "window", 2)
    for step in (1, 2):
        window.push(step, {"w": rng.normal(size=100)})
    window.wait()
    window.push(3, {"w": rng.normal(size=100)})
    with pytest.raises(UserError, match="choose another directory"):
        window.push(4, {"w": rng.normal(size=250_000)})
    big = WindowStore(tiny_disk / "big", 2)
    big.push(1, {"w": rng.normal(size=250_000)})
    with pytest.raises(UserError, match=r"big: the disk is full, 2,[\d,]+ bytes are needed"):
        big.wait()
    assert big.steps == [] and window.steps == [2, 3]
    assert not [name for name in os.listdir(tiny_disk / "big") if name.startswith(".")]
    window.push(4, {"w": np.ones(100)})
    assert window.steps == [3, 4]
    window.close()
    big.close()


def test_a_full_disk_leaves_the_checkpoint(tiny_disk):
    store = CheckpointStore(tiny_disk)
    store.save(1, {"w": np.arange(5)})
    with pytest.raises(UserError, match="disk is full"):
        store.save(1, {"w": np.random.default_rng(0).normal(size=200_000)})
    np.testing.assert_array_equal(store.restore().tree["w"], np.arange(5))


def test_directories_are_committed_and_removed_by_one_rename(tmp_path, monkeypatch):
    aside, path = tmp_path / ".aside", tmp_path / "done"
    (aside / "inner").mkdir(parents=True)
    (aside / "inner" / "file").write_text("x")
    atomic.commit_directory(aside, path)
    assert (path / "inner" / "file").read_text() == "x" and not aside.exists()
    aside.mkdir()
    with pytest.raises(OSError):
        atomic.commit_directory(aside, path)
    # A removal that dies right after its rename has taken the name away already.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        atomic.remove_directory(path)
    assert not path.exists() and (tmp_path / ".removed-done" / "inner" / "file").exists()
    path.mkdir()
    # What is not there is removed already.
    for _ in range(2):
        atomic.remove_directory(path)
        assert os.listdir(tmp_path) == [".aside"]


@pytest.mark.parametrize("torn", range(len(b'{"step": 3}\n')))
def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next_append(tmp_path, torn):
    path = tmp_path / "log"
    append_json_lines(path, [{"step": 1}, {"step": 2}])
    with open(path, "ab") as file:
        file.write(b'{"step": 3}\n'[:torn])
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    append_json_lines(path, [{"step": 4}])
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}, {"step": 4}]


def test_a_long_torn_line_and_a_file_without_any_newline(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"x" * 200_000)
    assert read_json_lines(path) == []
    append_json_lines(path, [1])
    with open(path, "ab") as file:
        file.write(b"y" * 200_000)
    append_json_lines(path, [2])
    assert path.read_bytes() == b"1\n2\n"


def test_a_bad_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match="log: line 2 is not JSON"):
        read_json_lines(path)
    path.write_text('{"step": 1}\n{"ste\n')  # the last one, written by a disk that lost power
    assert read_json_lines(path) == [{"step": 1}]


def test_rewriting_replaces_all_rows(tmp_path):
    path = tmp_path / "log"
    append_json_lines(path, [{"step": s} for s in range(5)])
    rewrite_json_lines(path, read_json_lines(path)[:2])
    assert read_json_lines(path) == [{"step": 0}, {"step": 1}]
    with pytest.raises(TypeError):
        rewrite_json_lines(path, [1, object()])
    with pytest.raises(TypeError):
        append_json_lines(path, [1, object()])
    assert read_json_lines(path) == [{"step": 0}, {"step": 1}]
