from __future__ import annotations

import dataclasses
import gc
import signal

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError, RunError
from fluxnb.pipeline.identity import identity_of
from fluxnb.runtime.exclusive import ExclusiveGroup
from tests.conftest import toy_pipeline
from tests.pipeline.test_identity import CHANGES
from tests.plain_calls import counted, plain_call


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_a_run_has_the_bytes_of_the_plain_call(toy, steps, seed):
    trajectory = fnb.run(toy, "a red fox", seed=seed, steps=steps)
    assert trajectory.image.tobytes() == plain_call(toy.pipe, trajectory.recipe).tobytes()


def test_a_run_in_bfloat16_has_the_bytes_of_the_plain_call():
    flux = fnb.load(toy_pipeline().to(torch.bfloat16))
    trajectory = fnb.run(flux, "a red fox", steps=3)
    assert trajectory.recipe.dtype == "bfloat16" and trajectory[0].v.dtype == torch.bfloat16
    assert trajectory.image.tobytes() == plain_call(flux.pipe, trajectory.recipe).tobytes()


def test_true_cfg_has_the_bytes_of_the_plain_call(toy_guided):
    trajectory = fnb.run(toy_guided, "a red fox", steps=3)
    assert (trajectory.recipe.guidance, trajectory.recipe.negative) == (2.5, "")
    expected = plain_call(toy_guided.pipe, trajectory.recipe, negative_prompt="", true_cfg_scale=2.5)
    assert trajectory.image.tobytes() == expected.tobytes()


def test_guidance_changes_the_picture_and_one_turns_it_off(toy_guided):
    with counted(toy_guided.pipe) as counts:
        off = fnb.run(toy_guided, "a red fox", steps=2, guidance=1.0)
    assert counts["transformer"] == 2
    assert off.image.tobytes() == plain_call(toy_guided.pipe, off.recipe).tobytes()
    assert fnb.run(toy_guided, "a red fox", steps=2).image.tobytes() != off.image.tobytes()


@pytest.mark.moderate
def test_embedded_guidance_has_the_bytes_of_the_plain_call():
    flux = fnb.load(toy_pipeline(guidance_embeds=True))
    trajectory = fnb.run(flux, "a red fox", steps=2, guidance=4.0)
    assert flux.defaults.guidance_kind == "embedded"
    assert trajectory.image.tobytes() == plain_call(flux.pipe, trajectory.recipe, guidance_scale=4.0).tobytes()


def test_own_sigmas_and_sizes_have_the_bytes_of_the_plain_call(toy):
    trajectory = fnb.run(toy, "a cat", sigmas=[1.0, 0.9, 0.3], height=32, width=80)
    assert trajectory.image.size == (80, 32) and len(trajectory) == 3
    assert trajectory.image.tobytes() == plain_call(toy.pipe, trajectory.recipe).tobytes()


def test_a_shift_has_the_bytes_of_a_scheduler_made_with_it(toy):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    trajectory = fnb.run(toy, "a cat", steps=3, shift=3.0)
    shifted = FluxPipeline(**{**toy.pipe.components, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)})
    shifted.set_progress_bar_config(disable=True)
    assert trajectory.sigmas[1] == pytest.approx(6 / 7)
    assert trajectory.image.tobytes() == plain_call(shifted, trajectory.recipe).tobytes()


def test_a_shift_is_gone_after_the_run(toy):
    before = (dict(toy.pipe.scheduler.config), toy.pipe.scheduler.shift)
    fnb.run(toy, "a cat", steps=1, shift=3.0, sampler="renoise")
    assert (dict(toy.pipe.scheduler.config), toy.pipe.scheduler.shift) == before
    assert "step" not in vars(toy.pipe.scheduler)


def test_renoising_is_repeatable_starts_as_euler_does_and_goes_another_way(toy):
    torch.manual_seed(1)
    one = fnb.run(toy, "a cat", steps=3, sampler="renoise")
    torch.manual_seed(2)
    two = fnb.run(toy, "a cat", steps=3, sampler="renoise")
    euler = fnb.run(toy, "a cat", steps=3)
    assert one.image.tobytes() == two.image.tobytes() != euler.image.tobytes()
    assert torch.equal(one[0].v, euler[0].v)
    step = one[0]
    fresh = (step.x_next - (1 - one.sigmas[1]) * step.clean) / one.sigmas[1]
    assert float(fresh.std()) == pytest.approx(1, abs=0.1)
    assert abs(float((fresh * step.x).mean())) < 0.1  # nothing of the old noise


def test_the_global_random_state_is_left_alone(toy):
    before = torch.random.get_rng_state()
    fnb.run(toy, "a cat", steps=2, sampler="renoise")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_recipe_of_a_trajectory_is_complete_and_repeats_it(toy, toy_trajectory):
    recipe = toy_trajectory.recipe
    assert recipe.height == recipe.width == 64 and recipe.model and recipe.revision and recipe.dtype == "float32"
    assert fnb.run(toy, recipe).image.tobytes() == toy_trajectory.image.tobytes()


def test_the_picture_of_a_recipe_from_a_png_is_the_same_again(toy, toy_trajectory, tmp_path):
    from fluxnb.io.png import write_png

    path = write_png(toy_trajectory.image, tmp_path / "a.png", toy_trajectory.recipe)
    assert fnb.run(toy, fnb.open_recipe(path)).image.tobytes() == toy_trajectory.image.tobytes()


def test_arguments_change_single_fields_of_a_recipe(toy, toy_trajectory):
    trajectory = fnb.run(toy, toy_trajectory.recipe, steps=2)
    assert trajectory.recipe == toy_trajectory.recipe.replace(steps=2)


def test_a_recipe_of_another_model_is_drawn_by_this_one(toy, toy_guided):
    guided = toy_guided.resolve(fnb.Recipe(prompt="a fox")).replace(model="pocket-base")
    assert fnb.run(toy, guided, steps=1).recipe.model == toy.model


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt": ""}, "at least one word"),
        ({"prompt": 3}, "must be text"),
        ({"steps": 0}, "at least 1"),
        ({"height": 100}, "96 or 112"),
        ({"seed": "3"}, "whole number"),
        ({"guidance": 3.5}, "takes none"),
        ({"negative": "snow"}, "negative prompt"),
        ({"sampler": "ddim"}, "known are"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_runs(toy, given, says):
    with counted(toy.pipe) as counts, pytest.raises(InputError, match=says):
        fnb.run(toy, given.pop("prompt", "a fox"), **given)
    assert sum(counts.values()) == 0


def test_a_run_without_a_model_is_refused():
    with pytest.raises(InputError, match="flux is a Flux"):
        fnb.run("pocket", "a fox")


@pytest.mark.moderate
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("how", ["return", "raise"])
def test_stopping_gives_the_clean_estimate_so_far(toy, toy_trajectory, at, how):
    def stop(step):
        if step.index == at:
            if how == "raise":
                raise KeyboardInterrupt
            return fnb.STOP
        return None

    with counted(toy.pipe) as counts:
        trajectory = fnb.run(toy, toy_trajectory.recipe, on_step=stop, on_interrupt="return")
    assert counts["transformer"] == at + 1
    assert not trajectory.finished and len(trajectory) == at + 1 and len(trajectory.sigmas) == 5
    expected = toy.decode(toy_trajectory[at].latents("clean")[None])[0]
    assert trajectory.image.tobytes() == expected.tobytes()
    assert fnb.run(toy, toy_trajectory.recipe).image.tobytes() == toy_trajectory.image.tobytes()


@pytest.mark.moderate
def test_stopping_at_the_last_step_is_finishing(toy, toy_trajectory):
    trajectory = fnb.run(toy, toy_trajectory.recipe, on_step=lambda step: fnb.STOP if step.index == 3 else None)
    assert trajectory.finished and trajectory.image.tobytes() == toy_trajectory.image.tobytes()


def live_bytes():
    """Bytes of all tensors that are alive."""
    gc.collect()
    storages = [thing.untyped_storage() for thing in gc.get_objects() if _tensor(thing) and thing.device.type == "cpu"]
    found = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(found.values())


def _tensor(thing):
    return type(thing) in (torch.Tensor, torch.nn.Parameter)  # a compiler leaves others behind, which hold nothing


@pytest.fixture
def ctrl_c():
    """Python's own answer to Ctrl-C: whatever ran before in this process may have put another in its place."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before or signal.default_int_handler)


@pytest.mark.moderate
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("keep", [None, fnb.Keep(attention="all")], ids=["plain", "attention"])
def test_ctrl_c_while_the_model_computes_leaves_the_trajectory_so_far_and_nothing_else_in_memory(
    toy, toy_trajectory, at, keep
):
    def press(*_):
        pressed.append(1)
        if len(pressed) == at + 1:
            signal.raise_signal(signal.SIGINT)

    fnb.run(toy, toy_trajectory.recipe, keep=keep)
    before, pressed = live_bytes(), []
    hook = toy.pipe.transformer.single_transformer_blocks[0].register_forward_pre_hook(press)
    try:
        trajectory = fnb.run(toy, toy_trajectory.recipe, keep=keep, on_interrupt="return")
    finally:
        hook.remove()
    assert not trajectory.finished and len(trajectory) == at and len(trajectory.sigmas) == 5
    expected = toy.decode(toy_trajectory[at - 1].latents("clean")[None])[0]
    assert trajectory.image.tobytes() == expected.tobytes()
    assert live_bytes() - before == trajectory.nbytes
    del trajectory
    assert live_bytes() == before
    assert fnb.run(toy, toy_trajectory.recipe).image.tobytes() == toy_trajectory.image.tobytes()


@pytest.mark.moderate
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_no_tensors_of_an_exclusive_call_in_memory(toy_trajectory):
    # PyTorch runs no hooks after a KeyboardInterrupt, so the call does not release the lock by itself.
    toy = fnb.load(toy_pipeline())
    ExclusiveGroup(toy.pipe.transformer)
    pressed = []

    def press(*_):
        pressed.append(1)
        if len(pressed) == 2:
            signal.raise_signal(signal.SIGINT)

    fnb.run(toy, toy_trajectory.recipe)
    before = live_bytes()
    hook = toy.pipe.transformer.single_transformer_blocks[0].register_forward_pre_hook(press)
    trajectory = fnb.run(toy, toy_trajectory.recipe, on_interrupt="return")
    hook.remove()
    assert len(trajectory) == 1 and live_bytes() - before == trajectory.nbytes


@pytest.mark.moderate
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_a_stopped_trajectory_holds_its_own_memory_alone(toy, toy_trajectory, at):
    def run():
        return fnb.run(toy, toy_trajectory.recipe, on_step=lambda step: fnb.STOP if step.index == at else None)

    run()
    before = live_bytes()
    trajectory = run()
    assert live_bytes() - before == trajectory.nbytes
    del trajectory
    assert live_bytes() == before


def interrupt_at(index):
    def on_step(step):
        if step.index == index:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.moderate
def test_an_interrupt_ends_a_loop_of_runs_and_the_unfinished_trajectory_remains(toy, toy_trajectory):
    begun = []
    with pytest.raises(KeyboardInterrupt):
        for seed in range(3):
            begun.append(seed)
            fnb.run(toy, "a fox", seed=seed, steps=3, on_step=interrupt_at(1) if seed == 1 else None)
    assert begun == [0, 1]
    assert (fnb.last.recipe.seed, len(fnb.last), fnb.last.finished) == (1, 2, False)
    assert fnb.last.image is not None, "the picture of the clean estimate"
    assert fnb.run(toy, toy_trajectory.recipe).image.tobytes() == toy_trajectory.image.tobytes()


@pytest.mark.moderate
def test_an_interrupted_run_returns_on_request(toy):
    before = fnb.last
    trajectory = fnb.run(toy, "a fox", steps=2, on_step=interrupt_at(0), on_interrupt="return")
    assert len(trajectory) == 1 and not trajectory.finished and fnb.last is before
    with pytest.raises(fnb.InputError, match="on_interrupt='ignore'"):
        fnb.run(toy, "a fox", on_interrupt="ignore")


@pytest.mark.moderate
def test_a_run_that_on_step_stops_returns_and_is_no_interrupted_one(toy):
    before = fnb.last
    assert len(fnb.run(toy, "a fox", steps=3, on_step=lambda _: fnb.STOP)) == 1 and fnb.last is before


@pytest.mark.moderate
def test_an_interrupt_before_the_first_step_is_passed_on(toy):
    def interrupt(*_):
        raise KeyboardInterrupt

    hook = toy.pipe.transformer.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            fnb.run(toy, "a fox")
    finally:
        hook.remove()
    assert fnb.run(toy, "a fox", steps=1).finished


def test_an_error_in_on_step_is_the_users_own_and_leaves_the_pipeline_well(toy, toy_trajectory):
    with pytest.raises(ZeroDivisionError):
        fnb.run(toy, "a fox", on_step=lambda step: 1 / 0)
    assert fnb.run(toy, toy_trajectory.recipe).image.tobytes() == toy_trajectory.image.tobytes()


def test_on_step_sees_every_step_as_it_is_recorded(toy):
    seen = []
    trajectory = fnb.run(toy, "a fox", steps=3, on_step=seen.append)
    assert [step.index for step in seen] == [0, 1, 2]
    assert all(torch.equal(a.v, b.v) and torch.equal(a.x, b.x) for a, b in zip(seen, trajectory, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_velocity_that_is_no_number_stops_the_run(toy, bad):
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        return (output[0] * bad,) if len(calls) == 2 else output

    hook = toy.pipe.transformer.register_forward_hook(spoil)
    try:
        with pytest.raises(RunError, match=r"step 1 \(sigma 0.75, float32\)") as caught:
            fnb.run(toy, "a fox", steps=4)
    finally:
        hook.remove()
    assert len(calls) == 2 and caught.value.remedy
    assert fnb.run(toy, "a fox", steps=1).finished


@pytest.mark.moderate
@pytest.mark.parametrize(
    ("dtype", "advice"), [(torch.bfloat16, 'dtype="float32"'), (torch.float16, 'dtype="bfloat16" or dtype="float32"')]
)
@pytest.mark.filterwarnings("ignore:.*float16.*")
def test_a_velocity_that_is_no_number_names_step_dtype_and_what_to_try(dtype, advice):
    flux, calls = fnb.load(toy_pipeline().to(dtype)), []

    def spoil(module, args, output):
        calls.append(1)
        return (output[0] * float("nan"),) if len(calls) == 3 else output

    flux.pipe.transformer.register_forward_hook(spoil)
    with pytest.raises(RunError) as caught:
        fnb.run(flux, "a fox", steps=4)
    assert f"step 2 (sigma 0.5, {str(dtype).removeprefix('torch.')})" in caught.value.given
    assert advice in caught.value.remedy and len(calls) == 3
    assert fnb.run(flux, "a fox", steps=1).finished


@pytest.mark.moderate
def test_out_of_memory_is_reported_with_what_to_try(toy):
    def burst(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = toy.pipe.transformer.register_forward_pre_hook(burst)
    try:
        with pytest.raises(RunError, match="out of GPU memory"):
            fnb.run(toy, "a fox")
    finally:
        hook.remove()


@pytest.mark.parametrize("keep", [fnb.Keep.nothing(), fnb.Keep.last(), fnb.Keep(tensors=("v",))])
def test_keep_changes_the_record_and_not_the_picture(toy, toy_trajectory, keep):
    trajectory = fnb.run(toy, toy_trajectory.recipe, keep=keep)
    assert trajectory.image.tobytes() == toy_trajectory.image.tobytes()
    assert trajectory.nbytes == keep.nbytes(64, 64, steps=4)


def test_a_part_of_the_prompt_that_is_not_read_is_quoted(toy):
    long = "a red fox in the snow " * 9 + "holding a sign"
    with pytest.warns(fnb.PromptWarning, match="holding a sign") as caught:
        fnb.run(toy, long, steps=1)
    assert {str(w.message).split()[0] for w in caught} == {"CLIP", "T5"}
    assert [w.filename for w in caught] == [__file__] * 2


def test_the_progress_bar_settings_of_the_user_stay(toy):
    before = dict(toy.pipe._progress_bar_config)
    fnb.run(toy, "a fox", steps=1)
    assert toy.pipe._progress_bar_config == before


def test_a_trajectory_saves_and_opens(toy_trajectory, tmp_path):
    opened = fnb.open_trajectory(fnb.save(toy_trajectory, tmp_path / "trajectory"))
    assert opened.recipe == toy_trajectory.recipe and opened.preview == toy_trajectory.preview
    assert opened.image.tobytes() == toy_trajectory.image.tobytes()
    assert all(torch.equal(a.clean, b.clean) for a, b in zip(opened, toy_trajectory, strict=True))


@pytest.mark.parametrize("what", ["clean", "x", "v", "noise", "x_next"])
def test_a_film_shows_every_step(toy, toy_trajectory, what):
    film = fnb.film(toy, toy_trajectory, what=what)
    assert len(film) == 4 and film.sigmas == toy_trajectory.sigmas[:4] and film.by == "vae" and film.error == 0.0
    expected = toy.decode(toy_trajectory[2].latents(what)[None])[0]
    assert film[2].tobytes() == expected.tobytes()


@pytest.mark.moderate
def test_the_last_clean_frame_is_the_picture(toy, toy_trajectory):
    assert fnb.film(toy, toy_trajectory)[-1].tobytes() == toy_trajectory.image.tobytes()


def test_a_linear_film_needs_no_decoder_and_reports_its_error(toy, toy_trajectory):
    with counted(toy.pipe) as counts:
        film = fnb.film(toy, toy_trajectory, by="linear")
    assert counts["decoder"] == 0 and film[0].size == (64, 64) and film.error == toy.preview.error > 0


def test_a_film_takes_any_decoder_and_refuses_unknown_ones(toy, toy_trajectory):
    assert fnb.film(toy, toy_trajectory, by=toy.decode).by == "decode"
    with pytest.raises(InputError, match="Try by='linear'"):
        fnb.film(toy, toy_trajectory, by="lineal")
    with pytest.raises(InputError, match="what="):
        fnb.film(toy, toy_trajectory, what="y")


def test_steps_that_kept_nothing_are_not_in_the_film(toy, toy_trajectory):
    bare = dataclasses.replace(toy_trajectory[0], tensors={})
    assert fnb.film(toy, dataclasses.replace(toy_trajectory, steps=(bare, *toy_trajectory.steps[1:]))).steps == (
        1,
        2,
        3,
    )


def test_decoding_begins_before_the_trajectory_is_copied(toy, monkeypatch):
    from fluxnb.pipeline.flux import Flux
    from fluxnb.sampling import call_trace

    order, begin, write = [], Flux.begin_decoding, call_trace.trajectories_of
    monkeypatch.setattr(
        Flux, "begin_decoding", lambda *given, **more: (order.append("queued"), begin(*given, **more))[1]
    )
    monkeypatch.setattr(call_trace, "trajectories_of", lambda *given: (order.append("written"), write(*given))[1])
    fnb.run(toy, "a fox", steps=2)
    assert order == ["queued", "written"]


def test_what_is_no_picture_is_never_decoded(toy, monkeypatch):
    from fluxnb.pipeline.flux import Flux

    monkeypatch.setattr(Flux, "begin_decoding", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(toy.pipe.transformer, "forward", lambda hidden_states, **_: (hidden_states * float("nan"),))
    with pytest.raises(RunError, match="not finite"):
        fnb.run(toy, "a fox", steps=2)


def test_a_scheduler_that_is_not_supported_is_refused_before_the_prompt_is_encoded():
    import diffusers

    pipe = toy_pipeline()
    flux = fnb.load(pipe)
    pipe.scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    encoded = []
    pipe.text_encoder_2.register_forward_pre_hook(lambda *_: encoded.append(1))
    with pytest.raises(fnb.InputError, match="sampling with UniPCMultistepScheduler"):
        fnb.run(flux, "a fox")
    with pytest.raises(fnb.InputError, match="sampling with UniPCMultistepScheduler"):
        fnb.sweep(flux, prompts="a fox")
    assert not encoded


@pytest.mark.moderate
@pytest.mark.parametrize(
    "name", ["attention processor", "all weights edited", "VAE scaling factor", "VAE tiling", "scheduler shift"]
)
def test_the_recipe_of_a_run_after_a_change_has_the_revision_of_the_changed_pipeline(name):
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    flux = fnb.load(pipe)
    before = fnb.run(flux, "a fox", steps=1).recipe.revision
    CHANGES[name](pipe)
    after = fnb.run(flux, "a fox", steps=1).recipe.revision
    assert after != before and after.endswith(identity_of(pipe).digest)


def test_a_progress_bar_reads_no_step(toy, monkeypatch):
    """Reading a step makes a GPU wait for it; a bar only counts."""
    from fluxnb.sampling import call_trace

    def read(*_):
        raise AssertionError("a step was read")

    monkeypatch.setattr("fluxnb.progress.Progress.possible", True)
    counted = []
    monkeypatch.setattr("fluxnb.progress.Progress.update", lambda self, count=1: counted.append(count))
    monkeypatch.setattr(call_trace, "step_of", read)
    assert len(fnb.run(toy, "a fox", steps=3)) == 3 and counted == [1, 1, 1]
