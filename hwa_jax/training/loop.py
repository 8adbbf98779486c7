"""The training loop: steps, and what happens between them."""

import collections
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

MOST_STEPS_PER_CALL = 50


class Event(NamedTuple):
    """Something that happens between steps.

    Attributes:
        name: for logs and tests, "push" for example.
        is_due: completed steps -> whether it happens now; a pure function, asked ahead of time.
        act: (completed steps, state) -> state.
    """

    name: str
    is_due: Callable[[int], bool]
    act: Callable[[int, Any], Any]


def run(
    state: Any,
    step: Callable[[Any, int], Any],
    steps: range,
    *,
    before: Sequence[Event] = (),
    after: Sequence[Event] = (),
    steps_per_call: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Any, bool]:
    """Runs steps and the events around them.

    Args:
        state: at `first` completed steps.
        step: (state, number of steps) -> state; dispatches and returns, so the device works ahead of the host.
        steps: `range(first, total)`, the numbers of completed steps before each step.
        before: events that look at the state before a step; `is_due` and `act` get the number of
            steps that will be completed after it.
        after: events after a step, in this order.
        steps_per_call: how many steps a call of `step` makes where no event is due between them, elsewhere
            one; 0: what gives the fewest calls from step 0 on.
        should_stop: asked before every call.

    Returns:
        (state, whether all steps were run).

    Example:
        >>> third = Event("third", lambda done: done % 3 == 0, lambda done, state: print(done, state) or state)
        >>> run("", lambda state, count: state + str(count), range(0, 5), after=[third], steps_per_call=2)
        3 21
        ('212', True)
    """

    def is_border(done):
        return any(event.is_due(done) for event in after) or any(event.is_due(done + 1) for event in before)

    completed = steps.start
    for count in calls(steps, is_border, steps_per_call or fewest_calls(steps.stop, is_border)):
        if should_stop():
            return state, False
        for event in before:
            state = perform(event, completed + 1, state)
        state = step(state, count)
        completed += count
        for event in after:
            state = perform(event, completed, state)
    return state, True


def perform(event: Event, done: int, state: Any) -> Any:
    """Acts if the event is due.

    Example:
        >>> perform(Event("never", lambda done: False, lambda done, state: None), 1, "state")
        'state'
    """
    return event.act(done, state) if event.is_due(done) else state


def calls(steps: range, is_border: Callable[[int], bool], steps_per_call: int) -> Iterator[int]:
    """The number of steps of each call: `steps_per_call` as often as no border is crossed, then 1 up to the border.

    Two programs serve all calls, and from any call on the rest is cut as if the steps had begun there.

    Args:
        steps: the numbers of completed steps before each step.
        is_border: completed steps -> whether a call has to end there.
        steps_per_call: at least 1.

    Example:
        >>> list(calls(range(0, 9), lambda done: done == 5, 2))
        [2, 2, 1, 2, 2]
    """
    waiting = 0
    for completed in steps:
        waiting += 1
        if waiting == steps_per_call:
            yield waiting
            waiting = 0
        elif completed + 1 == steps.stop or is_border(completed + 1):
            yield from itertools.repeat(1, waiting)
            waiting = 0


def fewest_calls(total: int, is_border: Callable[[int], bool]) -> int:
    """The smallest `steps_per_call` up to `MOST_STEPS_PER_CALL` that cuts steps 0 to `total` into the fewest calls.

    Example: with a border after every 5 steps, 50 steps at a time would never fit.
        >>> fewest_calls(100, lambda done: done % 5 == 0)
        5
    """
    borders = [0, *filter(is_border, range(1, total)), total]
    stretches = collections.Counter(end - start for start, end in itertools.pairwise(borders))

    def num_calls(size):
        return sum(number * (length // size + length % size) for length, number in stretches.items())

    return min(range(1, MOST_STEPS_PER_CALL + 1), key=num_calls)
