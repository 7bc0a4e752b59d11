"""What the maps hold, against attention written out in full; and that looking leaves no trace."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.sampling.attention import capture_attention, words_of
from tests.conftest import toy_pipeline
from tests.sampling.test_recording import call, untouched

LOOK = fnb.Keep(attention="all")


def hooks_in(module):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def shares_written_out(pipe, words, *, blocks="all", heads=None):
    """Attention of one evaluation as softmax(q k), from the projections themselves."""
    from diffusers.models.embeddings import apply_rotary_emb

    found = []

    def around(module, args, kwargs):
        text, picture = kwargs.get("encoder_hidden_states"), kwargs["hidden_states"]
        count = 48 if text is None else text.shape[1]
        split = lambda x: x.unflatten(-1, (module.heads, -1))  # noqa: E731
        q, k = module.norm_q(split(module.to_q(picture))), module.norm_k(split(module.to_k(picture)))
        if text is not None:
            q = torch.cat([module.norm_added_q(split(module.add_q_proj(text))), q], 1)
            k = torch.cat([module.norm_added_k(split(module.add_k_proj(text))), k], 1)
        q = apply_rotary_emb(q, kwargs["image_rotary_emb"], sequence_dim=1)
        k = apply_rotary_emb(k, kwargs["image_rotary_emb"], sequence_dim=1)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(q.shape[-1] ** 0.5).softmax(-1)[:, :, count:]
        per_word = [weights[..., list(places)].sum(-1) for places in words.places]
        found.append(torch.stack(per_word, -1))

    double, single = pipe.transformer.transformer_blocks, pipe.transformer.single_transformer_blocks
    chosen = {"all": [*double, *single], "double": double, "single": single}[blocks]
    handles = [block.attn.register_forward_pre_hook(around, with_kwargs=True) for block in chosen]
    try:
        with torch.no_grad():
            call(pipe, steps=1)
    finally:
        for handle in handles:
            handle.remove()
    maps = torch.stack(found)[:, 0]  # blocks, heads, tokens, words
    return (maps if heads is None else maps[:, list(heads)]).mean((0, 1))


@pytest.mark.parametrize("blocks", ["all", "double", "single"])
@pytest.mark.parametrize("heads", [None, (1,)])
def test_the_maps_are_the_attention_written_out(toy_pipe, blocks, heads):
    words = words_of(toy_pipe.tokenizer_2, "a red fox", 48)
    with fnb.recording(toy_pipe, keep=fnb.Keep(attention=blocks, heads=heads)) as recorder:
        call(toy_pipe, steps=1)
    (trajectory,) = recorder.trajectories
    expected = shares_written_out(toy_pipe, words, blocks=blocks, heads=heads)
    assert trajectory.words == words.words == ("a", "red", "fox")
    torch.testing.assert_close(trajectory[0].attention, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.moderate
def test_fused_projections_give_the_same_maps():
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with fnb.recording(pipe, keep=LOOK) as recorder:
        call(pipe, steps=1)
        pipe.transformer.fuse_qkv_projections()
        call(pipe, steps=1)
    apart, fused = recorder.trajectories
    torch.testing.assert_close(apart[0].attention, fused[0].attention, atol=1e-6, rtol=1e-4)


def test_a_place_gives_no_more_than_all_of_its_attention_to_the_words(toy):
    trajectory = fnb.run(toy, "a red fox in the snow holding a sign", steps=2, keep=LOOK)
    for step in trajectory:
        assert step.attention.shape == (16, 9) and step.attention.dtype == torch.float32
        assert bool((step.attention > 0).all()) and bool((step.attention.sum(1) < 1).all())


@pytest.mark.moderate
def test_single_blocks_chosen_by_index_are_those_after_the_double_ones(toy_pipe):
    with fnb.recording(toy_pipe, keep=fnb.Keep(attention=(1,))) as one:
        call(toy_pipe, steps=1)
    with fnb.recording(toy_pipe, keep=fnb.Keep(attention="single")) as other:
        call(toy_pipe, steps=1)
    assert torch.equal(one.trajectories[0][0].attention, other.trajectories[0][0].attention)


def test_attention_is_recorded_for_the_kept_steps_only(toy):
    trajectory = fnb.run(toy, "a fox", steps=4, keep=fnb.Keep(attention="all", steps=(0, -1)))
    assert ["attention" in step.tensors for step in trajectory] == [True, False, False, True]
    assert trajectory.attention("fox").shape == (2, 4, 4)


def test_attention_alone_may_be_kept(toy):
    keep = fnb.Keep(tensors=("attention",))
    trajectory = fnb.run(toy, "a red fox", steps=2, keep=keep)
    assert [sorted(step.tensors) for step in trajectory] == [["attention"]] * 2
    assert trajectory.nbytes == keep.nbytes(64, 64, steps=2, words=3)


def test_a_word_in_letters_counts_all_of_them(toy):
    trajectory = fnb.run(toy, "a zebra", steps=1, keep=LOOK)
    words = words_of(toy.pipe.tokenizer_2, "a zebra", 48)
    assert words.words == ("a", "zebra") and len(words.places[1]) == 6  # the mark of a word's begin, and five letters
    assert trajectory.attention("Zebra").shape == (1, 4, 4)


def test_the_same_word_twice_is_two_words_and_is_selected_as_one(toy):
    trajectory = fnb.run(toy, "a fox, a cat", steps=1, keep=LOOK)
    assert trajectory.words == ("a", "fox", "a", "cat")
    both = trajectory[0].attention[:, 0] + trajectory[0].attention[:, 2]
    torch.testing.assert_close(trajectory.attention("a")[0].flatten(), both)
    assert torch.equal(trajectory.attention(-1)[0].flatten(), trajectory[0].attention[:, 3])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ('"a fox," says the cat.', ("a", "fox", "says", "the", "cat")),
        ("狐狸 🦊 fox", ("狐狸", "🦊", "fox")),
        ("  a\n\tfox ", ("a", "fox")),
        ("-- !?", ()),
        ("a fox " * 60, ("a", "fox") * 23 + ("a",)),  # T5 reads 48 tokens, the last of which ends the text
    ],
)
def test_the_words_are_those_that_the_encoder_reads(toy_pipe, prompt, words):
    assert words_of(toy_pipe.tokenizer_2, prompt, 48).words == words


@pytest.mark.moderate
def test_a_batch_has_the_words_and_maps_of_each_of_its_prompts(toy_pipe):
    prompts = ["a red fox", "a cat"]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1, 1)]
    with fnb.recording(toy_pipe, keep=LOOK) as recorder:
        call(toy_pipe, prompt=prompts, num_images_per_prompt=2, generator=generators)
        call(toy_pipe, prompt="a cat", seed=1)
    *batch, alone = recorder.trajectories
    assert [trajectory.words for trajectory in batch] == [("a", "red", "fox")] * 2 + [("a", "cat")] * 2
    for mine, single in zip(batch[2], alone, strict=True):
        torch.testing.assert_close(mine.attention, single.attention, atol=1e-5, rtol=1e-4)
    assert batch[0][0].attention.data_ptr() != batch[1][0].attention.data_ptr()


def test_under_true_cfg_the_evaluation_with_the_prompt_is_recorded(toy_guided):
    pipe = toy_guided.pipe
    pipe.set_progress_bar_config(disable=True)
    with fnb.recording(pipe, keep=LOOK) as recorder:
        call(pipe, steps=1)
        call(pipe, steps=1, negative_prompt="the snow on a blue sign", true_cfg_scale=3.0)
    plain, guided = recorder.trajectories
    assert torch.equal(plain[0].attention, guided[0].attention) and not torch.equal(plain[0].v, guided[0].v)


def test_the_prompt_that_t5_reads_is_the_one_that_counts(toy_pipe):
    with fnb.recording(toy_pipe, keep=LOOK) as recorder:
        call(toy_pipe, prompt="a fox", prompt_2="a blue cat", steps=1)
    assert recorder.trajectories[0].words == ("a", "blue", "cat")


def test_a_call_that_is_given_embeddings_has_no_words_and_is_recorded_all_the_same(toy_pipe):
    embeds, pooled, _ = toy_pipe.encode_prompt("a fox", None, max_sequence_length=48)
    with fnb.recording(toy_pipe, keep=LOOK) as recorder:
        call(toy_pipe, prompt=None, prompt_embeds=embeds, pooled_prompt_embeds=pooled)
    (trajectory,) = recorder.trajectories
    assert trajectory.words == () and trajectory[0].kept and len(trajectory) == 3
    with pytest.raises(InputError, match="no prompt"):
        trajectory.attention("fox")


def test_image_to_image_is_recorded_from_its_first_step(toy_pipe):
    from diffusers import FluxImg2ImgPipeline

    pipe = FluxImg2ImgPipeline(**toy_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    keep = fnb.Keep(attention="all", steps=(0, -1))
    with fnb.recording(pipe, keep=keep) as recorder:
        call(pipe, steps=6, image=torch.full((1, 3, 32, 48), 0.5), strength=0.5)
    assert ["attention" in step.tensors for step in recorder.trajectories[0]] == [True, False, True]


@pytest.mark.moderate
def test_attention_of_a_model_with_an_ip_adapter_is_recorded(toy_pipe):
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with fnb.recording(pipe, keep=LOOK) as bare:
        call(pipe, steps=1)
    torch.manual_seed(0)
    module, given = pipe.transformer.transformer_blocks[0].attn, [torch.randn(1, 4, 8)]
    module.set_processor(FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=8))
    with fnb.recording(pipe, keep=fnb.Keep(attention="double")) as recorder:
        call(pipe, steps=1, joint_attention_kwargs={"ip_hidden_states": given})
    with fnb.recording(pipe, keep=LOOK):
        seen = call(pipe, steps=1, joint_attention_kwargs={"ip_hidden_states": given})
    assert torch.equal(seen, call(pipe, steps=1, joint_attention_kwargs={"ip_hidden_states": given}))
    # The adapter comes in after the first block's attention, which is therefore the same.
    assert recorder.trajectories[0][0].attention.shape == bare.trajectories[0][0].attention.shape


@pytest.mark.moderate
def test_every_hook_is_gone_afterwards_also_on_error(toy_pipe):
    before, during = hooks_in(toy_pipe.transformer), []

    def note(pipe, *_):
        during.append(hooks_in(pipe.transformer))
        return {}

    with fnb.recording(toy_pipe, keep=LOOK):
        call(toy_pipe, callback_on_step_end=note)
        assert hooks_in(toy_pipe.transformer) == before
    assert min(during) > before

    def fail(*_):
        raise RuntimeError("the cable")

    hook = toy_pipe.transformer.single_transformer_blocks[0].register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="the cable"), fnb.recording(toy_pipe, keep=LOOK):
            call(toy_pipe)
    finally:
        hook.remove()
    assert hooks_in(toy_pipe.transformer) == before and untouched(toy_pipe)


def test_the_call_after_an_interrupted_one_is_recorded_from_its_first_step(toy_pipe):
    broken = []

    def fail(*_):
        if not broken:
            broken.append(1)
            raise RuntimeError("the cable")

    hook = toy_pipe.transformer.single_transformer_blocks[0].register_forward_pre_hook(fail)
    try:
        with fnb.recording(toy_pipe, keep=LOOK) as recorder:
            with pytest.raises(RuntimeError, match="the cable"):
                call(toy_pipe)
            call(toy_pipe, steps=2)
    finally:
        hook.remove()
    assert ["attention" in step.tensors for step in recorder.trajectories[-1]] == [True, True]


@pytest.mark.moderate
def test_nested_blocks_record_independently(toy_pipe):
    keeps = fnb.Keep(attention="double"), fnb.Keep(attention="single")
    with fnb.recording(toy_pipe, keep=keeps[0]) as outer, fnb.recording(toy_pipe, keep=keeps[1]) as inner:
        call(toy_pipe, steps=2)
    for keep, seen in zip(keeps, (outer, inner), strict=True):
        with fnb.recording(toy_pipe, keep=keep) as alone:
            call(toy_pipe, steps=2)
        assert torch.equal(seen.trajectories[0][1].attention, alone.trajectories[0][1].attention)


def test_a_sweep_keeps_the_maps_of_evaluations_that_its_cells_share(toy):
    grid = fnb.sweep(toy, prompts=["a red fox"], seeds=[3], steps=[1, 2], keep=LOOK)
    alone = fnb.run(toy, "a red fox", seed=3, steps=2, keep=LOOK)
    assert [cell.trajectory.words for cell in grid] == [("a", "red", "fox")] * 2
    assert torch.equal(grid[0].trajectory[0].attention, alone[0].attention)
    assert torch.equal(grid[1].trajectory[1].attention, alone[1].attention)


def test_on_step_sees_the_maps_as_they_come(toy):
    seen = []
    trajectory = fnb.run(toy, "a fox", steps=2, keep=LOOK, on_step=lambda step: seen.append(step.attention))
    assert all(torch.equal(mine, step.attention) for mine, step in zip(seen, trajectory, strict=True))


def test_maps_and_words_are_saved_and_opened(toy, tmp_path):
    trajectory = fnb.run(toy, "a red fox", steps=2, keep=LOOK)
    opened = fnb.open_trajectory(fnb.save(trajectory, tmp_path / "trajectory"))
    assert opened.words == trajectory.words
    assert all(torch.equal(a.attention, b.attention) for a, b in zip(opened, trajectory, strict=True))
    damaged = dataclasses.replace(trajectory, words=("a",))
    with pytest.raises(fnb.StorageError, match="1 words"):
        fnb.open_trajectory(fnb.save(damaged, tmp_path / "damaged"))


class Other:
    def __call__(self, attn, hidden_states, *args, **kwargs):
        return hidden_states


@pytest.mark.moderate
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda pipe: setattr(pipe, "transformer", torch.compile(pipe.transformer)), "compiled"),
        (lambda pipe: pipe.transformer.compile_repeated_blocks(), "compiled"),
        (lambda pipe: setattr(pipe.transformer, "_parallel_config", object()), "parallel"),
        (lambda pipe: pipe.transformer.transformer_blocks[0].attn.set_processor(Other()), "computed by Other"),
    ],
)
def test_a_model_whose_attention_cannot_be_recorded_is_refused_before_it_runs(change, says):
    pipe = toy_pipeline()
    change(pipe)
    with pytest.raises(InputError, match=says), fnb.recording(pipe, keep=LOOK):
        raise AssertionError("nothing runs")
    assert untouched(pipe)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attention": "first"}, "known are 'all', 'double' and 'single'"),
        ({"attention": (0, 2)}, "blocks 0 to 1, 1 of them double"),
        ({"attention": ()}, "blocks 0 to 1"),
        ({"attention": (True,)}, "indices"),
        ({"attention": "all", "heads": (2,)}, "heads 0 to 1"),
    ],
)
def test_blocks_and_heads_that_do_not_exist_are_refused(toy_pipe, given, says):
    with pytest.raises(InputError, match=says), fnb.recording(toy_pipe, keep=fnb.Keep(**given)):
        raise AssertionError("nothing runs")


def test_the_error_for_an_unknown_word_lists_the_words_of_the_trajectory(toy):
    trajectory = fnb.run(toy, "a red fox", steps=1, keep=LOOK)
    with pytest.raises(InputError, match="'a', 'red' and 'fox'"):
        trajectory.attention("cat")
    with pytest.raises(InputError, match="known are"):
        trajectory.attention(3)
    with pytest.raises(InputError, match=r'Keep\(attention="all"\)'):
        fnb.run(toy, "a fox", steps=1).attention("fox")
    with pytest.raises(InputError, match=r'Keep\(attention="all"\)'):
        _ = fnb.run(toy, "a fox", steps=1)[0].attention


def test_more_words_than_a_head_has_numbers_are_all_recorded(toy_pipe):
    prompt = " ".join(["fox", "cat", "dog", "snow", "red"] * 5)  # 25 words, and heads of 16 numbers
    with fnb.recording(toy_pipe, keep=LOOK) as recorder:
        call(toy_pipe, prompt=prompt, steps=1)
    maps = recorder.trajectories[0][0].attention
    assert maps.shape == (6, 25) and bool((maps > 0).all())


def test_another_kind_of_transformer_is_refused():
    with pytest.raises(InputError, match="FluxTransformer2DModel"), capture_attention(torch.nn.Identity()):
        raise AssertionError("nothing runs")


def test_attention_is_captured_outside_of_a_recording(toy_pipe):
    with capture_attention(toy_pipe.transformer) as attention:
        attention.aim([words_of(toy_pipe.tokenizer_2, "a red fox", 48)])
        call(toy_pipe, steps=1)
        assert attention.take().shape == (1, 6, 3) and attention.take() is None
