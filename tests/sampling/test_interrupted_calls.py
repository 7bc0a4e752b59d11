"""A call that is interrupted, or that fails, keeps nothing: no tensor, no lock, no patch; the next has its own bytes.

PyTorch runs no hooks of a module, not even those with `always_call`, after a KeyboardInterrupt in its call.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.image_processor import VaeImageProcessor

import fluxnb as fnb
from fluxnb.pipeline.state import state_of
from fluxnb.runtime.exclusive import group_of
from fluxnb.runtime.swapping import swap
from fluxnb.sampling import run as runs
from tests.conftest import toy_pipeline
from tests.runtime.test_assembly import built
from tests.sampling.test_interrupts import forget_prompts, held_by

pytestmark = pytest.mark.moderate
SIZE = {"height": 32, "width": 32}
PLAIN = {"num_inference_steps": 2, "max_sequence_length": 48, **SIZE}


# ------------------------------------------------------------------------------------------------------ entry points
def run(flux):
    fnb.run(flux, "a fox", steps=2, keep=fnb.Keep(attention="all"), **SIZE)


def invert(flux):
    fnb.invert(flux, torch.zeros(16, 4, 4), "a fox", steps=2)


def sweep(flux):
    fnb.sweep(flux, prompts="a fox", seeds=range(2), steps=[1, 2], keep=fnb.Keep(), **SIZE)


def batches(flux):
    fnb.sweep(flux, prompts="a fox", seeds=range(2), steps=[1, 2], batch=2, **SIZE)


def stream(flux):
    list(fnb.stream(flux, prompts="a fox", seeds=range(2), steps=[1, 2], **SIZE))


def estimate(flux):
    state_of(flux.pipe).timings.clear()
    fnb.plan_sweep(flux, prompts="a fox", steps=2, measure=True, **SIZE)


def recorded(flux):
    with fnb.recording(flux.pipe, keep=fnb.Keep(attention="all")):
        flux.pipe("a fox", generator=torch.Generator().manual_seed(1), **PLAIN)


def decode(flux):
    flux.decode(torch.zeros(1, 16, 4, 4))


# ------------------------------------------------------------------------------------------------------------ stages
@contextlib.contextmanager
def raising(kind, owner, name, *, only=None, at=1, after=False):
    """Raise inside the block in the `at`-th call of a method, of one instance or of all."""
    original, own, calls = getattr(owner, name), name in vars(owner), []

    @functools.wraps(original)
    def replaced(self, *args, **kwargs):
        calls.append(only is None or self is only)
        due = calls[-1] and sum(calls) == at
        if due and not after:
            raise kind
        result = original(self, *args, **kwargs)
        if due:
            raise kind
        return result

    setattr(owner, name, replaced)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)
    assert sum(calls) >= at, "the stage was not reached"


def in_layer(layer, at=1):
    return lambda pipe: {"owner": type(layer(pipe)), "name": "forward", "only": layer(pipe), "at": at}


def in_method(owner, name, **options):
    return lambda pipe: {"owner": owner, "name": name, **options}


PROMPT = {
    "text encoder": in_layer(lambda pipe: pipe.text_encoder.get_submodule("encoder.layers.0.mlp.fc1")),
    "second text encoder": in_layer(lambda pipe: pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q),
}
SAMPLING = {
    "before the prompt": in_method(FluxPipeline, "check_inputs"),
    "noise": in_method(FluxPipeline, "prepare_latents", after=True),
    "transformer": in_layer(lambda pipe: pipe.transformer.single_transformer_blocks[0], at=2),
    "scheduler step": in_method(FlowMatchEulerDiscreteScheduler, "step", at=2),
}
DECODING = {
    "decoder": in_layer(lambda pipe: pipe.vae.decoder.conv_out),
    "image processor": in_method(VaeImageProcessor, "postprocess"),
}
STAGES = {**PROMPT, **SAMPLING, **DECODING}
REACHED = {
    run: STAGES,
    recorded: STAGES,
    sweep: ("text encoder", *SAMPLING, *DECODING),
    invert: PROMPT,
    decode: DECODING,
    estimate: ("decoder",),
}
REACHED |= {stream: ("second text encoder", "transformer", "decoder"), batches: ("transformer", "decoder")}
FAILED = [(run, stage, ZeroDivisionError) for stage in STAGES] + [(recorded, "transformer", ZeroDivisionError)]
CASES = [(entry, stage, KeyboardInterrupt) for entry, stages in REACHED.items() for stage in stages] + FAILED
NAMES = [f"{entry.__name__}, {stage}, {kind.__name__}" for entry, stage, kind in CASES]


# ------------------------------------------------------------------------------------------------------ what is left
@contextlib.contextmanager
def new_tensors():
    """A function that returns how many bytes the tensors have that were made inside the block and are alive."""

    def count():
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
        storages = [each.untyped_storage() for each in tensors if each.device.type == "cpu"]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    gc.freeze()  # a collection that searches the whole process takes longer than a call of the toy
    try:
        yield count
    finally:
        gc.unfreeze()


def groups(pipe):
    found = (group_of(part) for part in pipe.components.values() if part is not None)
    return [repr(group) for group in found if group is not None]


def picture(flux):
    forget_prompts(flux)
    return fnb.run(flux, "a red fox", seed=5, steps=2, **SIZE).image.tobytes()


@pytest.fixture(scope="module")
def lean(toy_folder):
    """A pipeline whose text encoders are read by layer, and of which blocks leave the device for the decoder."""
    flux = fnb.load(built(toy_folder, "lean", offload_blocks=True))
    for entry in REACHED:
        entry(flux)  # fills caches, which stay
    return flux


@pytest.fixture(scope="module")
def expected(lean):
    return picture(lean)


@pytest.fixture(scope="module", params=CASES, ids=NAMES)
def ended(request, lean, expected):
    """What an interrupted or failed call has left, in comparison with the same call that completes."""
    entry, stage, kind = request.param
    before = SimpleNamespace(last=runs.last, picture=expected)
    with new_tensors() as alive:
        forget_prompts(lean)
        entry(lean)
        forget_prompts(lean)
        before.tensors, before.held, before.groups = alive(), held_by(lean.pipe), groups(lean.pipe)
        with contextlib.suppress(kind), raising(kind, **STAGES[stage](lean.pipe)):
            entry(lean)
        runs.last = before.last
        forget_prompts(lean)
        after = SimpleNamespace(tensors=alive(), held=held_by(lean.pipe), groups=groups(lean.pipe))
    after.picture = picture(lean)
    return SimpleNamespace(before=before, after=after)


def test_an_ended_call_keeps_no_tensors(ended):
    assert ended.after.tensors == ended.before.tensors


def test_an_ended_call_holds_no_lock(ended):
    assert ended.after.groups == ended.before.groups


def test_an_ended_call_leaves_no_patch_and_no_hook(ended):
    assert ended.after.held == ended.before.held


def test_the_call_after_an_ended_one_has_its_own_bytes(ended):
    assert ended.after.picture == ended.before.picture


# ---------------------------------------------------------------------------------------------- objects that live on
def test_an_open_recording_keeps_the_steps_of_an_interrupted_call_alone(lean):
    def call(pipe):
        with contextlib.suppress(KeyboardInterrupt), raising(KeyboardInterrupt, **STAGES["transformer"](pipe)):
            pipe("a fox", generator=torch.Generator().manual_seed(1), **PLAIN)

    with fnb.recording(lean) as recorder, new_tensors() as alive:
        call(lean.pipe)
        recorder.trajectories = ()
        before = alive()
        call(lean.pipe)
        (trajectory,) = recorder.trajectories
        assert len(trajectory) == 1 and alive() - before == trajectory.nbytes


@pytest.mark.parametrize("stage", ["transformer", "decoder"])
def test_a_stream_that_was_interrupted_keeps_no_prompts(lean, stage):
    stream(lean)
    forget_prompts(lean)
    with new_tensors() as alive:
        cells = fnb.stream(lean, prompts="a fox", seeds=range(2), steps=2, **SIZE)
        with raising(KeyboardInterrupt, **STAGES[stage](lean.pipe)):
            assert list(cells) == []
        forget_prompts(lean)
        assert alive() == 0


def test_an_error_in_on_step_empties_a_cache_of_activations():
    from diffusers import FirstBlockCacheConfig

    flux = fnb.load(toy_pipeline(size=32))
    flux.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    run(flux)
    with new_tensors() as alive:
        with pytest.raises(ZeroDivisionError):
            fnb.run(flux, "a fox", steps=2, on_step=lambda _: 1 / 0, **SIZE)
        forget_prompts(flux)
        assert alive() == 0


def test_the_student_has_its_bytes_after_an_interrupt_of_its_teacher():
    pipe = toy_pipeline(size=32)
    parts = {**pipe.components, "transformer": toy_pipeline(seed=1).transformer}
    student, teacher = fnb.load(pipe), fnb.load(FluxPipeline(**parts))
    expected = picture(student)
    swap(pipe.transformer, parts["transformer"], torch.device("cpu"))
    run(teacher)
    with new_tensors() as alive:
        with raising(KeyboardInterrupt, **STAGES["transformer"](teacher.pipe)):
            trajectory = fnb.run(teacher, "a fox", steps=2, on_interrupt="return", **SIZE)
        forget_prompts(teacher)
        assert alive() == trajectory.nbytes and set(groups(teacher.pipe)) == {"ExclusiveGroup(free, 0 waiting)"}
    assert picture(student) == expected
