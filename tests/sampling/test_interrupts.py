"""A KeyboardInterrupt at any line of fluxnb leaves nothing behind, and the next run has the right bytes.

A trace function raises at a chosen line. It skips one kind of line event: the one between the end of a `with` block and
the call of `__exit__`, where CPython runs no signal handler (it runs them after calls and at backward jumps).
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

import fluxnb as fnb
from fluxnb.sampling import recording
from tests.conftest import toy_pipeline

pytestmark = pytest.mark.long

PACKAGE = str(Path(fnb.__file__).parent)
SIZE = {"height": 32, "width": 32}
LIMIT = 20.0  # seconds after which a background thread counts as stuck
ATTENTION = fnb.Keep(attention="all")


# ------------------------------------------------------------------------------------------------------ interrupting
@functools.cache
def exits_of_with(code):
    """The offsets of the instructions that prepare the call of `__exit__` at the regular end of a `with` block."""
    instructions, found = [each for each in dis.get_instructions(code) if each.opname != "CACHE"], set()
    for at in range(len(instructions) - 2):
        if all(each.opname == "LOAD_CONST" and each.argval is None for each in instructions[at : at + 3]):
            found.add(instructions[at].offset)
            if at and instructions[at - 1].opname in ("SWAP", "NOP"):
                found.add(instructions[at - 1].offset)
    return found


class Interrupt:
    """Raises KeyboardInterrupt before the line event with this index; -1 for none. `.lines` are those that passed."""

    def __init__(self, index=-1):
        self.lines, self._index = [], index

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _call(self, frame, event, _):
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame, event, _):
        if event == "line" and frame.f_lasti not in exits_of_with(frame.f_code):
            self.lines.append((frame.f_code.co_filename, frame.f_lineno))
            if len(self.lines) - 1 == self._index:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


def chosen(lines, every):
    """The first and the last time that each line runs, of which each `every`-th is taken."""
    first = {line: index for index, line in reversed(list(enumerate(lines)))}
    last = {line: index for index, line in enumerate(lines)}
    return sorted({*first.values(), *last.values()})[::every]


# ------------------------------------------------------------------------------------------------------ what is left
def held_by(pipe):
    modules = [module for part in pipe.components.values() if isinstance(part, torch.nn.Module)
               for module in part.modules()]  # fmt: skip
    return {
        "pipeline": sorted(vars(pipe)),
        "scheduler": sorted(vars(pipe.scheduler)),
        "image processor": sorted(vars(pipe.image_processor)),
        "class": dict(vars(type(pipe))),
        "hooks": [(list(each._forward_hooks), list(each._forward_pre_hooks)) for each in modules],
        "methods": [vars(each).get("forward") for each in modules],
        "recorders": recording._OPEN.get(),
        "observed": dict(recording._OBSERVED),
        "threads": torch.get_num_threads(),
    }


def in_thread(function):
    """The result of a function in another thread, which a lock that is still held would keep waiting."""
    result = Future()

    def work():
        try:
            result.set_result(function())
        except BaseException as problem:
            result.set_exception(problem)

    threading.Thread(target=work, daemon=True).start()
    return result.result(LIMIT)


def picture(flux):
    return fnb.run(flux, "a red fox", seed=5, steps=1, **SIZE).image.tobytes()


# ------------------------------------------------------------------------------------------------------ entry points
def run(flux):
    fnb.run(flux, "a fox", steps=1, keep=ATTENTION, on_step=lambda step: None, **SIZE)


def recorded(flux):
    with fnb.recording(flux.pipe, keep=ATTENTION):
        flux.pipe("a fox", num_inference_steps=1, max_sequence_length=48, generator=torch.Generator(),
                  callback_on_step_end=lambda pipe, index, timestep, tensors: tensors, **SIZE)  # fmt: skip


def sweep(flux):
    fnb.sweep(flux, prompts="a fox", seeds=range(2), steps=1, **SIZE)


def stream(flux):
    cells = fnb.stream(flux, prompts="a fox", seeds=range(2), steps=1, **SIZE)
    next(cells, None)  # an interrupt ends a stream
    cells.close()


def decode(flux):
    flux.decode(torch.zeros(1, 16, 4, 4))


ENTRY_POINTS = [run, recorded, sweep, stream, decode]


@pytest.fixture
def flux():
    pipe = toy_pipeline(size=32)
    pipe.set_progress_bar_config(disable=True)
    return fnb.load(pipe)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.long), 7], ids=["every line", "each 7th line"])
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_an_interrupt_at_any_line_leaves_nothing_behind(flux, entry, every):
    entry(flux)
    expected, before = picture(flux), held_by(flux.pipe)
    with Interrupt() as dry:
        entry(flux)
    assert len(dry.lines) > 5
    for index in chosen(dry.lines, every):
        with contextlib.suppress(KeyboardInterrupt), Interrupt(index):
            entry(flux)
        gc.collect(0)
        assert held_by(flux.pipe) == before, dry.lines[index]
        assert in_thread(lambda: picture(flux)) == expected, dry.lines[index]


@pytest.mark.long
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_an_interrupt_at_any_time_leaves_nothing_behind(flux, entry):
    import signal
    import time

    entry(flux)
    expected, before = picture(flux), held_by(flux.pipe)
    started = time.perf_counter()
    entry(flux)
    length, trials = time.perf_counter() - started, 200
    draw = torch.Generator().manual_seed(0)
    usual = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for part in torch.rand(trials, generator=draw).tolist():
            try:
                signal.setitimer(signal.ITIMER_REAL, max(1e-4, part * length))
                entry(flux)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert held_by(flux.pipe) == before
            assert in_thread(lambda: picture(flux)) == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


# ------------------------------------------------------------------------------------------------- single interrupts
def test_an_interrupt_while_a_picture_is_decoded_gives_every_step(flux):
    expected = fnb.run(flux, "a fox", steps=2, **SIZE)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = flux.pipe.vae.decoder.register_forward_pre_hook(interrupt)
    trajectory = fnb.run(flux, "a fox", steps=2, **SIZE)
    hook.remove()
    assert trajectory.image is None and not trajectory.finished and len(trajectory) == 2
    assert torch.equal(trajectory.final, expected.final)
    assert flux.decode_tokens(trajectory.final, **SIZE).tobytes() == expected.image.tobytes()


def test_an_interrupt_while_the_picture_of_a_stopped_run_is_decoded_gives_its_steps(flux):
    def interrupt(*_):
        raise KeyboardInterrupt

    hook = flux.pipe.vae.decoder.register_forward_pre_hook(interrupt)
    trajectory = fnb.run(flux, "a fox", steps=2, on_step=lambda _: fnb.STOP, **SIZE)
    hook.remove()
    assert trajectory.image is None and not trajectory.finished and len(trajectory) == 1


# ----------------------------------------------------------------------------------------------------- runs in a run
@pytest.mark.parametrize("preset", ["as given", "lean"])
def test_a_run_inside_a_callback_of_a_run_gives_both_their_own_bytes(flux, toy_folder, preset):
    flux = flux if preset == "as given" else fnb.load(toy_folder, preset=preset)
    inner = []

    def sampled(prompt, steps, **more):
        trajectory = fnb.run(flux, prompt, steps=steps, keep=ATTENTION, **SIZE, **more)
        tensors = [value.numpy().tobytes() for step in trajectory for value in step.tensors.values()]
        return trajectory.image.tobytes(), trajectory.sigmas, trajectory.words, tensors

    alone = sampled("a red fox", 3), sampled("a cat in snow", 2)
    outer = sampled("a red fox", 3, on_step=lambda step: inner.append(sampled("a cat in snow", 2)))
    assert (outer, inner) == (alone[0], [alone[1]] * 3)


def test_a_run_inside_a_callback_of_a_recorded_call_is_another_trajectory(flux):
    def call(**more):
        return flux.pipe("a red fox", num_inference_steps=2, max_sequence_length=48, output_type="pt",
                         generator=torch.Generator().manual_seed(1), **SIZE, **more).images  # fmt: skip

    def callback(pipe, index, timestep, tensors):
        if index == 0:
            fnb.run(flux, "a cat", steps=1, height=48, width=48)
        return tensors

    plain = call()
    with fnb.recording(flux, keep=ATTENTION) as recorder:
        alone = call()
        seen = call(callback_on_step_end=callback)
    assert torch.equal(plain, alone) and torch.equal(plain, seen)
    first, inner, outer = recorder.trajectories
    assert (inner.height, len(inner), outer.height, len(outer)) == (48, 1, 32, 2)
    assert torch.equal(first.final, outer.final) and first.recipe == outer.recipe
    assert torch.equal(first[1].attention, outer[1].attention)


def test_cleanup_runs_although_an_interrupt_arrives_in_it():
    from fluxnb.cleanup import undoing

    calls = []

    def undo():
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt), undoing(undo):
        pass
    assert len(calls) == 2
