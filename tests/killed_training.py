"""A program of experiments/, saying what it is about to do and waiting to be told to go on; and its other end.

Before and after every step, every event that is due and every commit and removal of a checkpoint or member of the window, and in pruning every mask, every cycle that is stored, every file of
weights in it, and the end, the program writes a line to stdout, "enter push 8" or "exit push 8", and reads a line from stdin.
Once stdin has ended, it goes on without asking.
"""

import itertools
import os
import random
import re
import subprocess
import sys
import threading
import time

from hwa_jax.algorithms import cycle_files, hwa
from hwa_jax.algorithms.pruning_run import PruningRun
from hwa_jax.training import loop
from hwa_jax.storage import atomic
from programs import ROOT, SECONDS, process_environment

STDOUT = sys.stdout
SPEAKING = threading.Lock()


def tell(moment, phase, done):
    # The window commits and removes its members on a thread of its own.
    with SPEAKING:
        print(moment, phase, done, file=STDOUT, flush=True)
    sys.stdin.readline()


def watched(phase, act):
    def call(done, state):
        tell("enter", phase, done)
        state = act(done, state)
        tell("exit", phase, done)
        return state

    return call


def watch():
    """Wraps the loop's steps and events, the stores, the end, and what a run of pruning does between its cycles."""
    run, perform = loop.run, loop.perform

    def watched_run(state, step, steps, **keywords):
        numbers = iter(steps)

        def watched_step(state, count):
            [*_, last] = itertools.islice(numbers, count)
            return watched("step", lambda done, state: step(state, count))(last + 1, state)

        return run(state, watched_step, steps, **keywords)

    def watched_perform(event, done, state):
        return perform(event._replace(act=watched(event.name, event.act)), done, state)

    loop.run, loop.perform = watched_run, watched_perform
    watch_stores("remove_directory", "eviction", ("checkpoints", "window"))
    watch_stores("commit_directory", "commit", ("checkpoints", "window"))
    watch_method(hwa._Hwa, "finish", lambda workdir, state: int(state.step))
    watch_method(PruningRun, "store", lambda trained, *args, **keywords: trained.cycle)
    for name in ("prune", "finish"):
        watch_method(PruningRun, name, lambda cycle, *args: cycle)
    save = cycle_files.save_sparse_weights
    cycle_files.save_sparse_weights = lambda path, *args: watched("weights", lambda *_: save(path, *args))(args[-1]["cycle"], None)


def watch_stores(name, phase, stores):
    """Wraps what removes or commits a step of these stores; the step's directory is its last argument."""
    act = getattr(atomic, name)

    def call(*paths):
        directory, step = os.path.split(paths[-1])
        # Pruning keeps the checkpoints of each cycle in a directory of their own.
        store, member = re.sub(r"cycle_\d+", "checkpoints", os.path.basename(directory)), re.match(r"step_(\d+)", step)
        if store not in stores or not member:
            return act(*paths)
        return watched(f"{store} {phase}", lambda *_: act(*paths))(int(member[1]), None)

    setattr(atomic, name, call)


def watch_method(place, name, number_of):
    """Wraps a method; `number_of` gives the step or cycle at which it is called with these arguments."""
    method = getattr(place, name)

    def call(run, *args, **keywords):
        return watched(name, lambda *_: method(run, *args, **keywords))(number_of(*args, **keywords), None)

    setattr(place, name, call)


def watched_command(program, config, fields, compiled, *, devices=1):
    """Arguments and environment of a watched program, less its work directory.

    Args:
        program: of experiments/.
        config: of configs/.
        fields: dotted name -> value.
        compiled: the directory of compiled programs.
        devices: how many fake ones it has.
    """
    overrides = [f"--config.{field}={value}" for field, value in fields.items()]
    return [sys.executable, __file__, program, f"--config={ROOT / 'configs' / config}", *overrides], process_environment(devices, compiled)


class Child:
    """The training as a child process that waits in its phases; one that has not ended after `SECONDS` is killed.

    Args:
        command: as `watched_command` returns it.
        directory: the work directory.
        flags: further ones.
        waits: False: it goes on without asking.
        stdout, stderr: as of `subprocess.Popen`; nobody reads the pipe of one that does not wait.
    """

    def __init__(self, command, directory, flags=(), *, waits=True, stdout=subprocess.PIPE, stderr=None):
        arguments, environment = command
        self.process = subprocess.Popen(
            [*arguments, f"--workdir={directory}", *flags], env=environment, stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
            stdout=stdout, stderr=stderr, text=True,
        )
        # What is read from it ends then.
        self.limit = threading.Timer(SECONDS, self.process.kill)
        self.limit.daemon = True
        self.limit.start()

    def wait_for(self, moment, phase, least):
        """Lets it go until `moment` ("enter" or "exit") of `phase` after at least so many steps; returns the step."""
        for line in self.process.stdout:
            said, *name = line.split() or [""]
            if (said, " ".join(name[:-1])) == (moment, phase) and int(name[-1]) >= least:
                return int(name[-1])
            if said in ("enter", "exit"):
                self.go()
        raise AssertionError(f"ended with {self.process.wait()} before it could {moment} {phase} after step {least}")

    def reach(self, phase, moment, least, rng):
        """Lets it go until before ("enter"), "within" or after ("exit") a phase, after at least so many steps; returns the step."""
        done = self.wait_for("enter" if moment == "within" else moment, phase, least)
        if moment == "within":
            self.go()
            time.sleep(rng.uniform(0, 0.02))
        return done

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def go_slowly(self):
        """Lets it go on to its end, a tenth of a second per line: time for the runtime, which looks for signals once a second."""
        for line in self.process.stdout:
            if line.startswith(("enter ", "exit ")):
                time.sleep(0.1)
                self.go()

    def kill(self):
        """Ends it without warning."""
        self.process.kill()
        self._end()

    def finish(self):
        """Lets it go on to its end; returns the exit code."""
        self.process.stdin.close()
        self.process.stdout.read()
        return self._end()

    def phases(self):
        """Lets it go on to its end, which must be good; returns the names of all phases that it spoke of."""
        self.process.stdin.close()
        phases = phases_in(self.process.stdout)
        assert self._end() == 0
        return phases

    def _end(self):
        code = self.process.wait()
        self.limit.cancel()
        self.process.stdout.close()
        return code


def phases_in(lines):
    """The names of the phases that are entered in these lines."""
    return {" ".join(line.split()[1:-1]) for line in lines if line.startswith("enter ")}


def kill_once(command, directory, phase, moment, least, rng):
    """One start that is killed before ("enter"), "within" or after ("exit") a phase; the step at which it was."""
    child = Child(command, directory)
    done = child.reach(phase, moment, least, rng)
    child.kill()
    return done


def run_through(command, directory, kills, seed):
    """Kills the training at the given (phase, moment), one start each, then lets it finish."""
    rng, least = random.Random(seed), 1
    for phase, moment in kills:
        done = kill_once(command, directory, phase, moment, 1 if "eviction" in phase else least, rng)
        # Back and forth: sometimes at once after the resume, sometimes further on.
        least = min(done + rng.randint(-2, 3), 8)
    assert Child(command, directory).finish() == 0


if __name__ == "__main__":
    import runpy

    watch()
    sys.argv[:2] = [str(ROOT / "experiments" / sys.argv[1])]
    runpy.run_path(sys.argv[0], run_name="__main__")
