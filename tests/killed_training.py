"""experiments/train_hwa.py, saying what it is about to do and waiting to be told to go on.

Before and after every step and every event that is due it writes a line to stdout, "enter push 8" or "exit push 8",
and reads a line from stdin. Once stdin has ended, it goes on without asking.
"""

import sys

from hwa_jax.training import loop
from programs import ROOT

STDOUT = sys.stdout


def tell(moment, phase, done):
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
    """Wraps the loop's steps and events."""
    run, perform = loop.run, loop.perform

    def watched_run(state, step, steps, **keywords):
        numbers = iter(steps)
        watched_step = watched("step", lambda done, state: step(state))
        return run(state, lambda state: watched_step(next(numbers) + 1, state), steps, **keywords)

    def watched_perform(event, done, state):
        return perform(event._replace(act=watched(event.name, event.act)), done, state)

    loop.run, loop.perform = watched_run, watched_perform


if __name__ == "__main__":
    import runpy

    watch()
    sys.argv[0] = str(ROOT / "experiments" / "train_hwa.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
