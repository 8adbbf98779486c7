"""Two processes of a watched program: one waits in its phases, and is killed, stopped or asked to end there, or both are."""

import contextlib
import pathlib
import signal
import subprocess
import tempfile
from typing import NamedTuple

from killed_training import Child, phases_in, watched_command
from process_runs import free_port
from programs import SECONDS

PEER_TIMEOUT = 5
# What docs/scale.md promises: a process that has lost another one ends within --peer_timeout and so much more.
MARGIN = 10
LOST = {
    0: "error: process 0 is gone, and the others cannot go on without it: the same command continues",
    1: f"error: process 1 has been silent for {PEER_TIMEOUT} s: it is stopped, or its host or network is gone; end it, "
       "and the same command continues (--peer_timeout waits longer)",
}


class Kill(NamedTuple):
    """Where two processes are killed.

    Attributes:
        phase: of the first victim.
        moment: "enter", "within" or "exit".
        victims: the numbers of those that are killed; the first one waits there.
    """

    phase: str
    moment: str
    victims: tuple[int, ...]


class WatchedPair:
    """Two processes of a program; a context manager that leaves none of them behind.

    Args:
        directory: the work directory.
        waiting: the number of the one that waits in its phases, or None; the others go on without asking.
        program: a `process_runs.Program`.
        devices: fake devices of each.
        compiled: directory of compiled programs.
    """

    def __init__(self, directory, waiting, *, program, devices, compiled):
        command = watched_command(
            pathlib.Path(program.script).name, pathlib.Path(program.config).name, program.fields, compiled, devices=devices
        )
        flags = ["--num_processes=2", f"--coordinator=127.0.0.1:{free_port()}", f"--peer_timeout={PEER_TIMEOUT}"]
        # Files, since a pipe that nobody reads holds up its writer.
        self._stdouts, self._stderrs = ([tempfile.TemporaryFile("w+") for _ in range(2)] for _ in range(2))
        self.all = [
            Child(
                command, directory, [*flags, f"--process_id={number}"], waits=number == waiting,
                stdout=subprocess.PIPE if number == waiting else self._stdouts[number], stderr=self._stderrs[number],
            )
            for number in range(2)
        ]
        self.waiting = None if waiting is None else self.all[waiting]

    def end_of(self, number, timeout):
        """(exit code, stderr) of one that ends by itself within so many seconds."""
        return self.all[number].process.wait(timeout), _content(self._stderrs[number])

    def phases_of(self, number):
        """The names of the phases that one which does not wait spoke of."""
        return phases_in(_content(self._stdouts[number]).splitlines())

    def assert_survivors_end(self, victims):
        """Those that are left end within the stated time, with the one line that says who is lost."""
        for number in {0, 1} - {*victims}:
            self.assert_ends_saying(number, LOST[1 - number])

    def assert_ends_saying(self, number, line):
        """One ends within the stated time, with this line alone."""
        code, stderr = self.end_of(number, PEER_TIMEOUT + MARGIN)
        said = [found for found in stderr.splitlines() if found.startswith("error: ")]
        assert code == 1 and said == [line] and "Traceback" not in stderr, (code, stderr[-3000:])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.all:
            child.process.kill()
            child.limit.cancel()
        for child in self.all:
            # A pipe to a process that is gone.
            with contextlib.suppress(BrokenPipeError):
                child.process.communicate()
        for file in (*self._stdouts, *self._stderrs):
            file.close()


def _content(file):
    file.seek(0)
    return file.read()


def kill_once(directory, kill, least, rng, **layout):
    """One start that ends by a `Kill` after at least so many steps; returns the step or cycle at which it was."""
    with WatchedPair(directory, kill.victims[0], **layout) as pair:
        done = pair.waiting.reach(kill.phase, kill.moment, least, rng)
        for number in kill.victims:
            pair.all[number].process.kill()
        pair.assert_survivors_end(kill.victims)
    print(f"killed {kill.victims} {kill.moment} {kill.phase} {done}")
    return done


def stop_once(directory, stopped, phase, least, rng, **layout):
    """One start in which one process is stopped (SIGSTOP) in a phase, the other one ends, and the stopped one is killed."""
    with WatchedPair(directory, stopped, **layout) as pair:
        pair.waiting.reach(phase, "within", least, rng)
        pair.waiting.process.send_signal(signal.SIGSTOP)
        pair.assert_ends_saying(1 - stopped, LOST[1].replace("process 1", f"process {stopped}"))


def signal_once(directory, asked, phase, least, rng, **layout):
    """One start in which one process gets SIGTERM within a phase and both end as asked; returns the step or cycle."""
    with WatchedPair(directory, asked, **layout) as pair:
        done = pair.waiting.reach(phase, "within", least, rng)
        pair.waiting.process.send_signal(signal.SIGTERM)
        pair.waiting.go_slowly()
        ends = [pair.end_of(number, 10 * PEER_TIMEOUT) for number in range(2)]
    assert [code for code, _ in ends] == [143, 143], ends
    assert "stopped by a signal" in ends[0][1]
    return done


def phases_of_both(directory, **layout):
    """A run that nothing happens to; returns the names of the phases of process 0 and those of process 1."""
    with WatchedPair(directory, None, **layout) as pair:
        ends = [pair.end_of(number, SECONDS) for number in range(2)]
        assert [code for code, _ in ends] == [0, 0], ends
        return [pair.phases_of(number) for number in range(2)]
