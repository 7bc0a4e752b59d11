"""Waiting for a fact that a page reaches asynchronously: after a message, a timer, a layout or a decoded image."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

TIMEOUT = 30  # seconds


def expect(target: Any) -> Any:
    """Playwright's assertions, which wait; imported here so that tests are collected without Playwright."""
    from playwright import sync_api

    sync_api.expect.set_options(timeout=TIMEOUT * 1000)
    return sync_api.expect(target)


def wait_until(page: Any, condition: Callable[[], bool], *, timeout: float = TIMEOUT) -> None:
    """Wait for a condition that a test computes; events of the page are received in the meantime."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the condition is not met in time"
        page.wait_for_timeout(50)


def wait_for_value(page: Any, read: Callable[[], Any], expected: Any, *, timeout: float = TIMEOUT) -> None:
    """Wait until a reading equals a value; on failure the last reading is displayed."""
    end = time.monotonic() + timeout
    while (value := read()) != expected and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert value == expected


def wait_for_images(page: Any, selector: str, count: int) -> None:
    """Wait until exactly this number of images is attached and each of them has loaded."""
    script = "(nodes) => nodes.map((node) => node.complete && node.naturalWidth > 0)"
    wait_for_value(page, lambda: page.locator(selector).evaluate_all(script), [True] * count)


def wait_for_silence(page: Any, messages: list[Any], *, seconds: float = 0.5) -> None:
    """Wait until nothing is added to a list for some time."""
    end, quiet_since, length = time.monotonic() + TIMEOUT, time.monotonic(), len(messages)
    while time.monotonic() - quiet_since < seconds:
        page.wait_for_timeout(50)
        if len(messages) != length:
            quiet_since, length = time.monotonic(), len(messages)
        assert time.monotonic() < end, "messages do not end"
