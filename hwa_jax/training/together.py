"""Algorithms that ask for their trainings: each alone, or those of several seeds as one program.

An algorithm is a generator. It opens a session, yields a `Request` to run it, and is sent what `Session.run` returns;
everything else it does itself. So the very same code trains one seed, and several in step: where all of them wait
for the same stretch of their trainings, it is run once, with an axis of seeds in front (`SeedPrograms`). Logs,
checkpoints, windows and evaluations stay those of each seed, and a run that began together may go on alone.
"""

import contextlib
import functools
import json
import logging
import operator
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeVar

import jax

from hwa_jax.errors import Diverged
from hwa_jax.training import loop
from hwa_jax.training.clock import Clock
from hwa_jax.training.free_memory import free_bytes
from hwa_jax.training.interruption import Interrupted, Interruption
from hwa_jax.training.loop import Event
from hwa_jax.training.session import Session
from hwa_jax.training.step import TrainState

_logger = logging.getLogger(__name__)


class Request(NamedTuple):
    """A session to be run, as `Session.run` takes it."""

    session: Session
    after: Sequence[Event]
    before: Sequence[Event] = ()

    def run(self, should_stop: Callable[[], bool]) -> tuple[TrainState, bool]:
        """`Session.run`."""
        self.session.clock.skip()  # waiting for others is no training
        return self.session.run(before=self.before, after=self.after, should_stop=should_stop)

    def stretch(self) -> tuple:
        """What requests that can be run together have in common; the least is the one that is furthest behind."""
        session, setup = self.session, self.session.setup
        # Streamed batches are those of one seed.
        config = json.dumps(setup.config.to_dict() | ({} if setup.is_streamed else {"seed": None}), sort_keys=True)
        return session.part.number or 0, session.first, session.part.total, setup.num_replicas, config


T = TypeVar("T")
Algorithm = Generator[Request, tuple[TrainState, bool], T]


def alone(algorithm: Algorithm[T]) -> T:
    """What an algorithm returns. SIGTERM and SIGINT stop its training after a step, as `Interruption` says."""
    with Interruption() as interruption:
        try:
            request = next(algorithm)
            while True:
                request = _advance(algorithm, functools.partial(request.run, interruption.requested))
        except StopIteration as stop:
            return stop.value


def together(begin: Sequence[Callable[[], Algorithm[T]]]) -> list[T]:
    """What algorithms return that differ in their seed; trained as one program wherever they are at the same step.

    The numbers are those of each alone, to rounding. Those that an interruption left behind are trained up to the others
    first. Where one diverges, all of its program go back to their checkpoints and finish the stretch alone; the others
    meet again in the next. Where the memory does not hold a program, half as many seeds are trained at a time.

    Args:
        begin: each begins an algorithm; may be called again after a divergence.

    Raises:
        Interrupted: a signal stopped them, each with a checkpoint; the same call continues.
        UserError: what one of them raised ends all.
    """
    with Interruption() as interruption, contextlib.ExitStack() as opened:
        ahead, most = _Ahead(begin, opened), len(begin)
        while ahead.requests:
            numbers = ahead.next_stretch()[:most]
            requests = [ahead.requests[number] for number in numbers]
            if len(numbers) == 1:
                ahead.advance(numbers[0], functools.partial(requests[0].run, interruption.requested))
                continue
            stack = _Stack(requests)
            if stack.bytes > free_bytes(requests[0].session.setup.mesh.devices.flat[0]):
                most = len(numbers) // 2
                _logger.warning("%d seeds at once take %.2g GB, more than is free: training %d", len(numbers), stack.bytes / 1e9, most)
                continue
            try:
                answers = stack.run(interruption.requested)
            except Diverged as error:
                _logger.warning("%s: going on from the last checkpoints, seed by seed", error)
                ahead.restart(numbers)
                continue
            for number, request, answer in zip(numbers, requests, answers):
                request.session.clock.skip()  # what the seeds before it did with their answers
                ahead.advance(number, lambda: answer)
        # A signal may have come when all was trained: the caller is not to begin with the next.
        if ahead.interrupted or interruption.requested():
            raise Interrupted
        return [ahead.results[number] for number in range(len(begin))]


def most_seeds(seeds_at_once: int, num_seeds: int) -> int:
    """How many seeds a comparison trains as one program.

    Args:
        seeds_at_once: of its configuration. 0: one on a CPU, where the arrays of many do not fit into its caches;
            elsewhere all, if the memory holds them.
        num_seeds: how many there are.

    Example:
        >>> most_seeds(2, 5)
        2
    """
    automatic = 1 if jax.default_backend() == "cpu" else max(num_seeds, 1)
    return seeds_at_once or automatic


class _Ahead:
    """Algorithms that have not returned yet, and what they wait for."""

    def __init__(self, begin, opened):
        self._begin, self._opened, self._algorithms = begin, opened, {}
        self._alone = set()
        self.requests, self.results, self.interrupted = {}, {}, False
        for number in range(len(begin)):
            self._start(number)

    def _start(self, number):
        algorithm = self._algorithms[number] = self._begin[number]()
        self._opened.callback(algorithm.close)
        self._take(number, lambda: next(algorithm))

    def _take(self, number, following):
        """Keeps the next request of an algorithm, or its result."""
        self.requests.pop(number, None)
        try:
            self.requests[number] = following()
        except StopIteration as stop:
            self.results[number] = stop.value
        except Interrupted:
            self.interrupted = True

    def next_stretch(self):
        """The numbers of those that are furthest behind and can be trained together."""
        stretches = {number: request.stretch() for number, request in self.requests.items()}
        last = min(stretches.values())
        numbers = [number for number, stretch in stretches.items() if stretch == last]
        solitary = [number for number in numbers if number in self._alone]
        return solitary[:1] or numbers

    def advance(self, number, train):
        self._alone.discard(number)
        self._take(number, lambda: _advance(self._algorithms[number], train))

    def restart(self, numbers):
        """From the last checkpoints; the next stretch of each is trained alone."""
        for number in numbers:
            self._algorithms[number].close()
            self._alone.add(number)
            self._start(number)


def _advance(algorithm, train):
    """The next request, after what `train` returns or raises was told."""
    try:
        answer = train()
    except BaseException as error:
        return algorithm.throw(error)
    return algorithm.send(answer)


class _Stack:
    """Sessions that are run as one."""

    def __init__(self, requests):
        self._requests, self._sessions = requests, [request.session for request in requests]
        self._setup = self._sessions[0].setup
        self._programs, self._compiled = self._setup.seed_programs, {}
        self._clock = Clock.shared([session.clock for session in self._sessions])
        for session in self._sessions:
            session.clock = self._clock
        with self._clock.activity("compilation"):
            self._state = self._programs.stack_states([session.state for session in self._sessions])
            self._inputs = self._stacked_inputs()

    @property
    def bytes(self):
        """Memory of a step as the compiler counts it."""
        memory = self._program(self._state, 1).memory_analysis()
        return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes

    def run(self, should_stop):
        """What `Session.run` would return of each."""
        first = self._sessions[0]
        before, after = ([getattr(request, name) for request in self._requests] for name in ("before", "after"))
        state, complete = loop.run(
            self._state, self._step, first.steps, before=[Event("epoch", first.begins_epoch, self._begin_epoch), self._each(before)],
            after=[self._each(after)], steps_per_call=self._setup.steps_per_call, should_stop=should_stop,
        )
        return [(one, complete) for one in self._programs.unstack_states(state, len(self._sessions))]

    def _each(self, events):
        """All events of all seeds as one: the state is taken apart once, and put together again if one of them changed it."""

        def act(done, stacked):
            states = self._programs.unstack_states(stacked, len(events))
            changed = [_perform_all(mine, done, state) for mine, state in zip(events, states)]
            return stacked if all(map(operator.is_, states, changed)) else self._programs.stack_states(changed)

        return Event("seeds", lambda done: any(event.is_due(done) for event in events[0]), act)

    def _begin_epoch(self, done, state):
        for session in self._sessions:
            session.begin_epoch(done, state)
        self._inputs = self._stacked_inputs()
        return state

    def _stacked_inputs(self):
        return self._programs.stack_inputs([session.inputs for session in self._sessions])

    def _step(self, state, count):
        for session in self._sessions:
            session.show_progress(count)
        return self._program(state, count)(*self._arguments(state))

    def _program(self, state, count):
        if count not in self._compiled:
            with self._clock.activity("compilation"):
                self._compiled[count] = self._programs.step.lower(*self._arguments(state), count=count).compile()
        return self._compiled[count]

    def _arguments(self, state):
        indices, key, extra = self._inputs
        return state, indices, self._setup.train, key, extra


def _perform_all(events, done, state):
    for event in events:
        state = loop.perform(event, done, state)
    return state
