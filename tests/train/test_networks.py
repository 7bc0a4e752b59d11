"""The networks of the pipeline, and their files."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fluxnb.errors import InputError
from fluxnb.train.config import POCKET, TINY
from fluxnb.train.data.vocabulary import CLIP_USED, Tokenizers
from fluxnb.train.networks.build import build_autoencoder, build_transformer, whiten
from fluxnb.train.networks.denoiser import build_denoiser, load_denoiser, sample, save_denoiser


def test_whitening_does_not_change_pictures():
    torch.manual_seed(0)
    vae = build_autoencoder(TINY.sizes).eval()
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        whiten(vae, torch.randn(16), torch.rand(16) + 0.5)
        after = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    assert torch.allclose(before, after, atol=1e-4)


def test_an_untrained_teacher_predicts_zero():
    model = build_transformer(TINY.sizes)
    velocity = model(
        hidden_states=torch.randn(1, 64, 64),
        timestep=torch.ones(1),
        pooled_projections=torch.randn(1, 32),
        encoder_hidden_states=torch.randn(1, 48, 32),
        img_ids=torch.zeros(64, 3),
        txt_ids=torch.zeros(48, 3),
    ).sample
    assert velocity.abs().max() == 0


@pytest.mark.slow
def test_pooling_ignores_tokens_after_the_end_token():
    model = build_denoiser(TINY.sizes).eval()
    clip, t5 = Tokenizers()(["a red fox in the snow"])
    full, short = (model.encode(ids, t5)[0] for ids in (clip, clip[:, :CLIP_USED]))
    torch.testing.assert_close(full, short)


@pytest.mark.slow
@pytest.mark.parametrize("added", [1, 3])
def test_added_blocks_change_nothing_and_have_gradients(run, added):
    few = load_denoiser(TINY.sizes, run / "teacher.safetensors")
    sizes = dataclasses.replace(TINY.sizes, single_blocks=TINY.sizes.single_blocks + added)
    many = load_denoiser(sizes, run / "teacher.safetensors")
    pooled, sequence = few.encode(*Tokenizers()(["a cat"]))
    x = torch.randn(1, 12, few.transformer.config.in_channels, generator=torch.Generator().manual_seed(0))
    before, after = (each(x, torch.tensor([0.5]), pooled, sequence, (3, 4)) for each in (few, many))
    torch.testing.assert_close(after, before)
    after.square().mean().backward()
    last = [block.proj_out.weight.grad.abs().max() for block in many.transformer.single_transformer_blocks]
    assert len(last) == sizes.single_blocks and min(last) > 0


@pytest.mark.moderate
def test_sampling_is_deterministic():
    model = build_denoiser(TINY.sizes).eval()
    ids = torch.randint(3, 40, (2, 48))
    noise = torch.randn(2, 16, 4, 6)
    one, other = (sample(model, ids, ids, noise, 4) for _ in range(2))
    assert torch.equal(one, other) and one.shape == noise.shape


@pytest.mark.moderate
def test_weights_of_another_preset_are_refused_in_three_parts(tmp_path):
    save_denoiser(build_denoiser(TINY.sizes), tmp_path)
    with pytest.raises(InputError, match="--preset") as caught:
        load_denoiser(POCKET.sizes, tmp_path / "teacher.safetensors")
    assert caught.value.possible and caught.value.remedy
