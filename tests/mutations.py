"""Mutated inputs with a fixed seed, and what reading them may do: return a value or raise an error in three parts.

Half of the mutations change bytes; the others change a structure and keep what surrounds it intact, such as checksums
and lengths, so that they reach the code behind the first check.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxnb.errors import FluxnbError

QUICK, COMPLETE = 150, 3000  # inputs of each kind
SECONDS, BYTES = 5.0, 10**9
amount = pytest.mark.parametrize("count", [QUICK, pytest.param(COMPLETE, marks=pytest.mark.long)])

NUMBERS = (
    0, 1, -1, 2, 7, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**30,
    10**400, -(2**63), 0.5, -0.0, 1e-320, 1e30, 1e308, float("inf"), float("-inf"), float("nan"), True, False,
)  # fmt: skip
TEXTS = (
    "", " ", "a", "a" * 30_000, "\0", "\ud800", "\u202e", "\n", "</script><script>alert(1)</script>",
    "../../etc/passwd", "/dev/zero", "file:///etc/passwd", "__import__('os').system('true')", "$\\frac{",
    "{0.__class__}", "%s%n", "1e999", "nan", "None", "euler", "float32", "exact", "x", "v", "F32", "torch.load", "os",
    "subprocess", "builtins",
)  # fmt: skip
CONTAINERS: tuple[Any, ...] = ([], {}, [[]], [None], {"": None}, [0] * 3000, {"a": {"a": {"a": []}}}, ["a"] * 100)
NESTED = "[" * 100_000  # inserted as text, deeper than any parser follows


# ------------------------------------------------------------------------------------------------------------ mutations
def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """The data with one to four changes of its bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(changed) + 1)
        if rng.random() < 0.5:
            place = min(place, rng.randrange(200))  # headers are at the start
        length = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(8):
            case 0:
                changed[place : place + length] = rng.randbytes(length)
            case 1:
                del changed[place:]
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = rng.randbytes(length)
            case 4:
                changed[place : place + length] = bytes([rng.choice((0, 255))]) * length
            case 5:
                number = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.randrange(2**16)))
                form = rng.choice(("<I", ">I", "<Q", ">Q"))
                changed[place : place + 8] = struct.pack(form, number & (2 ** (8 * struct.calcsize(form)) - 1))
            case 6:
                start = rng.randrange(len(changed) + 1)
                changed[place:place] = changed[start : start + rng.choice((8, 100, 1000))]
            case 7:
                if place < len(changed):
                    changed[place] ^= 1 << rng.randrange(8)
        if not changed:
            break
    return bytes(changed)


def mutated_json(rng: random.Random, value: Any) -> bytes:
    """The JSON text of a value with one to three changes of its structure."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _mutated(rng, value)
    text = json.dumps(value)
    if rng.random() < 0.02:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice((NESTED, "9" * 5000, "1e99999", '{"a":' * 20_000)) + text[place:]
    if rng.random() < 0.02:
        text = text.replace("{", '{"fluxnb_recipe":2,"fluxnb_recipe":2,', 1)
    return text.encode("utf-8", "surrogatepass")


def _mutated(rng: random.Random, value: Any) -> Any:
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return _any_value(rng)
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0 | 1:
            holder[key] = _similar(rng, holder[key])
        case 2:
            holder[key] = _any_value(rng)
        case 3:
            del holder[key]
        case 4:
            other, place = rng.choice(places)
            with contextlib.suppress(IndexError, KeyError):
                holder[key] = copy.deepcopy(other[place])
        case 5:
            if isinstance(holder, list):
                holder.insert(key, _any_value(rng))
            else:
                holder[rng.choice(TEXTS)] = holder.pop(key)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _similar(rng: random.Random, value: Any) -> Any:
    if isinstance(value, str):
        return rng.choice((*TEXTS, value + "a", value[:-1], value.upper()))
    if isinstance(value, int | float):
        return rng.choice((*NUMBERS, value + 1, value * 2, value * 1000, -value, str(value)))
    if isinstance(value, list):
        return rng.choice((value * 2, value[:-1], value[::-1], *CONTAINERS))
    return _any_value(rng)


def _any_value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(CONTAINERS), None)))


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and body of each chunk of a PNG."""
    chunks, place = [], 8
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        chunks.append((kind, data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG with correct lengths and checksums."""
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def mutated_png(rng: random.Random, data: bytes) -> bytes:
    """A PNG with a change of one of its chunks, or of its bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(rng, data)
    chunks = png_chunks(data)
    place = rng.randrange(len(chunks))
    kind, body = chunks[place]
    match rng.randrange(7):
        case 0:
            sizes = [rng.choice((0, 1, 16, 128, 8192, 8193, 30_000, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
            chunks[0] = (b"IHDR", struct.pack(">II", *sizes) + chunks[0][1][8:])
        case 1:
            chunks[0] = (b"IHDR", chunks[0][1][:8] + rng.randbytes(5))
        case 2:
            chunks[place] = (kind, mutated_bytes(rng, body) if body else b"a")
        case 3:
            chunks[place] = (rng.choice((b"IDAT", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"acTL", b"PLTE", b"tRNS")), body)
        case 4:
            chunks.insert(place, rng.choice(chunks))
        case 5:
            del chunks[place]
        case 6:
            bomb = zlib.compress(bytes(10**7))
            chunks.insert(1, rng.choice(((b"zTXt", b"fluxnb\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"IDAT", bomb))))
    return png_of(chunks)


# ------------------------------------------------------------------------------------------------------------- outcomes
class TooSlowError(BaseException):
    """An answer took longer than SECONDS. No `except Exception` catches it."""


EXECUTION = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.startfile",
    "pickle.find_class",
    "socket.connect",
}
_executed: list[str] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _executed is not None and event in EXECUTION:
        _executed.append(f"{event} {args}")


sys.addaudithook(_audit)


def examine(answer: Callable[[Any], object], inputs: Iterator[Any]) -> Counter[str]:
    """Answer every input and return how many values and errors there were.

    Fails for any exception that is no FluxnbError in three parts, for an answer that takes more than SECONDS or more
    than BYTES of memory, and for a program that was run or a class that was unpickled.
    """
    global _executed
    outcomes: Counter[str] = Counter()
    failures, slowest, most = [], 0.0, 0
    for number, given in enumerate(inputs):
        before = _reset_peak()
        clock, _executed = Clock(), []
        try:
            with _limit(clock):
                answer(given)
            outcomes["value"] += 1
        except FluxnbError as problem:
            outcomes["error"] += 1
            if not (problem.given and problem.possible and problem.remedy):
                failures.append(f"{number}: fewer than three parts: {problem}")
        except BaseException as problem:  # an interrupt or a PanicException of Rust too
            if isinstance(problem, KeyboardInterrupt):
                raise
            failures.append(f"{number}: {type(problem).__module__}.{type(problem).__name__}: {problem}"[:300])
        finally:
            executed, _executed = _executed, None
        seconds, taken = clock.seconds(), _peak() - before
        failures += [f"{number}: ran {each}"[:300] for each in executed]
        failures += [f"{number}: {seconds:.1f} s"] if seconds > SECONDS else []
        failures += [f"{number}: {taken / 1e9:.1f} GB"] if taken > BYTES else []
        slowest, most = max(slowest, seconds), max(most, taken)
    summary = f"{dict(outcomes)}, slowest {slowest:.2f} s, most memory {most / 1e6:.0f} MB"
    print(summary)
    kinds = Counter(failure.partition(": ")[2][:120] for failure in failures)
    assert not failures, f"{len(failures)} of {sum(outcomes.values())}: {summary}\n{kinds}\n" + "\n".join(failures[:20])
    return outcomes


class Clock:
    """Seconds since its creation, without those in which other programs had all processors."""

    def __init__(self) -> None:
        self._begin = self._now()

    def seconds(self) -> float:
        return self._now() - self._begin

    def _now(self) -> float:
        waited = 0
        with contextlib.suppress(OSError):  # not Linux
            waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1])  # nanoseconds
        return time.perf_counter() - waited / 1e9


@contextlib.contextmanager
def _limit(clock: Clock) -> Iterator[None]:
    def stop(*_: object) -> None:
        if (left := 2 * SECONDS - clock.seconds()) > 0:
            signal.setitimer(signal.ITIMER_REAL, max(left, 0.01))
        else:
            raise TooSlowError(f"no answer after {2 * SECONDS} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 2 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _reset_peak() -> int:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak of the resident memory to its present value
    return _peak()


def _peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return 0
