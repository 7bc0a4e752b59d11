from __future__ import annotations

import pytest

from fluxnb.units import byte_size, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00 s"), (0.346, "0.35 s"), (2.14, "2.1 s"), (119.0, "119 s"), (120.0, "2 min"), (7200.0, "2.0 h")],
)
def test_a_duration_has_the_precision_of_its_size(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (2**20, "1.0 MiB"),
        (31.42 * 2**30, "31.4 GiB"),
        (2**41, "2048.0 GiB"),
    ],
)
def test_a_byte_size_has_a_binary_unit(count, text):
    assert byte_size(count) == text
