"""The background worker of the widgets."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from fluxnb.widgets.background import Worker, outcome, stop_earlier


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


# ------------------------------------------------------------------------------------------------- ends by other events
def at_work(owner, cell):
    items = Items(5, ready=False)
    worker = Worker(items, on_item=lambda _: None, on_end=lambda _: None, name="fluxnb-test", owner=owner, cell=cell)
    worker.start()
    return worker, items


@pytest.mark.parametrize(
    ("owner", "cell", "stops"),
    [("same", "a", True), ("same", "b", False), ("same", None, True), ("other", "a", False), (None, "a", False)],
)
def test_work_of_the_same_model_and_cell_is_stopped_by_the_next(owner, cell, stops):
    models = {"same": object(), "other": object(), None: None}
    worker, items = at_work(models["same"], "a")
    stop_earlier(models[owner], cell)
    assert worker.stopping is stops
    worker.stop()
    items.go.release()
    worker.wait(20)


EXIT = """
import time
from fluxnb.widgets.background import Worker
def items():
    try:
        for number in range(1000):
            time.sleep(0.05)
            yield number
    finally:
        print("closed", flush=True)
Worker(items(), on_item=lambda _: None, on_end=lambda _: None, name="fluxnb-test").start()
time.sleep(0.2)
print("end of script", flush=True)
"""


def test_leaving_python_while_a_worker_runs_closes_its_iterator_and_ends_with_status_0():
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, ["end of script", "closed"], "")


@pytest.mark.slow
def test_an_interrupt_of_an_idle_kernel_stops_its_workers():
    manager = pytest.importorskip("jupyter_client.manager").KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        start = EXIT.replace("Worker(", "worker = Worker(").replace(".start()\ntime.sleep(0.2)", "\nworker.start()")
        assert run_code(client, start)[0] == "ok"
        assert "True" in run_code(client, "print(worker.running)")[1]
        time.sleep(0.5)
        manager.interrupt_kernel()
        time.sleep(1)
        assert "False" in run_code(client, "print(worker.running)")[1]
        assert run_code(client, "time.sleep(0.1)")[0] == "ok", "the interrupt is not left to the next cell"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run_code(client, code):
    printed = []
    hook = lambda message: printed.append(message["content"].get("text", ""))  # noqa: E731
    reply = client.execute_interactive(code, output_hook=hook, timeout=60)
    return reply["content"]["status"], "".join(printed)
