"""Extras never break a call: parts that are missing or of another kind, and failures of the bookkeeping itself."""

from __future__ import annotations

import copy
import types
import warnings

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError, RunError
from fluxnb.pipeline.state import state_of
from fluxnb.sampling import attention, call_trace, recorded_recipe, recorded_trajectory, recording
from tests.conftest import toy_pipeline

SIZE = {"height": 32, "width": 32}


@pytest.fixture
def pipe():
    pipe = toy_pipeline(size=32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeds(pipe):
    prompt, pooled, _ = pipe.encode_prompt("a fox", None, max_sequence_length=48)
    return {"prompt_embeds": prompt, "pooled_prompt_embeds": pooled}


def call(pipe, **options):
    """The tensor that a plain call returns."""
    given = {**SIZE, "num_inference_steps": 2, "output_type": "pt", "max_sequence_length": 48}
    given |= {"generator": torch.Generator().manual_seed(3), **options}
    if "prompt_embeds" not in given:
        given.setdefault("prompt", "a fox")
    return pipe(**given).images


def tiny_vae():
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        latent_channels=16,
        scaling_factor=1.0,
        shift_factor=0.0,
    ).eval()


def without(pipe, *names, **parts):
    """A pipeline with some parts missing or exchanged."""
    from diffusers import FluxPipeline

    components = {name: None if name in names else part for name, part in pipe.components.items()}
    other = FluxPipeline(**{**components, **parts})
    other.set_progress_bar_config(disable=True)
    return other


ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def wrapped_step(pipe):
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs)


def own_processor(pipe):
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    pipe.transformer.transformer_blocks[0].attn.set_processor(type("Mine", (FluxAttnProcessor,), {})())


# What is missing or other: a pipeline made from the toy, and the arguments of a call that works.
OTHERS = {
    "no VAE": lambda pipe: (without(pipe, "vae"), {"output_type": "latent"}),
    "no text encoders": lambda pipe: (without(pipe, *ENCODERS), embeds(pipe)),
    "no VAE and no text encoders": lambda pipe: (
        without(pipe, "vae", *ENCODERS),
        {**embeds(pipe), "output_type": "latent"},
    ),
    "AutoencoderTiny": lambda pipe: (without(pipe, vae=tiny_vae()), {}),
    "T5 on the meta device": lambda pipe: (
        without(pipe, text_encoder_2=copy.deepcopy(pipe.text_encoder_2).to("meta")),
        embeds(pipe),
    ),
    "wrapped step": lambda pipe: (wrapped_step(pipe) or pipe, {}),
    "own processor": lambda pipe: (own_processor(pipe) or pipe, {}),
}


@pytest.mark.moderate
@pytest.mark.parametrize("name", OTHERS)
def test_a_call_is_recorded_and_has_the_bytes_of_the_plain_call(pipe, name):
    other, options = OTHERS[name](pipe)
    plain = call(other, **options)
    with fnb.recording(other) as recorder:
        seen = call(other, **options)
    assert torch.equal(plain, seen)
    (trajectory,) = recorder.trajectories
    assert trajectory.finished and len(trajectory) == 2


@pytest.mark.parametrize("name", OTHERS)
def test_it_loads(pipe, name):
    other, _ = OTHERS[name](pipe)
    assert isinstance(fnb.load(other), fnb.Flux)


@pytest.mark.parametrize("entry", [fnb.run, lambda flux, prompt: fnb.sweep(flux, prompts=prompt)])
@pytest.mark.parametrize("missing", ENCODERS)
def test_a_prompt_without_text_encoders_is_refused_before_anything_runs(pipe, entry, missing):
    flux = fnb.load(without(pipe, missing))
    calls = []
    flux.pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(InputError, match=f"without {missing}.*Give a pipeline with text encoders"):
        entry(flux, "a fox")
    assert not calls


@pytest.mark.moderate
def test_a_run_without_a_vae_has_every_step_and_no_picture(pipe):
    expected = fnb.run(fnb.load(pipe), "a fox", steps=2, **SIZE)
    flux = fnb.load(without(pipe, "vae"))
    trajectory = fnb.run(flux, "a fox", steps=2, **SIZE)
    assert trajectory.image is None and trajectory.preview is None and trajectory.finished
    assert torch.equal(trajectory.final, expected.final)
    stopped = fnb.run(flux, "a fox", steps=2, on_step=lambda _: fnb.STOP, **SIZE)
    assert stopped.image is None and len(stopped) == 1


@pytest.mark.parametrize(
    "decode",
    [
        lambda flux, trajectory: flux.decode(trajectory[0].latents()[None]),
        lambda flux, trajectory: fnb.film(flux, trajectory),
        lambda flux, trajectory: fnb.film(flux, trajectory, by="linear"),
        lambda flux, trajectory: fnb.tiny(flux, tiny_vae()),
        lambda flux, trajectory: fnb.sweep(flux, prompts="a fox"),
    ],
)
def test_what_needs_a_vae_is_refused_without_one(pipe, decode):
    flux = fnb.load(without(pipe, "vae"))
    with pytest.raises(InputError, match="VAE"):
        decode(flux, fnb.run(flux, "a fox", steps=1, **SIZE))


def test_a_pipeline_without_a_transformer_is_refused_by_load_and_recorded(pipe):
    other = without(pipe, "transformer")
    with pytest.raises(InputError, match="without a transformer"):
        fnb.load(other)
    with fnb.recording(other) as recorder:
        other.encode_prompt("a fox", None, max_sequence_length=48)
    assert recorder.trajectories == ()


@pytest.mark.moderate
def test_an_autoencoder_tiny_has_a_preview_and_the_bytes_of_the_plain_call(pipe):
    flux = fnb.load(without(pipe, vae=tiny_vae()))
    trajectory = fnb.run(flux, "a fox", steps=2, **SIZE)
    assert trajectory.preview is not None
    plain = flux.pipe("a fox", **SIZE, num_inference_steps=2, generator=torch.Generator().manual_seed(0),
                      max_sequence_length=48).images[0]  # fmt: skip
    assert trajectory.image.tobytes() == plain.tobytes()


# ------------------------------------------------------------------------------------------------------ not a number
def spoil_decoder(pipe):
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))


@pytest.mark.moderate
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_picture_that_is_not_finite_is_an_error_of_a_run(pipe, dtype):
    spoil_decoder(pipe)
    flux = fnb.load(pipe.to(dtype))
    with pytest.raises(RunError, match=r"VAE \(float.*not finite.*Load with dtype"):
        fnb.run(flux, "a fox", steps=1, **SIZE)
    with pytest.raises(RunError, match="not finite"):
        flux.decode(torch.zeros(1, 16, 4, 4))


@pytest.mark.moderate
@pytest.mark.parametrize("output", ["pil", "pt", "np"])
def test_a_picture_that_is_not_finite_is_a_warning_of_a_recording(pipe, output):
    spoil_decoder(pipe)
    with fnb.recording(pipe) as recorder, pytest.warns(fnb.RecordingWarning, match="VAE decoded is not finite") as seen:
        call(pipe, output_type=output)
    assert len([each for each in seen if each.category is fnb.RecordingWarning]) == 1
    assert recorder.trajectories[0].finished


@pytest.mark.moderate
def test_a_velocity_that_is_not_finite_is_a_warning_of_a_recording(pipe):
    pipe.transformer.register_forward_hook(lambda module, args, out: (out[0] * float("nan"),))
    with fnb.recording(pipe), pytest.warns(fnb.RecordingWarning, match="velocity of step 0"):
        call(pipe)


# -------------------------------------------------------------------------------------------------- leaving no trace
def held_by(pipe):
    """What is on a pipeline, its parts and its class."""
    parts = [part for part in pipe.components.values() if part is not None]
    modules = [module for part in parts if isinstance(part, torch.nn.Module) for module in part.modules()]
    return {
        "pipeline": sorted(vars(pipe)),
        "components": [id(part) for part in parts],
        "class": dict(vars(type(pipe))),
        "parts": [(sorted(vars(part)), [v for v in vars(part).values() if isinstance(v, types.FunctionType)])
                  for part in parts],
        "hooks": [(list(each._forward_hooks.values()), list(each._forward_pre_hooks.values())) for each in modules],
        "methods": [vars(each).get("forward") for each in modules],
    }  # fmt: skip


@pytest.mark.parametrize("keep", [fnb.Keep(), fnb.Keep(attention="all")])
def test_a_recording_alone_leaves_nothing_on_a_pipeline(pipe, keep):
    call(pipe)
    before = held_by(pipe)
    with fnb.recording(pipe, keep=keep) as recorder:
        call(pipe)
    assert held_by(pipe) == before
    assert recorder.trajectories[0].recipe is not None and recorder.trajectories[0].preview is not None


def test_a_pipeline_that_was_recorded_first_is_protected_when_it_is_loaded(pipe):
    with fnb.recording(pipe):
        call(pipe)
    before = sorted(vars(pipe.tokenizer_2))
    flux = fnb.load(pipe)
    assert sorted(vars(pipe.tokenizer_2)) != before
    assert flux.revision == state_of(pipe).facts["revision"]


# ---------------------------------------------------------------------------------------- failures of the bookkeeping
def broken(*_, **__):
    raise ZeroDivisionError("broken on purpose")


INTERNAL = [
    (call_trace, "_fresh_seeds"), (call_trace, "bound_arguments"), (call_trace, "patched_method"),
    (call_trace, "mark_now"), (call_trace, "pictures_of"), (call_trace, "trajectories_of"),
    (recorded_trajectory, "step_of"),
    (call_trace, "_step_arguments"), (recorded_trajectory, "recipe_of"), (call_trace, "tensor_version"),
    (call_trace.CallTrace, "_before"), (call_trace.CallTrace, "_after"), (call_trace.CallTrace, "_discard"),
    (call_trace.CallTrace, "__post_init__"), (call_trace.CallTrace, "arguments"),
    (recorded_recipe.Surroundings, "of"), (recorded_recipe._Before, "of"), (recorded_recipe._Before, "change"),
    (recording, "handle_of"), (recording, "bound_arguments"), (recording, "CallTrace"), (recording, "_defaults_of"),
    (call_trace, "words_of"), (attention.AttentionCapture, "_maps"), (attention.AttentionCapture, "_begin"),
    (attention.AttentionCapture, "take"), (attention.AttentionCapture, "register"),
]  # fmt: skip


@pytest.mark.moderate
@pytest.mark.parametrize(("owner", "name"), INTERNAL, ids=lambda each: getattr(each, "__name__", each))
def test_a_failure_of_the_bookkeeping_is_one_warning_and_the_call_is_unharmed(pipe, monkeypatch, owner, name):
    options = {"callback_on_step_end": lambda pipe, index, timestep, tensors: tensors}
    plain = call(pipe, **options)
    monkeypatch.setattr(owner, name, broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with fnb.recording(pipe, keep=fnb.Keep(attention="all")):
            seen = call(pipe, **options)
    monkeypatch.undo()
    assert torch.equal(plain, seen)
    assert [each.category for each in caught if "broken on purpose" in str(each.message)] == [fnb.RecordingWarning]
    assert not {"step", "set_timesteps"} & set(vars(pipe.scheduler)) and "prepare_latents" not in vars(pipe)
    assert torch.equal(call(pipe), plain)


@pytest.mark.moderate
@pytest.mark.parametrize("name", ["words_of", "_maps", "take", "register"])
def test_a_failure_of_the_attention_capture_loses_the_attention_alone(pipe, monkeypatch, name):
    owner = call_trace if name == "words_of" else attention.AttentionCapture
    monkeypatch.setattr(owner, name, broken)
    with fnb.recording(pipe, keep=fnb.Keep(attention="all")) as recorder, pytest.warns(fnb.RecordingWarning):
        call(pipe)
    (trajectory,) = recorder.trajectories
    assert trajectory.finished and trajectory.recipe is not None
    assert not any("attention" in step.tensors for step in trajectory)


def test_a_run_whose_attention_cannot_be_captured_has_its_picture(pipe, monkeypatch):
    flux = fnb.load(pipe)
    plain = fnb.run(flux, "a fox", steps=2, **SIZE)
    monkeypatch.setattr(attention.AttentionCapture, "_maps", broken)
    with pytest.warns(fnb.RecordingWarning, match="attention is not recorded"):
        trajectory = fnb.run(flux, "a fox", steps=2, keep=fnb.Keep(attention="all"), **SIZE)
    assert trajectory.image.tobytes() == plain.image.tobytes() and trajectory.finished and trajectory.words == ()


# ------------------------------------------------------------------------------------------- schedulers of other kinds
class Trigonometric:
    """A scheduler as Sana-Sprint's: angles in place of sigmas, and a step with arguments of its own."""

    order = 1

    def __init__(self):
        from diffusers.configuration_utils import FrozenDict

        self.config = FrozenDict({})

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
        self.timesteps = torch.linspace(1.5, 0.0, len(sigmas) + 1)[:-1]

    def set_begin_index(self, begin):
        pass

    def step(self, output, angle, latent, *, return_dict=True):
        return (latent * torch.cos(angle) - output * torch.sin(angle) * 0.1, latent)


def test_a_scheduler_with_other_attributes_does_not_kill_the_call(pipe):
    vars(pipe)["scheduler"] = Trigonometric()
    plain = call(pipe)
    with fnb.recording(pipe) as recorder, pytest.warns(fnb.RecordingWarning) as seen:
        recorded = call(pipe)
    assert torch.equal(plain, recorded) and len(seen) == 1
    assert all(not trajectory.finished for trajectory in recorder.trajectories)


def test_the_scheduler_of_sana_sprint_does_not_kill_the_call(pipe):
    from diffusers import SCMScheduler

    class Sprint(SCMScheduler):
        def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
            super().set_timesteps(len(sigmas), device=device, intermediate_timesteps=None)
            self.timesteps = self.timesteps[:-1]

        def step(self, model_output, timestep, sample, return_dict=True):
            self.timesteps = torch.cat([self.timesteps, torch.zeros(1)])
            try:
                return super().step(model_output, timestep, sample, torch.Generator().manual_seed(0), return_dict)
            finally:
                self.timesteps = self.timesteps[:-1]

    vars(pipe)["scheduler"] = Sprint()
    plain = call(pipe)
    vars(pipe)["scheduler"] = Sprint()
    with fnb.recording(pipe) as recorder, pytest.warns(fnb.RecordingWarning):
        recorded = call(pipe)
    assert torch.equal(plain, recorded)
    assert all(not trajectory.finished for trajectory in recorder.trajectories)


# ------------------------------------------------------------------------------------- failures of a run's own recorder
@pytest.fixture
def breaks_at_the_third_step(monkeypatch):
    after = call_trace.CallTrace._after

    def failing(self, *given):
        if len(self.steps) == 2:
            broken()
        after(self, *given)

    monkeypatch.setattr(call_trace.CallTrace, "_after", failing)


@pytest.mark.usefixtures("breaks_at_the_third_step")
@pytest.mark.parametrize("sample", [fnb.run, fnb.sweep], ids=["run", "sweep"])
def test_a_run_that_cannot_be_recorded_to_its_end_is_an_error_and_no_interrupt(pipe, sample):
    prompt = {"prompts" if sample is fnb.sweep else "prompt": "a fox"}
    with pytest.warns(fnb.RecordingWarning), pytest.raises(fnb.RunError, match="could not be recorded"):
        sample(fnb.load(pipe), **prompt, steps=4, **SIZE)
