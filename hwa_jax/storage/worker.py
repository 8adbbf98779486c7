"""One function, called in order on one thread, behind a short queue."""

import queue
import threading
import weakref

from absl import logging


class Worker:
    """Calls ``function`` with the arguments of each ``submit``, one after another, on one thread.

    An exception of a call is raised once, by the next ``submit``, ``wait`` or ``close``; calls
    that were queued behind the one that failed are dropped. The thread starts with the first
    call and does not keep the program alive: one that ends without ``close`` loses the
    calls that still wait, and is warned.

    Args:
        function: what to call; its result is ignored.
        queue_length: number of calls that may wait; ``submit`` blocks beyond.
        name: of the thread, and in the warning.

    Example:
        >>> done = []
        >>> worker = Worker(done.append, queue_length=1, name="example")
        >>> worker.submit(1)
        >>> worker.submit(2)
        >>> worker.wait()
        >>> done
        [1, 2]
        >>> worker.close()
    """

    def __init__(self, function, queue_length, name):
        self._function = function
        self._name = name
        self._queue = queue.Queue(queue_length)
        self._thread = None
        self._error = None
        self.closed = False

    def submit(self, *arguments):
        """Queues a call; returns as soon as it has a place in the queue."""
        self.raise_error()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
            weakref.finalize(self, _warn_of_lost_calls, self._queue, self._name)
        self._queue.put(arguments)

    def wait(self):
        """Returns when every call has ended."""
        self._queue.join()
        self.raise_error()

    def close(self):
        """Waits for the calls and ends the thread."""
        self.closed = True
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        self.raise_error()

    def raise_error(self):
        """Raises what a call raised, once; the calls behind it have been dropped by then."""
        if self._error is not None:
            self._queue.join()
            error, self._error = self._error, None
            raise error

    def _run(self):
        while True:
            arguments = self._queue.get()
            try:
                if arguments is None:
                    return
                if self._error is None:
                    self._function(*arguments)
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()


def _warn_of_lost_calls(waiting, name):
    if waiting.unfinished_tasks:
        logging.warning("%s: %d are lost, it was not closed", name, waiting.unfinished_tasks)
