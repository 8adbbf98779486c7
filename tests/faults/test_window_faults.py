"""The window under damage on the disk, strangers in its directory, and errors of its worker."""

import os
import shutil
import subprocess
import sys
import threading

import pytest
from storage_cases import assert_mean_of, filled, member, tmp_path  # noqa: F401

from hwa_jax.errors import UserError
from hwa_jax.storage import tree_directory, window_store
from hwa_jax.storage.window_store import WindowStore


def step_path(directory, step):
    return directory / f"step_{step:08d}.0"


def files_of(directory, step):
    return sorted(path for path in step_path(directory, step).rglob("*") if path.is_file())


def truncate_arrays(path):
    for file in (path / "arrays").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = {
    "tree.json is missing": lambda path: (path / "tree.json").unlink(),
    "tree.json is empty": lambda path: (path / "tree.json").write_text(""),
    "tree.json is altered": lambda path: (path / "tree.json").write_text(
        (path / "tree.json").read_text().replace("layers", "lawyers")
    ),
    "tree.json is not text": lambda path: (path / "tree.json").write_bytes(b"\xff\xfe\n{}"),
    "no arrays": lambda path: shutil.rmtree(path / "arrays"),
    "half the arrays": lambda path: shutil.rmtree(path / "arrays" / "d"),
    "arrays of another step": lambda path: (
        shutil.rmtree(path / "arrays"),
        shutil.copytree(path.parent / "step_00000001.0" / "arrays", path / "arrays"),
    ),
    "truncated": truncate_arrays,
    "empty": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize(
    "damage, damaged", [*((damage, 4) for damage in DAMAGE), ("truncated", 3), ("truncated", 6)]
)
def test_a_damaged_member_is_left_out_with_a_warning(tmp_path, caplog, damage, damaged):
    filled(tmp_path, range(1, 7), keep=6).close()
    DAMAGE[damage](step_path(tmp_path, damaged))
    window = WindowStore(tmp_path, 3, keep=6)
    whole = [step for step in range(1, 7) if step != damaged]
    assert window.steps == whole[-3:]
    assert_mean_of(window.mean(), whole[-3:])
    assert_mean_of(window.mean(size=6), whole)
    assert window.stored_steps == whole
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert f"step {damaged} " in line and str(step_path(tmp_path, damaged)) in line
    with pytest.raises(UserError, match="no undamaged step"):
        window.member(damaged)
    # Training goes on: the damaged step is pushed again, or pushed out of the window.
    again = whole[-1] + 1
    window.push(again, member(60))
    assert_mean_of(window.mean(), [*whole[-2:], 60])
    for step in range(again + 1, again + 7):
        window.push(step, member(step))
    window.close()
    assert sorted(os.listdir(tmp_path)) == [f"step_{again + i:08d}.0" for i in range(1, 7)]


def test_damage_is_noticed_when_the_member_is_asked_for(tmp_path):
    filled(tmp_path, range(1, 5), size=1, keep=4).close()
    window = WindowStore(tmp_path, 1, keep=4)
    truncate_arrays(step_path(tmp_path, 2))
    with pytest.raises(UserError, match="step_00000002.0: is damaged .*: delete this directory"):
        window.member(2)
    assert window.stored_steps == [1, 3, 4]


def test_every_flipped_bit_is_noticed(tmp_path):
    filled(tmp_path, [1, 2]).close()
    for file in files_of(tmp_path, 2):
        original = file.read_bytes()
        for position in {0, len(original) // 3, len(original) // 2, len(original) - 1}:
            altered = bytearray(original)
            altered[position] ^= 0x10
            file.write_bytes(altered)
            assert WindowStore(tmp_path, 1).steps == [1], (file, position)
        file.write_bytes(original)
    assert WindowStore(tmp_path, 1).steps == [2]


def test_arrays_that_orbax_stored_wrongly_are_noticed(tmp_path, monkeypatch):
    """Files as they were written, but not the numbers that were pushed."""
    write = tree_directory.write_arrays
    monkeypatch.setattr(
        tree_directory, "write_arrays", lambda path, leaves: write(path, [x * 2 for x in leaves])
    )
    window = filled(tmp_path, [1])
    with pytest.raises(UserError, match="leaf layers/0/kernel: the checksum differs"):
        window.member(1)


def test_a_program_that_forgets_to_close_is_warned(tmp_path):
    program = (
        "import sys, time, numpy\n"
        "from hwa_jax.storage import tree_directory, window_store\n"
        "window = window_store.WindowStore(sys.argv[1], 2)\n"
        "window.push(1, {'w': numpy.zeros(3)}); window.wait()\n"
        "tree_directory.write_arrays = lambda *_: time.sleep(60)\n"
        "window.push(2, {'w': numpy.zeros(3)})\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"pushes to {tmp_path}: 1 are lost, it was not closed" in done.stderr
    assert WindowStore(tmp_path, 2).steps == [1]


def test_members_of_two_models_in_one_directory(tmp_path, caplog):
    filled(tmp_path, [1, 2, 3]).close()
    with WindowStore(tmp_path / "other", 3) as other:
        other.push(2, {"w": 1.0})
    shutil.rmtree(step_path(tmp_path, 2))
    shutil.move(step_path(tmp_path / "other", 2), tmp_path)
    window = WindowStore(tmp_path, 3)
    assert window.steps == [1, 3]
    assert "w is float64[]" in caplog.text or "layers" in caplog.text
    assert_mean_of(window.mean(), [1, 3])


def test_leftovers_are_ignored_and_strangers_are_left_alone(tmp_path):
    filled(tmp_path, [1, 2]).close()
    shutil.copytree(step_path(tmp_path, 2), tmp_path / ".saving-step_00000003.0")
    shutil.copytree(step_path(tmp_path, 1), tmp_path / ".removed-step_00000000.0")
    shutil.copytree(step_path(tmp_path, 1), tmp_path / "step_00000002.1")  # the old one not yet gone
    for name in ("notes.txt", ".hidden", "step_1", "step_00000009.0.bak"):
        (tmp_path / name).write_text("")
    before = sorted(os.listdir(tmp_path))
    window = WindowStore(tmp_path, 3)
    assert window.steps == [1, 2]
    assert_mean_of(window.mean(), [1, 1])
    assert sorted(os.listdir(tmp_path)) == before  # reading changes nothing
    window.push(3, member(3))
    assert_mean_of(window.mean(), [1, 1, 3])
    window.close()
    assert sorted(os.listdir(tmp_path)) == [
        ".hidden", "notes.txt", "step_00000001.0", "step_00000002.1", "step_00000003.0",
        "step_00000009.0.bak", "step_1",
    ]  # fmt: skip


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file"):
        WindowStore(tmp_path / "file", 2)
    with WindowStore(tmp_path / "file" / "window", 2) as window:
        window.push(1, member(1))
        with pytest.raises(UserError, match="cannot be written"):
            window.wait()


def test_push_returns_before_the_save_and_the_queue_is_bounded(tmp_path, monkeypatch):
    may_write, pushed = threading.Event(), []
    write = tree_directory.write_arrays
    monkeypatch.setattr(
        tree_directory, "write_arrays", lambda *args: (may_write.wait(30), write(*args))
    )
    window = WindowStore(tmp_path, 9)

    def push_many():
        for step in range(9):
            window.push(step, member(step))
            pushed.append(step)

    pusher = threading.Thread(target=push_many)
    pusher.start()
    # One in the worker's hands, the queue full, one more waiting for its place.
    while len(pushed) < 1 + window_store._QUEUE_LENGTH:
        assert pusher.is_alive()
    pusher.join(0.2)
    assert pusher.is_alive() and len(pushed) == 1 + window_store._QUEUE_LENGTH
    may_write.set()
    pusher.join()
    assert_mean_of(window.mean(), range(9))
    window.close()


@pytest.mark.parametrize("surface", ["push", "wait", "close", "mean", "steps", "exit"])
def test_an_error_of_the_worker_surfaces_once_and_leaves_no_hole(tmp_path, monkeypatch, surface):
    window = filled(tmp_path, [1, 2])
    failing = threading.Event()

    def fail(*_):
        failing.wait(30)
        raise RuntimeError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(tree_directory, "write_arrays", fail)
        window.push(3, member(3))
        window.push(4, member(4))  # waits behind the one that fails, and is dropped with it
        failing.set()
        window._worker._queue.join()
    actions = {
        "push": lambda: window.push(5, member(5)),
        "wait": window.wait,
        "close": window.close,
        "mean": window.mean,
        "steps": lambda: window.steps,
        "exit": lambda: window.__exit__(None, None, None),
    }
    with pytest.raises(RuntimeError, match="on fire"):
        actions[surface]()
    assert window.steps == [1, 2]
    assert_mean_of(window.mean(), [1, 2])
    if surface not in ("close", "exit"):
        window.push(3, member(3))
        assert_mean_of(window.mean(), [1, 2, 3])
    window.close()
    window.close()
    assert WindowStore(tmp_path, 3).steps in ([1, 2], [1, 2, 3])


def test_a_model_larger_than_the_cache_is_read_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(window_store, "_CACHE_BYTES", 0)
    window = filled(tmp_path, range(6), keep=5)
    assert window._cache == {}
    assert_mean_of(window.mean(), [3, 4, 5])
    window.close()
    assert_mean_of(WindowStore(tmp_path, 3).mean(), [3, 4, 5])


def test_what_was_evicted_leaves_the_memory(tmp_path):
    window = filled(tmp_path, range(20), size=2, keep=4)
    assert sorted(window._cache) == window.stored_steps == [16, 17, 18, 19]


def test_a_second_window_reads_while_the_first_pushes(tmp_path):
    with WindowStore(tmp_path, 2) as writer:
        for step in range(1, 8):
            writer.push(step, member(step))
            writer.wait()
            reader = WindowStore(tmp_path, 2)
            assert_mean_of(reader.mean(), reader.steps)
            assert reader.steps == [step - 1, step][-min(step, 2) :]
