"""The background worker of the widgets."""

from __future__ import annotations

import threading

import pytest

from fluxnb.widgets.background import Worker, outcome


class Items:
    """An iterator that waits for a semaphore before each item, raises at the end if asked, and records its close."""

    def __init__(self, count: int, problem: BaseException | None = None, *, ready: bool = True) -> None:
        self.left, self.problem, self.events = list(range(count)), problem, []
        self.go = threading.Semaphore(10**6 if ready else 0)

    def __iter__(self):
        return self

    def __next__(self) -> int:
        self.go.acquire(timeout=20)
        if self.left:
            return self.left.pop(0)
        raise self.problem or StopIteration

    def close(self) -> None:
        self.events.append("closed")


def started(items, received):
    worker = Worker(
        items, on_item=received.append, on_end=lambda problem: items.events.append(problem), name="fluxnb-test"
    )
    worker.start()
    return worker


def test_every_item_is_passed_on_and_the_end_is_reported_after_the_close():
    items, received = Items(3), []
    worker = started(items, received)
    worker.wait(20)
    assert received == [0, 1, 2] and items.events == ["closed", None] and not worker.running


def test_a_stop_takes_effect_after_the_current_item():
    items, received = Items(5, ready=False), []
    worker = started(items, received)
    worker.stop()
    assert worker.stopping and worker.running
    items.go.release()
    worker.wait(20)
    assert received == [0] and items.events == ["closed", None]


def test_an_exception_is_reported_and_raised_by_every_wait():
    problem = ValueError("no more")
    items, received = Items(2, problem), []
    worker = started(items, received)
    for _ in range(2):
        with pytest.raises(ValueError, match="no more"):
            worker.wait(20)
    assert received == [0, 1] and items.events == ["closed", problem]


def test_an_exception_in_the_callback_ends_the_work():
    items = Items(3)
    worker = Worker(
        items, on_item=lambda item: 1 // item, on_end=lambda problem: items.events.append(type(problem)), name="test"
    )
    worker.start()
    worker.join(20)
    assert items.events == ["closed", ZeroDivisionError] and items.left == [1, 2]


def test_a_keyboard_interrupt_of_the_iterator_is_a_stop():
    items, received = Items(1, KeyboardInterrupt()), []
    worker = started(items, received)
    worker.wait(20)
    assert received == [0] and items.events == ["closed", None]


def test_wait_returns_after_its_timeout():
    items = Items(1, ready=False)
    worker = started(items, [])
    worker.wait(0.01)
    assert worker.running
    items.go.release(2)
    worker.wait(20)


def test_an_iterator_without_close_is_accepted():
    received, problems = [], []
    worker = Worker(iter([7]), on_item=received.append, on_end=problems.append, name="fluxnb-test")
    worker.start()
    worker.wait(20)
    assert received == [7] and problems == [None]


@pytest.mark.parametrize(
    ("problem", "done", "state"),
    [(None, 3, "finished"), (None, 2, "stopped"), (ValueError(), 3, "failed"), (ValueError(), 0, "failed")],
)
def test_the_outcome_follows_from_the_problem_and_the_count(problem, done, state):
    assert outcome(problem, done=done, total=3) == state
