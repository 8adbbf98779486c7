"""The loop: order of steps and events, stops, and how steps are cut into calls."""

from hypothesis import given
from hypothesis import strategies as st

from hwa_jax.training.loop import MOST_STEPS_PER_CALL, Event, calls, fewest_calls, run


def recorded(trace, name, is_due):
    """An event that writes down what it sees, and leaves its mark in the state."""
    return Event(name, is_due, lambda done, state: trace.append((name, done, state)) or state + 100)


def test_order_and_resume():
    seen = []

    def step(state, count):
        seen.append(("step", state))
        return state + count

    events = {
        "before": [recorded(seen, "a", lambda done: done % 2 == 0)],
        "after": [recorded(seen, "b", lambda done: done % 2 == 0), recorded(seen, "c", lambda done: True)],
    }
    state, complete = run(0, step, range(0, 2), **events)
    assert complete
    assert seen == [
        ("step", 0), ("c", 1, 1), ("a", 2, 101), ("step", 201), ("b", 2, 202), ("c", 2, 302),
    ]
    seen.clear()
    state, complete = run(state, step, range(2, 3), **events)
    assert seen == [("step", 402), ("c", 3, 403)] and state == 503


def test_stops_between_calls():
    answers = iter([False, False, True])
    step = lambda state, count: state + count
    assert run(0, step, range(9), steps_per_call=2, should_stop=lambda: next(answers)) == (4, False)
    assert run(0, step, range(0), should_stop=lambda: True) == (0, True)


@given(st.integers(0, 9), st.integers(0, 30), st.sets(st.integers(0, 40)), st.integers(1, 9))
def test_calls_are_full_wherever_no_border_is_crossed(first, length, borders, size):
    total, expected, completed = first + length, [], first
    while completed < total:
        border = min(b for b in {*borders, total} if b > completed)
        expected.append(size if border - completed >= size else 1)
        completed += expected[-1]
    # Each depends on what lies ahead alone, so a run that is resumed after any call goes on as it would have.
    assert list(calls(range(first, total), borders.__contains__, size)) == expected


@given(st.integers(0, 40), st.sets(st.integers(1, 41)), st.sets(st.integers(1, 41)), st.integers(0, 9))
def test_events_see_the_same_however_steps_are_cut(total, due_before, due_after, size):
    traces = []
    for steps_per_call in (1, size):
        trace = []
        end = run(
            0, lambda state, count: state + count, range(total), steps_per_call=steps_per_call,
            before=[recorded(trace, "before", due_before.__contains__)], after=[recorded(trace, "after", due_after.__contains__)],
        )
        traces.append((trace, end))
    assert traces[0] == traces[1]


@given(st.integers(1, 120), st.sets(st.integers(1, 120), max_size=20))
def test_fewest_calls_by_trying_all(total, borders):
    numbers = [len(list(calls(range(total), borders.__contains__, size))) for size in range(1, MOST_STEPS_PER_CALL + 1)]
    assert fewest_calls(total, borders.__contains__) == 1 + numbers.index(min(numbers))


def test_fewest_calls_of_a_usual_training():
    # Epochs of 450 steps, a log after every 50, replicas evaluated one step before the end of each epoch: the stretches
    # are 50 eight times, 49 and 1. 49 at a time takes 8 · 2 + 1 + 1 = 18 calls an epoch, 50 at a time 8 + 49 + 1 = 58.
    assert fewest_calls(900, lambda done: done % 50 == 0 or done % 450 == 449) == 49
    assert fewest_calls(900, lambda done: False) == 50
    assert fewest_calls(900, lambda done: True) == 1
    assert fewest_calls(0, lambda done: True) == 1
