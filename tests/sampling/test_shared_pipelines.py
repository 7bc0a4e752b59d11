"""State belongs to one call: callers that share a pipeline or its modules each get their own right bytes.

One call is held at a chosen place while another runs, so that the interleaving is the same every time. Every wait is
bounded by `PATIENCE`: an implementation that makes one call wait for the other passes as well as one that separates
them.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import Counter
from concurrent.futures import Future, wait

import pytest
import torch

import fluxnb as fnb
from fluxnb.pipeline.state import state_of
from tests.conftest import toy_pipeline
from tests.offload import group_offload

PATIENCE = 2.0  # seconds that a held call waits at most
LIMIT = 20.0  # seconds after which a background thread counts as stuck
SIZE = {"height": 32, "width": 48}
GRID = {**SIZE, "prompts": ["a fox", "a cat"], "seeds": range(2), "steps": [2, 3], "keep": fnb.Keep()}
STATEFUL = ("lean", "lean-fp8", "stream")
ATTENTION = fnb.Keep(attention="all")


# ------------------------------------------------------------------------------------------------------ callers
def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def call(pipe, prompt="a red dog", *, seed=0, steps=3, **more):
    """A plain diffusers call; returns a digest of its float picture."""
    generator = torch.Generator("cpu").manual_seed(seed)
    options = {**SIZE, "num_inference_steps": steps, "generator": generator, "max_sequence_length": 48}
    return digest(pipe(prompt, output_type="pt", **{**options, **more}).images.numpy().tobytes())


def content(trajectory):
    """Everything that a trajectory or a cell holds: its levels, and digests of its picture and its tensors."""
    trajectory = getattr(trajectory, "trajectory", trajectory)
    steps = [{name: digest(value.numpy().tobytes()) for name, value in step.tensors.items()} for step in trajectory]
    image = None if trajectory.image is None else digest(trajectory.image.tobytes())
    return image, trajectory.sigmas, trajectory.finished, steps


def levels_are_its_own(trajectory):
    return trajectory.finished and [step.sigma for step in trajectory] == list(trajectory.sigmas[:-1])


def sharing(pipe):
    """A second pipeline over the same modules, with a scheduler of its own."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    second = FluxPipeline(**{**pipe.components, "scheduler": scheduler})
    second.set_progress_bar_config(disable=True)
    return second


def background_work(kind, flux):
    """Start the grid in a thread; returns a function that waits for its cells."""
    if kind == "lab":
        lab = fnb.lab(flux, prompt="a fox")
        lab.generate(seeds="0-1", steps="2, 3", height=str(SIZE["height"]), width=str(SIZE["width"]))
        return lambda: lab.wait(LIMIT).grid.cells
    if kind == "explore":
        explorer = fnb.explore(fnb.stream(flux, **GRID))
        return lambda: explorer.wait(LIMIT).grid.cells
    cells = in_thread(lambda: list(fnb.stream(flux, **GRID)))
    return lambda: cells.result(LIMIT)


# --------------------------------------------------------------------------------------------------- interleaving
class Hold:
    """Holds the first call that arrives in another thread than this one, until `go` is set or `PATIENCE` is over.

    Arguments:
        skip: arrivals that pass before the one that is held.
    """

    def __init__(self, skip=0):
        self.inside, self.go = threading.Event(), threading.Event()
        self._here, self._left = threading.current_thread(), skip

    def __call__(self, *_):
        if threading.current_thread() is self._here or self.inside.is_set():
            return
        if self._left:
            self._left -= 1
            return
        self.inside.set()
        self.go.wait(PATIENCE)

    def at_step_end(self, pipe, index, timestep, tensors):
        """The same as diffusers' `callback_on_step_end`."""
        self()
        return tensors

    @contextlib.contextmanager
    def meanwhile(self):
        """Wait until the other call is held; release it at the end of the block."""
        assert self.inside.wait(LIMIT), "the call to be held never arrived"
        try:
            yield
        finally:
            self.go.set()


def in_thread(function, *args, **kwargs):
    """Run a function in a thread of its own, which does not keep the process alive; returns a Future."""
    future = Future()

    def work():
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


class Meeting:
    """Lets two threads go on from a place only when both are there, or when `PATIENCE` is over."""

    def __init__(self):
        self._barrier = threading.Barrier(2)

    def __call__(self, *_):
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(PATIENCE)


@contextlib.contextmanager
def hooked(module, hook):
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# ------------------------------------------------------------------------------------------------------- fixtures
@pytest.fixture(scope="module", autouse=True)
def one_thread_each():
    """Every Python thread computes with one CPU thread: the decoder's sums depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pipe():
    """A toy pipeline of the test's own, after one call: attributes that diffusers sets in a call are there."""
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    call(pipe, steps=1)
    return pipe


@pytest.fixture
def flux(pipe):
    return fnb.load(pipe)


@pytest.fixture
def handles(request, toy_folder):
    """Two handles over the same modules, each with a scheduler of its own, under a preset."""
    with group_offload():
        first = fnb.load(toy_folder, preset=request.param)
    first.pipe.set_progress_bar_config(disable=True)
    return first, fnb.load(sharing(first.pipe))


def under(*presets):
    return pytest.mark.parametrize("handles", presets, indirect=True)


# ------------------------------------------------------------------------- plain and recorded calls beside other work
@pytest.mark.moderate
@pytest.mark.parametrize("kind", ["stream", "explore", "lab"])
def test_a_plain_call_beside_background_work_gives_both_their_own_bytes(flux, kind):
    alone, cells_alone = call(flux.pipe), [content(cell) for cell in background_work(kind, flux)()]
    hold = Hold()
    with hooked(flux.pipe.transformer, hold):
        cells = background_work(kind, flux)
        with hold.meanwhile():
            beside = call(flux.pipe)
        assert [content(cell) for cell in cells()] == cells_alone
    assert beside == alone


@pytest.mark.moderate
@pytest.mark.parametrize("kind", ["stream", "explore", "lab"])
def test_a_recorded_call_beside_background_work_gives_one_trajectory_of_its_own(flux, kind):
    with fnb.recording(flux.pipe) as recorder:
        alone = call(flux.pipe, seed=5)
    (expected,) = recorder.trajectories
    cells_alone = [content(cell) for cell in background_work(kind, flux)()]
    hold = Hold()
    with hooked(flux.pipe.transformer, hold):
        cells = background_work(kind, flux)
        with hold.meanwhile(), fnb.recording(flux.pipe) as recorder:
            beside = call(flux.pipe, seed=5)
        assert [content(cell) for cell in cells()] == cells_alone
    assert beside == alone
    (trajectory,) = recorder.trajectories
    assert trajectory.recipe == expected.recipe and content(trajectory) == content(expected)
    assert (trajectory.recipe.prompt, trajectory.recipe.seed, trajectory.recipe.steps) == ("a red dog", 5, 3)


@pytest.mark.moderate
@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
def test_a_run_in_the_middle_of_a_call_changes_neither(flux, recorded):
    block = fnb.recording if recorded else lambda _: contextlib.nullcontext()
    with block(flux.pipe) as recorder:
        alone = call(flux.pipe)
    expected, run_alone = recorder and recorder.trajectories[0], content(fnb.run(flux, "a fox", steps=2, **SIZE))
    runs = []

    def run_inside(pipe, index, timestep, tensors):
        if index == 0:
            runs.append(in_thread(fnb.run, flux, "a fox", steps=2, **SIZE))
            wait(runs, PATIENCE)
        return tensors

    with block(flux.pipe) as recorder:
        interrupted = call(flux.pipe, callback_on_step_end=run_inside)
    assert content(runs[0].result(LIMIT)) == run_alone
    assert interrupted == alone
    if recorded:
        assert [content(each) for each in recorder.trajectories] == [content(expected)]


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
def test_many_calls_beside_an_explorer_of_pocket(recorded):
    flux = fnb.load("pocket")
    flux.pipe.set_progress_bar_config(disable=True)
    alone, tally = {seed: call(flux.pipe, seed=seed) for seed in range(4)}, Counter()
    grid = {**GRID, "steps": [1, 2, 3, 4]}
    cells_alone = {cell.recipe: content(cell) for cell in fnb.stream(flux, **grid)}
    explorer = fnb.explore(fnb.stream(flux, **grid))
    for seed in range(4):
        block = fnb.recording(flux.pipe) if recorded else contextlib.nullcontext()
        with block as recorder:
            tally["right" if call(flux.pipe, seed=seed) == alone[seed] else "wrong bytes"] += 1
        if recorded:
            tally[[each.recipe.seed for each in recorder.trajectories] == [seed]] += 1
    cells = explorer.wait(LIMIT).grid.cells
    assert {cell.recipe: content(cell) for cell in cells} == cells_alone
    assert tally == ({"right": 4, True: 4} if recorded else {"right": 4})


# ------------------------------------------------------------------------------------- two handles over shared modules
@pytest.mark.moderate
@under("cpu", *STATEFUL)
def test_two_handles_that_evaluate_at_the_same_time_give_their_own_bytes(handles):
    jobs = [(handles[0], "a fox", 1), (handles[1], "a blue cat", 2)]

    def sample(flux, prompt, seed):
        return content(fnb.run(flux, prompt, seed=seed, steps=2, **SIZE))

    alone = [sample(*job) for job in jobs]
    with hooked(handles[0].pipe.transformer.time_text_embed, Meeting()):
        together = [in_thread(sample, *job) for job in jobs]
        assert [each.result(LIMIT) for each in together] == alone


@pytest.mark.moderate
@under(*STATEFUL)
def test_raw_transformer_calls_in_two_threads_give_their_own_outputs(handles):
    transformer = handles[0].pipe.transformer
    levels = (0.9, 0.3)
    alone = [evaluate(transformer, level) for level in levels]
    with hooked(transformer.time_text_embed, Meeting()):
        together = [in_thread(evaluate, transformer, level) for level in levels]
        assert [torch.equal(each.result(LIMIT), own) for each, own in zip(together, alone, strict=True)] == [True, True]


@pytest.mark.moderate
@under("lean-fp8")
def test_a_layer_in_8_bits_stays_cast_while_a_thread_computes_with_it(handles, monkeypatch):
    transformer = handles[0].pipe.transformer
    weight, linear, hold = transformer.transformer_blocks[0].attn.to_q.weight, torch.nn.functional.linear, Hold()

    def held(x, given, bias=None):
        if given is weight:
            hold()
        return linear(x, given, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", held)
    alone = [evaluate(transformer, level) for level in (0.9, 0.3)]
    first = in_thread(evaluate, transformer, 0.9)
    with hold.meanwhile():
        second = evaluate(transformer, 0.3)
    assert torch.equal(second, alone[1])
    assert torch.equal(first.result(LIMIT), alone[0])


@pytest.mark.moderate
@under("cpu", *STATEFUL)
@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_a_prompt_is_encoded_with_all_weights_while_another_thread_encodes(handles, name):
    encoder = getattr(handles[0].pipe, name)
    layer, hold = next(each for each in encoder.modules() if isinstance(each, torch.nn.Linear)), Hold()
    callers = [run_of(handles[0], "a fox"), run_of(handles[1], "a blue cat")]
    alone = [caller() for caller in callers]
    handle = layer.register_forward_pre_hook(hold)
    try:
        other = in_thread(callers[0])
        with hold.meanwhile():
            here = callers[1]()
        assert [other.result(LIMIT), here] == alone
    finally:
        handle.remove()


def evaluate(transformer, level):
    """One evaluation of the toy's transformer, as any code may make it."""
    config, generator = transformer.config, torch.Generator().manual_seed(0)
    ids = torch.zeros(6, 3)
    ids[:, 1], ids[:, 2] = torch.arange(6) // 3, torch.arange(6) % 3
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 6, config.in_channels, generator=generator),
            encoder_hidden_states=torch.randn(1, 5, config.joint_attention_dim, generator=generator),
            pooled_projections=torch.randn(1, config.pooled_projection_dim, generator=generator),
            timestep=torch.tensor([level]),
            img_ids=ids,
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )[0]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["cpu", *STATEFUL])
def test_two_handles_of_pocket_give_their_own_bytes(preset):
    with group_offload():
        first = fnb.load("pocket", preset=preset)
    jobs = [(first, "a fox", 1, 4), (fnb.load(sharing(first.pipe)), "a cat", 2, 3)]

    def sample(flux, prompt, seed, steps):
        return content(fnb.run(flux, prompt, seed=seed, steps=steps, height=64, width=64))

    alone = [sample(*job) for job in jobs]
    together = [[in_thread(sample, *job) for job in jobs] for _ in range(6)]
    assert [[each.result(LIMIT) for each in pair] for pair in together] == [alone] * 6


# ------------------------------------------------------------------------------------------------------- tokenizers
def run_of(flux, prompt):
    return lambda: content(fnb.run(flux, prompt, steps=1, **SIZE))


@pytest.mark.moderate
@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("pair", ["call, run", "call, run with attention", "run, call", "run, run of another handle"])
def test_a_prompt_is_padded_as_its_own_call_asks(flux, monkeypatch, name, pair):
    # A tokenizer keeps padding and truncation as settings of its own: a call sets them and then encodes.
    another = fnb.load(sharing(flux.pipe))
    callers = {
        "call": lambda: call(flux.pipe, steps=1),
        "run": run_of(flux, "a fox"),
        "run of another handle": run_of(another, "a cat"),
        "run with attention": lambda: content(fnb.run(flux, "a cat", steps=1, keep=ATTENTION, **SIZE)),
    }
    first, second = (callers[each] for each in pair.split(", "))
    alone = first(), second()
    for handle in (flux, another):
        state_of(handle.pipe).encodings.clear()  # so that the prompts are encoded again
    kind, hold = type(getattr(flux.pipe, name)), Hold()
    settle = kind.set_truncation_and_padding

    def held(self, *args, **kwargs):
        settle(self, *args, **kwargs)
        if (self.backend_tokenizer.padding or {}).get("length") is not None:
            hold()

    monkeypatch.setattr(kind, "set_truncation_and_padding", held)
    other = in_thread(first)
    with hold.meanwhile():
        here = second()
    assert (other.result(LIMIT), here) == alone


# -------------------------------------------------------------------------------------------------------- attention
@pytest.mark.moderate
@pytest.mark.parametrize("place", ["between two steps", "inside an evaluation"])
@pytest.mark.parametrize("other", ["another handle", "a plain call"])
def test_attention_maps_are_those_of_their_own_call(flux, place, other):
    second = fnb.load(sharing(flux.pipe))

    def beside():
        if other == "a plain call":
            return call(flux.pipe, "a blue cat on snow", seed=2)
        return content(fnb.run(second, "a blue cat on snow", seed=2, steps=3, **SIZE))

    def captured(**more):
        return content(fnb.run(flux, "a fox", seed=1, steps=3, keep=ATTENTION, **SIZE, **more))

    alone, beside_alone, hold = captured(), beside(), Hold()
    with contextlib.ExitStack() as stack:
        if place == "inside an evaluation":
            stack.enter_context(hooked(flux.pipe.transformer.transformer_blocks[0].attn.norm_q, hold))
        capture = in_thread(captured, on_step=hold if place == "between two steps" else None)
        with hold.meanwhile():
            here = beside()
        assert capture.result(LIMIT) == alone
    assert here == beside_alone


# -------------------------------------------------------------------------------------------------------- recording
@pytest.mark.moderate
@pytest.mark.parametrize("other", ["run", "call", "stream"])
def test_a_recording_holds_no_steps_of_another_thread(flux, other):
    work = {
        "run": lambda: fnb.run(flux, "a fox", steps=2, **SIZE),
        "call": lambda: call(flux.pipe),
        "stream": lambda: list(fnb.stream(flux, **GRID)),
    }[other]
    with fnb.recording(flux.pipe) as recorder:
        in_thread(work).result(LIMIT)
    assert recorder.trajectories == ()


@pytest.mark.moderate
def test_recordings_in_two_threads_hold_their_own_calls(flux):
    def recorded(prompt):
        with fnb.recording(flux.pipe) as recorder:
            call(flux.pipe, prompt)
        return [each.recipe.prompt for each in recorder.trajectories]

    with fnb.recording(flux.pipe) as recorder:
        assert in_thread(recorded, "a fox").result(LIMIT) == ["a fox"]
        call(flux.pipe, "a cat")
    assert [each.recipe.prompt for each in recorder.trajectories] == ["a cat"]


def test_a_call_of_a_sibling_pipeline_is_recorded_whole_or_not_at_all(pipe):
    from diffusers import FluxImg2ImgPipeline

    sibling = FluxImg2ImgPipeline.from_pipe(pipe)
    sibling.set_progress_bar_config(disable=True)

    def repaint(image, steps):
        options = {**SIZE, "strength": 0.5, "num_inference_steps": steps, "max_sequence_length": 48}
        generator = torch.Generator().manual_seed(1)
        return sibling("a cat", image=image, generator=generator, **options).images[0]

    with fnb.recording(pipe) as recorder:
        first = pipe("a fox", **SIZE, num_inference_steps=3, max_sequence_length=48).images[0]
        others = [repaint(first, 4), repaint(first, 6)]
    found = recorder.trajectories
    assert all(levels_are_its_own(each) for each in found)
    pictures = [digest(image.tobytes()) for image in (first, *others)]
    assert [digest(each.image.tobytes()) for each in found] in (pictures[:1], pictures)


def test_a_sibling_recorded_alone_is_recorded_whole(pipe):
    from diffusers import FluxImg2ImgPipeline

    sibling = FluxImg2ImgPipeline.from_pipe(pipe)
    sibling.set_progress_bar_config(disable=True)
    image = pipe("a fox", **SIZE, num_inference_steps=2, max_sequence_length=48).images[0]
    with fnb.recording(sibling) as recorder:
        sibling("a cat", image=image, strength=0.5, num_inference_steps=4, max_sequence_length=48, **SIZE)
    (trajectory,) = recorder.trajectories
    assert levels_are_its_own(trajectory) and len(trajectory) == 2 and trajectory.recipe is None


@pytest.mark.moderate
def test_a_scheduler_exchanged_inside_the_block_is_recorded_with_its_own_levels(pipe):
    from diffusers import FlowMatchEulerDiscreteScheduler

    before = pipe.scheduler
    shifted = FlowMatchEulerDiscreteScheduler.from_config(before.config, shift=3.0)
    with fnb.recording(pipe) as recorder:
        call(pipe)
        pipe.scheduler = shifted
        call(pipe)
    assert [each.sigmas for each in recorder.trajectories] == [
        tuple(before.sigmas.tolist()),
        tuple(shifted.sigmas.tolist()),
    ]
    assert all(levels_are_its_own(each) for each in recorder.trajectories)
    assert not {"step", "set_timesteps"} & {*vars(before), *vars(shifted)}


# ----------------------------------------------------------------------------------- what a run leaves on the pipeline
def held_by(pipe):
    """What is on a pipeline, its scheduler and their classes, apart from the numbers of a schedule."""
    modules = [module for part in pipe.components.values() if isinstance(part, torch.nn.Module)
               for module in part.modules()]  # fmt: skip
    return {
        "pipeline": sorted(vars(pipe)),
        "scheduler": sorted(vars(pipe.scheduler)),
        "image processor": sorted(vars(pipe.image_processor)),
        "classes": [sorted(vars(kind)) for kind in (type(pipe), type(pipe.scheduler))],
        "scheduler object": id(pipe.scheduler),
        "configuration": dict(pipe.scheduler.config),
        "shift": pipe.scheduler.shift,
        "progress bar": dict(pipe._progress_bar_config),
        "interrupt": pipe._interrupt,
        "hooks": [(len(each._forward_hooks), len(each._forward_pre_hooks)) for each in modules],
        "methods": [vars(each).get("forward") for each in modules],
    }


def schedule_of(pipe):
    """The numbers that a call sets on a scheduler."""
    scheduler = pipe.scheduler
    return scheduler.sigmas.tolist(), scheduler.timesteps.tolist(), scheduler.step_index, scheduler.begin_index


def fail(kind):
    def at_step(*_):
        raise kind("stopped here")

    return at_step


WAYS = [{}, {"sampler": "renoise"}, {"shift": 2.0}, {"keep": ATTENTION}]


def name_of(options):
    return next((str(name) for name in options), "plain")


@pytest.mark.moderate
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("options", WAYS, ids=name_of)
def test_a_run_that_fails_leaves_nothing_on_the_pipeline(flux, options, kind):
    before = held_by(flux.pipe)
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):
        fnb.run(flux, "a fox", steps=2, on_step=fail(kind), **SIZE, **options)
    assert held_by(flux.pipe) == before


@pytest.mark.moderate
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_a_hook_ends_leaves_nothing_on_the_pipeline(flux, kind):
    before, block = held_by(flux.pipe), flux.pipe.transformer.transformer_blocks[0]
    with hooked(block, fail(kind)), contextlib.suppress(RuntimeError, KeyboardInterrupt):
        fnb.run(flux, "a fox", steps=2, keep=ATTENTION, **SIZE)
    assert held_by(flux.pipe) == before


@pytest.mark.moderate
@under(*STATEFUL)
@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_evaluation_that_fails_keeps_no_other_thread_waiting(handles, part, kind):
    # PyTorch calls hooks with always_call=True after an Exception, and not after a KeyboardInterrupt.
    alone = run_of(handles[1], "a cat")()
    module = getattr(handles[0].pipe, part)
    layer = [each for each in module.modules() if isinstance(each, torch.nn.Linear)][-1]
    with hooked(layer, fail(kind)), pytest.raises(kind):
        in_thread(run_of(handles[0], "a fox")).result(LIMIT)
    assert in_thread(run_of(handles[1], "a cat")).result(LIMIT) == alone


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_recorded_call_that_fails_leaves_nothing_on_the_pipeline(pipe, kind):
    before = held_by(pipe)
    with pytest.raises(kind), fnb.recording(pipe, keep=ATTENTION):
        call(pipe, callback_on_step_end=fail(kind))
    assert held_by(pipe) == before


@pytest.mark.parametrize("options", [*WAYS, {"on_step": fail(RuntimeError)}], ids=name_of)
def test_a_run_leaves_the_schedule_of_the_pipeline_as_it_was(flux, options):
    call(flux.pipe, steps=3)
    before = schedule_of(flux.pipe)
    with contextlib.suppress(RuntimeError):
        fnb.run(flux, "a fox", steps=2, **SIZE, **options)
    assert schedule_of(flux.pipe) == before


@pytest.mark.parametrize("options", WAYS, ids=name_of)
def test_another_thread_sees_no_change_in_the_middle_of_a_run(flux, options):
    before, seen = held_by(flux.pipe), []
    # Hooks of attention capture are on the shared modules during a run; they are no part of this question.
    parts = [name for name in before if name != "hooks"]

    def look(*_):
        seen.append(in_thread(held_by, flux.pipe).result(LIMIT))

    fnb.run(flux, "a fox", steps=2, on_step=look, **SIZE, **options)
    assert [{name: each[name] for name in parts} for each in seen] == [{name: before[name] for name in parts}] * 2


def test_what_the_user_changes_on_the_pipeline_in_the_middle_of_a_run_stays(flux):
    def change(*_):
        flux.pipe.set_progress_bar_config(disable=True, desc="mine")
        flux.pipe.scheduler.register_to_config(base_shift=0.25)

    fnb.run(flux, "a fox", steps=2, on_step=change, **SIZE)
    assert flux.pipe._progress_bar_config == {"disable": True, "desc": "mine"}
    assert flux.pipe.scheduler.config.base_shift == 0.25


# -------------------------------------------------------------------------------------------------------------- STOP
@pytest.fixture
def held_after_stop(pipe, monkeypatch):
    """Holds the other thread's loop where it has been stopped and has not ended yet."""
    hold, stopped = Hold(), []

    def interrupt(self):
        if stopped and threading.current_thread() is stopped[0]:
            hold()
        return self._interrupt

    monkeypatch.setattr(type(pipe), "interrupt", property(interrupt))

    def stop(*_):
        stopped.append(threading.current_thread())
        return fnb.STOP

    return hold, stop


@pytest.mark.moderate
def test_stop_ends_its_own_run_and_no_plain_call(flux, held_after_stop):
    hold, stop = held_after_stop
    alone, runs = call(flux.pipe), []

    def stop_a_run(pipe, index, timestep, tensors):
        if index == 0:
            runs.append(in_thread(fnb.run, flux, "a fox", steps=3, on_step=stop, **SIZE))
            assert hold.inside.wait(LIMIT)
        return tensors

    interrupted = call(flux.pipe, callback_on_step_end=stop_a_run)
    hold.go.set()
    trajectory = runs[0].result(LIMIT)
    assert not trajectory.finished and len(trajectory) == 1
    assert interrupted == alone


@pytest.mark.moderate
def test_a_plain_call_that_begins_does_not_undo_the_stop_of_a_run(flux, held_after_stop):
    hold, stop = held_after_stop
    alone, expected = call(flux.pipe), content(fnb.run(flux, "a fox", steps=3, on_step=lambda _: fnb.STOP, **SIZE))
    run = in_thread(lambda: content(fnb.run(flux, "a fox", steps=3, on_step=stop, **SIZE)))
    with hold.meanwhile():
        beside = call(flux.pipe)
    assert run.result(LIMIT) == expected
    assert beside == alone


# --------------------------------------------------------------------------------------------------- number of threads
@pytest.mark.moderate
def test_a_sweep_decodes_with_the_number_of_threads_of_its_caller(flux):
    # The decoder's sums depend on it. A new thread computes with the number that was set last, in whichever thread.
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    elsewhere = threading.Thread(target=torch.set_num_threads, args=(1,))
    elsewhere.start()
    elsewhere.join()
    try:
        with hooked(flux.pipe.vae.decoder, lambda *_: seen.append(torch.get_num_threads())):
            fnb.sweep(flux, prompts="a fox", seeds=range(2), steps=1, **SIZE)
        assert seen == [2, 2]
    finally:
        torch.set_num_threads(before)
