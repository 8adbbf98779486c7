"""Training loops that stay on the device: between events whatever comes from the host, or waits for the device, raises."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwa_jax.training import loop

# What these write or measure has to reach the host.
ON_THE_HOST = ("inner evaluation", "push", "evaluation", "log", "checkpoint")
# What these change, in the buffers where it was.
IN_PLACE = {"collect": lambda state: state, "synchronization": lambda state: state.batch_stats}


class Waited(AssertionError):
    """The host asked for an array's values, or for them to be there."""


@contextlib.contextmanager
def device_only():
    """Within it implicit transfers to a device raise what JAX raises, and looking at an array raises Waited."""

    def refuse(*_, **__):
        raise Waited

    def without_arrays(function):
        return lambda value, *args, **keywords: (refuse if isinstance(value, array) else function)(value, *args, **keywords)

    array = type(jnp.zeros(()))
    with pytest.MonkeyPatch.context() as patch:
        # JAX guards no reading on a CPU. NumPy reads the buffer past JAX, and waiting for a tree happens in C++.
        for name in ("asarray", "array"):
            patch.setattr(np, name, without_arrays(getattr(np, name)))
        for owner, name in [(jax, "device_get"), (jax, "block_until_ready"), (array, "block_until_ready")]:
            patch.setattr(owner, name, refuse)
        patch.setattr(array, "_value", property(refuse))
        with jax.transfer_guard("disallow"):
            yield


@contextlib.contextmanager
def loops_on_the_device():
    """Every loop within it is `device_only`, but for the events above, and its other events donate what they change.

    Yields a set that gets the names of all events that acted.
    """
    run, perform, acted, guard = loop.run, loop.perform, set(), contextlib.ExitStack()

    def guarded_run(*args, **keywords):
        with guard:
            guard.enter_context(device_only())
            return run(*args, **keywords)

    def guarded_perform(event, done, state):
        if not event.is_due(done):
            return state
        acted.add(event.name)
        if event.name not in ON_THE_HOST:
            old = jax.tree.leaves(IN_PLACE.get(event.name, lambda _: ())(state))
            state = perform(event, done, state)
            assert all(leaf.is_deleted() for leaf in old)
            return state
        guard.close()
        state = perform(event, done, state)
        guard.enter_context(device_only())
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "run", guarded_run)
        patch.setattr(loop, "perform", guarded_perform)
        yield acted
