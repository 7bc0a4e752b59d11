"""Looking changes nothing: the bytes of a picture with and without recording and attention, in every way to make it."""

from __future__ import annotations

import pytest
import torch

import fluxnb as fnb
from tests.conftest import toy_pipeline
from tests.offload import group_offload
from tests.sampling.test_recording import call

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KEEPS = {
    "recorded": None,
    "nothing kept": fnb.Keep.nothing(),
    "attention": fnb.Keep(attention="all"),
    "attention of some blocks, heads and steps": fnb.Keep(attention=(1,), heads=(0,), steps=(0,)),
}


def kin(name):
    def change(pipe):
        import diffusers

        made = getattr(diffusers, name)(**pipe.components)
        made.set_progress_bar_config(disable=True)
        return made

    return change


def group(kind):
    def change(pipe):
        cpu = torch.device("cpu")
        with group_offload():
            pipe.enable_group_offload(cpu, cpu, offload_type=kind, num_blocks_per_group=1)
        return pipe

    return change


def fused(pipe):
    pipe.transformer.fuse_qkv_projections()
    return pipe


def half_a_picture():
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., :24] = 1
    return {"image": torch.full((1, 3, 32, 48), 0.5), "mask_image": mask, "strength": 0.8}


PROMPTS = ["a red fox", "a cat in the snow"]
WAYS = {
    "one": (lambda pipe: pipe, {}),
    "a batch": (lambda pipe: pipe, {"prompt": PROMPTS, "num_images_per_prompt": 2, "generator": None}),
    "true CFG": (lambda pipe: pipe, {"negative_prompt": "snow", "true_cfg_scale": 3.0}),
    "true CFG, a batch": (
        lambda pipe: pipe,
        {"prompt": PROMPTS, "negative_prompt": ["snow", "a sign"], "true_cfg_scale": 3.0, "generator": None},
    ),
    "image to image": (kin("FluxImg2ImgPipeline"), {"image": torch.full((1, 3, 32, 48), 0.5), "strength": 0.6}),
    "inpainting": (kin("FluxInpaintPipeline"), half_a_picture()),
    "fused projections": (fused, {}),
    "group offload by layers": (group("leaf_level"), {}),
    "group offload by blocks": (group("block_level"), {"negative_prompt": "snow", "true_cfg_scale": 3.0}),
}


def same(one, other):
    return torch.equal(*(x.contiguous().view(torch.uint8) for x in (one, other)))


@pytest.mark.moderate
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.filterwarnings("ignore:.*float16.*")
def test_looking_changes_no_byte(dtype, way):
    change, options = WAYS[way]
    pipe = toy_pipeline().to(dtype)
    pipe.set_progress_bar_config(disable=True)
    pipe = change(pipe)

    def once():
        given = dict(options)
        if "generator" in given:
            count = len(PROMPTS) * given.get("num_images_per_prompt", 1)
            given["generator"] = [torch.Generator().manual_seed(seed) for seed in range(count)]
        return call(pipe, **given)

    bare = once()
    for name, keep in KEEPS.items():
        with fnb.recording(pipe, keep=keep) as recorder:
            seen = once()
        assert same(bare, seen), name
        assert len(recorder.trajectories) == len(bare) and all(
            trajectory.finished for trajectory in recorder.trajectories
        )
        looked = keep is not None and keep.attention is not None
        assert bool(recorder.trajectories[-1].words) == looked
    assert same(bare, once())


@pytest.mark.moderate
@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
def test_pocket_gives_the_bytes_of_the_plain_call_whatever_is_kept(keep):
    flux = fnb.load("pocket-base")
    flux.pipe.set_progress_bar_config(disable=True)
    trajectory = fnb.run(flux, "a fox in the snow", seed=2, steps=2, keep=keep)
    plain = flux.pipe(
        "a fox in the snow",
        negative_prompt="",
        true_cfg_scale=trajectory.recipe.guidance,
        height=trajectory.recipe.height,
        width=trajectory.recipe.width,
        num_inference_steps=2,
        max_sequence_length=trajectory.recipe.max_sequence_length,
        generator=torch.Generator().manual_seed(2),
    ).images[0]
    assert trajectory.image.tobytes() == plain.tobytes()
