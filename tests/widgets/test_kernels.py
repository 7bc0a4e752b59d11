"""Real kernels that are interrupted, left and restarted at random times: work stops, and the next run is right."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
LOAD = """import hashlib, threading
import fluxnb as fnb
flux = fnb.load("pocket")
def digest():
    return hashlib.sha256(fnb.run(flux, "a red fox", seed=5, steps=2).image.tobytes()).hexdigest()
print(digest())"""
LOOP = 'for seed in range(10**6):\n    fnb.run(flux, "a fox", seed=seed, steps=4)'
CHECK = "print(digest(), sum(thread.name.startswith('fluxnb') for thread in threading.enumerate()))"


class Kernel:
    """A kernel of this Python and its messages."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager, self.client = manager, client

    def send(self, code: str) -> str:
        return str(self.client.execute(code, allow_stdin=False))

    def reply(self, message: str, timeout: float = 120) -> dict[str, Any]:
        """The content of the reply to a request."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            reply = self.client.get_shell_msg(timeout=timeout)
            if reply["parent_header"].get("msg_id") == message:
                return dict(reply["content"])
        raise TimeoutError(message)

    def run(self, code: str) -> str:
        """Run code and return what it printed."""
        message, text = self.send(code), ""
        while True:
            each = self.client.get_iopub_msg(timeout=120)
            if each["parent_header"].get("msg_id") != message:
                continue
            if each["msg_type"] == "stream" and each["content"]["name"] == "stdout":
                text += each["content"]["text"]
            if each["msg_type"] == "status" and each["content"]["execution_state"] == "idle":
                break
        assert self.reply(message)["status"] == "ok"
        return text.strip()

    def wait_until_busy(self, message: str) -> None:
        """Wait until the kernel executes a request."""
        while True:
            each = self.client.get_iopub_msg(timeout=120)
            if each["parent_header"].get("msg_id") == message and each["msg_type"] == "execute_input":
                return


@contextmanager
def new_kernel() -> Iterator[Kernel]:
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_thirty_interrupts_of_a_loop_of_runs_each_end_the_loop():
    draw = random.Random(1)
    with new_kernel() as kernel:
        expected = kernel.run(LOAD)
        for number in range(30):
            message = kernel.send(LOOP)
            kernel.wait_until_busy(message)
            time.sleep(draw.uniform(0, 0.8))
            kernel.manager.interrupt_kernel()
            reply = kernel.reply(message)
            assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt"), number
            assert kernel.run(CHECK) == f"{expected} 0", number


def test_thirty_interrupts_of_run_all_each_end_it():
    draw = random.Random(2)
    with new_kernel() as kernel:
        expected = kernel.run(LOAD)
        for number in range(30):
            messages = [kernel.send(code) for code in ("reached = False", LOOP, "reached = True", LOOP)]
            kernel.wait_until_busy(messages[1])
            time.sleep(draw.uniform(0, 0.8))
            kernel.manager.interrupt_kernel()
            statuses = [kernel.reply(message)["status"] for message in messages]
            assert statuses == ["ok", "error", "aborted", "aborted"], number
            assert kernel.run("print(reached)") == "False", number
            assert kernel.run(CHECK) == f"{expected} 0", number


LEAVE = (
    LOAD
    + """
import sys, time
work, delay = sys.argv[1], float(sys.argv[2])
if work == "explore":
    view = fnb.explore(fnb.stream(flux, prompts="a fox", seeds=range(1000), steps=4))
elif work == "lab":
    view = fnb.lab(flux)
    view.generate(prompt="a fox", seeds="0-200", steps="4")
else:
    thread = threading.Thread(target=lambda: fnb.sweep(flux, prompts="a fox", seeds=range(60), steps=4))
    thread.start()
time.sleep(delay)
print("LEFT")"""
)


def test_twenty_exits_at_work_have_status_zero():
    draw = random.Random(3)
    for number in range(20):
        work = ("explore", "lab", "sweep")[number % 3]
        process = subprocess.run(
            [sys.executable, "-c", LEAVE, work, str(draw.uniform(0, 1))],
            capture_output=True, text=True, timeout=180,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.returncode == 0, (work, process.stderr[-2000:])
        assert process.stdout.strip().endswith("LEFT")
        assert "Traceback" not in process.stderr and "Fatal" not in process.stderr, (work, process.stderr[-2000:])


STREAM = 'view = fnb.explore(fnb.stream(flux, prompts="a fox", seeds=range(1000), steps=4))'
LAB = 'view = fnb.lab(flux)\njob = view.generate(prompt="a fox", seeds="0-200", steps="4")'


def test_twenty_restarts_at_work_end_the_kernel_by_itself():
    draw = random.Random(4)
    with new_kernel() as kernel:
        # A client sends SIGTERM after 2.5 seconds, which an idle kernel with PyTorch needs on a busy machine.
        kernel.manager.shutdown_wait_time = 60
        expected = kernel.run(LOAD)
        for number in range(20):
            kernel.run((STREAM, LAB)[number % 2])
            time.sleep(draw.uniform(0, 1))
            before = kernel.manager.provisioner.process
            kernel.manager.restart_kernel(now=False)
            assert before.wait(60) == 0, number
            kernel.client.wait_for_ready(timeout=120)
            assert kernel.run(LOAD) == expected, number
