"""What the processes of a training know of each other: who has ended and why, and who has fallen silent.

All of it goes through the key-value store of JAX's distributed runtime, which process 0 holds.
"""

import atexit
import collections
import contextlib
import ctypes
import faulthandler
import itertools
import json
import logging
import os
import signal
import socket
import sys
import threading
import time

import jax

POLL_SECONDS = 1.0
_CONNECT_SECONDS = 3.0
LEFT = "left"
_ENDED, _ALIVE = "hwa_jax_ended/", "hwa_jax_alive/"


class Silence:
    """For how many looks each process has said nothing new.

    Looks are counted, not seconds: a machine that is suspended and goes on with all its processes has lost nobody.

    Args:
        limit: so many looks are too many.

    Example:
        >>> silence = Silence(limit=2)
        >>> silence.hear(1, "first"), silence.look(), silence.hear(1, "first"), silence.look()
        (None, None, None, 1)
        >>> silence.hear(1, LEFT), silence.look(), silence.look()
        (None, None, None)
    """

    def __init__(self, limit: int):
        self._limit, self._said, self._looks = limit, {}, collections.Counter()

    def hear(self, number: int, said: str) -> None:
        """What process `number` says by now; after `LEFT` it may be silent."""
        if said == LEFT:
            self._said.pop(number, None)
            self._looks.pop(number, None)
        elif self._said.get(number) != said:
            self._said[number], self._looks[number] = said, 0

    def look(self) -> int | None:
        """The number of a process that has been silent for too long, once it had been heard at all."""
        self._looks.update(list(self._said))
        return next((number for number, looks in list(self._looks.items()) if looks >= self._limit), None)


def watch(timeout: int) -> None:
    """From now on this process ends, with one line, where another one ends by `tell`, is killed, or is silent for so many seconds."""
    if jax.process_index():
        ctypes.CDLL(None).signal(signal.SIGABRT, _end_after_abort)
    stopped, silence = threading.Event(), Silence(round(timeout / POLL_SECONDS))

    def look():
        while not stopped.wait(POLL_SECONDS):
            lost = silence.look()
            if lost is not None:
                _end_with(
                    f"process {lost} has been silent for {timeout} s: it is stopped, or its host or network is gone; end it, "
                    "and the same command continues (--peer_timeout waits longer)", 1,
                )

    # Where process 0 is stuck, `_talk` waits for its answer and `look` says so.
    threads = [threading.Thread(target=target, args=args, daemon=True) for target, args in ((look, ()), (_talk, (stopped, silence)))]
    for thread in threads:
        thread.start()

    @atexit.register
    def stop():
        stopped.set()
        for thread in threads:
            thread.join()
        # The others may have more to do, and must not miss this one.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _client().key_value_set(f"{_ALIVE}{jax.process_index()}", LEFT, allow_overwrite=True)


def _talk(stopped, silence):
    client, this = _client(), jax.process_index()
    for beat in itertools.count():
        if stopped.wait(POLL_SECONDS):
            return
        try:
            client.key_value_set(f"{_ALIVE}{this}", str(beat), allow_overwrite=True)
            alive, ended = client.key_value_dir_get(_ALIVE), client.key_value_dir_get(_ENDED)
        except jax.errors.JaxRuntimeError:
            return
        silence.hear(0, f"answer {beat}")
        for number, said in _others(alive):
            if number:
                silence.hear(number, said)
        for number, said in _others(ended):
            code, reason = json.loads(said)
            _end_with(f"process {number} ended: {reason}", code)


def wait_for_verdict(timeout: int) -> None:
    """Waits as long as `watch(timeout)` may take to end this process, after a collective failed: it says which process is lost."""
    # A busy machine looks less often.
    time.sleep(1.5 * timeout)


def tell(reason: str, code: int) -> None:
    """Ends the other processes within seconds; they say why and exit with `code`.

    Raises:
        jax.errors.JaxRuntimeError: process 0 is gone; the runtime ends the others.
    """
    _client().key_value_set(f"{_ENDED}{jax.process_index()}", json.dumps([code, reason]))


def end(code: int) -> None:
    """Ends this process, whatever its threads wait for."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # The usual end waits for processes that may be waiting for this one, in a collective.
    os._exit(code)


def _end_with(line, code):
    print(f"error: {line}", file=sys.stderr)
    end(code)


# Where process 0 is gone, the runtime's own thread calls abort: a handler of Python's would never be run.
@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _end_after_abort(number):
    if not _answers():
        _end_with("process 0 is gone, and the others cannot go on without it: the same command continues", 1)
    # An abort of this process itself: as Python shows it without the watch.
    faulthandler.dump_traceback()
    ctypes.CDLL(None).signal(number, signal.SIG_DFL)
    os.abort()


def _answers():
    """Whether the host of process 0 takes connections where the runtime's service listens; also where process 0 is stopped."""
    host, _, port = _state().coordinator_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _others(said):
    pairs = [(int(key.rpartition("/")[2]), value) for key, value in said]
    return [pair for pair in pairs if pair[0] != jax.process_index()]


def _client():
    return _state().client


def _state():
    from jax._src import distributed  # JAX has no public way to its key-value store.

    return distributed.global_state
