"""KeyboardInterrupts at chosen places of fluxnb, raised by trace and profile functions.

Three kinds of places are counted. `Lines` are the lines of fluxnb. `Signals` are where CPython itself runs signal
handlers: at the start of a function and on return from a function written in C, in fluxnb and in the modules of the
standard library that hold locks and blocks for it. `Opcodes` are all instructions of one file.

Lines and Opcodes leave out the instructions at the end of a `with` block that prepare the call of `__exit__`, and
`NOP`, which the compiler sets for `try:` before the range of its handlers. CPython runs no signal handler at these.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dis
import functools
import sys
import threading
import traceback
from concurrent.futures import Future
from pathlib import Path

import pytest

import fluxnb as fnb

PACKAGE = str(Path(fnb.__file__).parent)
HOLDS_LOCKS = (PACKAGE, contextlib.__file__, threading.__file__, str(Path(concurrent.futures.__file__).parent))
LIMIT = 20.0  # seconds after which a background thread counts as stuck


@functools.cache
def without_signals(code):
    """The offsets of instructions at which no signal handler runs and which no handler of the code covers."""
    instructions = [each for each in dis.get_instructions(code) if each.opname != "CACHE"]
    found = {each.offset for each in instructions if each.opname in ("NOP", "PUSH_EXC_INFO", "WITH_EXCEPT_START")}
    for at in range(len(instructions) - 2):
        if all(each.opname == "LOAD_CONST" and each.argval is None for each in instructions[at : at + 3]):
            found.update(each.offset for each in instructions[at : at + 5])
            if at and instructions[at - 1].opname == "SWAP":
                found.add(instructions[at - 1].offset)
    return found


class Interrupt:
    """Raises KeyboardInterrupt at the place with this index; -1 for none. `.places` are those that were passed."""

    def __init__(self, index=-1):
        self.places, self._index = [], index

    def __enter__(self):
        self._start()
        return self

    def __exit__(self, *_):
        sys.settrace(None)
        sys.setprofile(None)

    def _pass(self, *place):
        self.places.append(place)
        if len(self.places) - 1 == self._index:
            sys.settrace(None)
            sys.setprofile(None)
            raise KeyboardInterrupt


class Lines(Interrupt):
    """At lines of fluxnb."""

    def _start(self):
        sys.settrace(self._call)

    def _call(self, frame, event, _):
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame, event, _):
        if event == "line" and frame.f_lasti not in without_signals(frame.f_code):
            self._pass(frame.f_code.co_filename, frame.f_lineno)
        return self._line


class Signals(Interrupt):
    """Where CPython runs signal handlers."""

    def _start(self):
        sys.setprofile(self._event)

    def _event(self, frame, event, _):
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(HOLDS_LOCKS):
            self._pass(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, event, frame.f_lasti)


class Opcodes(Interrupt):
    """At the instructions of one file."""

    def __init__(self, index=-1, file=""):
        super().__init__(index)
        self._file = file

    def _start(self):
        sys.settrace(self._call)

    def _call(self, frame, event, _):
        if frame.f_code.co_filename != self._file:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._opcode

    def _opcode(self, frame, event, _):
        if event == "opcode" and frame.f_lasti not in without_signals(frame.f_code):
            self._pass(frame.f_code.co_filename, frame.f_lineno, frame.f_lasti)
        return self._opcode


def chosen(places, every=1):
    """The first and the last time that each place is passed, of which each `every`-th is taken."""
    first = {place: index for index, place in reversed(list(enumerate(places)))}
    last = {place: index for index, place in enumerate(places)}
    return sorted({*first.values(), *last.values()})[::every]


def in_thread(function, after="", limit=LIMIT):
    """The result of a function in another thread, which a lock that is still held would keep waiting."""
    result = Future()

    def work():
        try:
            result.set_result(function())
        except BaseException as problem:
            result.set_exception(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit)
    if not result.done():
        stack = "".join(traceback.format_stack(sys._current_frames()[thread.ident])[-6:])
        pytest.fail(f"after an interrupt at {after} another thread waits for {limit:.0f} s at\n{stack}")
    return result.result()
