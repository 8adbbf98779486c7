"""The training loop: steps, and what happens between them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple


class Event(NamedTuple):
    """Something that happens between steps.

    Attributes:
        name: for logs and tests, "push" for example.
        is_due: completed steps -> whether it happens now.
        act: (completed steps, state) -> state.
    """

    name: str
    is_due: Callable[[int], bool]
    act: Callable[[int, Any], Any]


def run(
    state: Any,
    step: Callable[[Any], Any],
    steps: Iterable[int],
    *,
    before: Sequence[Event] = (),
    after: Sequence[Event] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Any, bool]:
    """Runs steps and the events around them.

    Args:
        state: at `first` completed steps.
        step: state -> state; dispatches and returns, so the device works ahead of the host.
        steps: `range(first, total)`, the numbers of completed steps before each step.
        before: events that look at the state before a step; `is_due` and `act` get the number of
            steps that will be completed after it.
        after: events after a step, in this order.
        should_stop: asked before every step.

    Returns:
        (state, whether all steps were run).

    Example:
        >>> odd = Event("odd", lambda done: done % 2 == 1, lambda done, state: print(done, state) or state)
        >>> run(0, lambda state: state + 10, range(0, 3), after=[odd])
        1 10
        3 30
        (30, True)
    """
    for completed in steps:
        if should_stop():
            return state, False
        for event in before:
            state = perform(event, completed + 1, state)
        state = step(state)
        for event in after:
            state = perform(event, completed + 1, state)
    return state, True


def perform(event: Event, done: int, state: Any) -> Any:
    """Acts if the event is due.

    Example:
        >>> perform(Event("never", lambda done: False, lambda done, state: None), 1, "state")
        'state'
    """
    return event.act(done, state) if event.is_due(done) else state
