"""A KeyboardInterrupt at any line of fluxnb leaves nothing behind, and the next run has the right bytes."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch

import fluxnb as fnb
from fluxnb.pipeline import compat
from fluxnb.pipeline.state import state_of
from fluxnb.runtime import adaln_cache
from fluxnb.sampling import patched_method, recording
from tests.conftest import toy_pipeline
from tests.interrupts import Lines, Opcodes, Signals, chosen, in_thread

SIZE = {"height": 32, "width": 32}
ATTENTION = fnb.Keep(attention="all")


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
        "patched classes": dict(patched_method._PATCHED),
        "threads": torch.get_num_threads(),
    }


def forget_prompts(flux):
    """Let the next call encode its prompts again, so that it is interrupted there too."""
    state_of(flux.pipe).encodings.clear()


def picture(flux):
    forget_prompts(flux)
    return fnb.run(flux, "a red fox", seed=5, steps=1, **SIZE).image.tobytes()


# ------------------------------------------------------------------------------------------------------ entry points
def run(flux):
    forget_prompts(flux)
    fnb.run(flux, "a fox", steps=1, keep=ATTENTION, on_step=lambda step: None, **SIZE)


def recorded(flux):
    with fnb.recording(flux.pipe, keep=ATTENTION):
        flux.pipe("a fox", num_inference_steps=1, max_sequence_length=48, generator=torch.Generator(),
                  callback_on_step_end=lambda pipe, index, timestep, tensors: tensors, **SIZE)  # fmt: skip


def sweep(flux):
    forget_prompts(flux)
    fnb.sweep(flux, prompts="a fox", seeds=range(2), steps=1, **SIZE)


def stream(flux):
    forget_prompts(flux)
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


def interrupted_everywhere(flux, entry, kind, every):
    """Interrupt an entry point at every place of a kind; returns how many interrupts there were."""
    entry(flux)
    expected, before = picture(flux), held_by(flux.pipe)
    with kind() as dry:
        entry(flux)
    assert len(dry.places) > 5
    indices = chosen(dry.places, every)
    for index in indices:
        with contextlib.suppress(KeyboardInterrupt), kind(index):
            entry(flux)
        gc.collect(0)
        assert held_by(flux.pipe) == before, dry.places[index]
        assert in_thread(lambda: picture(flux), dry.places[index]) == expected, dry.places[index]
    return len(indices)


@pytest.mark.long
@pytest.mark.parametrize("every", [1, 7], ids=["every line", "each 7th line"])
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_an_interrupt_at_any_line_leaves_nothing_behind(flux, entry, every, record_property):
    record_property("interrupts", interrupted_everywhere(flux, entry, Lines, every))


@pytest.mark.long
@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_an_interrupt_where_signals_are_handled_leaves_nothing_behind(flux, entry, record_property):
    record_property("interrupts", interrupted_everywhere(flux, entry, Signals, 1))


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
    trajectory = fnb.run(flux, "a fox", steps=2, on_interrupt="return", **SIZE)
    hook.remove()
    assert trajectory.image is None and not trajectory.finished and len(trajectory) == 2
    assert torch.equal(trajectory.final, expected.final)
    assert flux.decode_state(trajectory.final, **SIZE).tobytes() == expected.image.tobytes()


@pytest.mark.moderate
def test_an_interrupt_while_the_picture_of_a_stopped_run_is_decoded_gives_its_steps(flux):
    def interrupt(*_):
        raise KeyboardInterrupt

    hook = flux.pipe.vae.decoder.register_forward_pre_hook(interrupt)
    trajectory = fnb.run(flux, "a fox", steps=2, on_step=lambda _: fnb.STOP, on_interrupt="return", **SIZE)
    hook.remove()
    assert trajectory.image is None and not trajectory.finished and len(trajectory) == 1


def interrupt_at_the_last_step(step):
    if step.index == 1:
        raise KeyboardInterrupt


@pytest.mark.moderate
@pytest.mark.parametrize("place", ["last step", "decoding", "decoding of a stopped run"])
def test_an_interrupt_after_the_last_evaluation_is_raised(flux, place):
    on_step = {"last step": interrupt_at_the_last_step, "decoding of a stopped run": lambda _: fnb.STOP}.get(place)

    def interrupt(*_):
        if place != "last step":
            raise KeyboardInterrupt

    expected = fnb.run(flux, "a fox", steps=2, **SIZE)
    flux.pipe.vae.decoder.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        fnb.run(flux, "a fox", steps=2, on_step=on_step, **SIZE)
    assert torch.equal(fnb.last[0].v, expected[0].v)
    assert (fnb.last.image is not None) == fnb.last.finished == (place == "last step")
    assert len(fnb.last) == (1 if place == "decoding of a stopped run" else 2)


@pytest.mark.moderate
def test_an_interrupt_at_the_last_step_of_a_cell_ends_a_sweep(flux):
    grid = fnb.sweep(flux, prompts="a fox", seeds=range(3), steps=2, on_step=interrupt_at_the_last_step, **SIZE)
    assert not grid.finished and len(grid) == 0


# ----------------------------------------------------------------------------------------------------- runs in a run
@pytest.mark.moderate
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


@pytest.mark.moderate
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


def displayed(flux):
    fnb.sweep(flux, prompts="a fox", seeds=range(2), steps=1, progress=True, **SIZE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of incomplete progress bars
@pytest.mark.parametrize(
    "entry, every",
    [
        pytest.param(run, 31, marks=pytest.mark.moderate),
        *(pytest.param(entry, 1, marks=pytest.mark.long) for entry in (run, recorded, displayed)),
    ],
)
def test_an_interrupt_inside_tqdm_leaves_its_lock_to_other_threads(flux, entry, every):
    import tqdm.std

    entry(flux)
    with Opcodes(file=tqdm.std.__file__) as dry:
        entry(flux)
    for index in chosen(dry.places, every):
        with contextlib.suppress(KeyboardInterrupt), Opcodes(index, file=tqdm.std.__file__):
            entry(flux)

        def acquired():
            with tqdm.std.tqdm.get_lock():
                return True

        assert in_thread(acquired, dry.places[index])


def test_the_lock_of_tqdm_that_another_thread_holds_is_not_released():
    import threading

    from tqdm import tqdm

    from fluxnb.cleanup import release_progress_lock

    held, released = threading.Event(), threading.Event()

    def hold():
        with tqdm.get_lock():
            held.set()
            assert released.wait(10)
        return True

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    release_progress_lock()
    free = tqdm.get_lock().locks[-1].acquire(blocking=False)
    released.set()
    thread.join()
    assert not free
    release_progress_lock()  # nothing is held


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


@pytest.mark.parametrize(
    "block, variable, file",
    [
        (compat.silenced, compat._SILENCED, compat.__file__),
        (lambda: adaln_cache.expecting("a scheduler"), adaln_cache._SCHEDULER, adaln_cache.__file__),
    ],
    ids=["silenced", "expecting"],
)
def test_an_interrupt_never_leaves_a_setting_that_a_block_makes(block, variable, file):
    def enter(interrupt):
        with interrupt, block():
            pass

    before = variable.get()
    enter(dry := Opcodes(file=file))
    assert len(dry.places) > 5
    for index, place in enumerate(dry.places):
        with contextlib.suppress(KeyboardInterrupt):
            enter(Opcodes(index, file=file))
        assert variable.get() is before, place
