from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxnb.errors import InputError
from fluxnb.records.latents import fit_linear, pack, token_grid, tokens_in, unpack


@given(st.integers(0, 2), st.integers(1, 5), st.integers(1, 5))
def test_packing_there_and_back_changes_no_number(batch, rows, columns):
    latents = torch.randn(*([2] * batch), 16, 2 * rows, 2 * columns)
    assert torch.equal(unpack(pack(latents), 16 * rows, 16 * columns), latents)


def test_packing_is_that_of_the_pipeline():
    from diffusers import FluxPipeline

    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 16, 8, 12))
    assert torch.equal(unpack(pack(latents), 64, 96), FluxPipeline._unpack_latents(pack(latents), 64, 96, 8))


def test_tokens_of_another_size_are_refused():
    with pytest.raises(InputError, match="8 x 8 = 64 tokens"):
        unpack(torch.zeros(63, 64), 128, 128)


def test_a_token_is_sixteen_pixels_square():
    assert token_grid(64, 128) == (4, 8)
    assert tokens_in(1024, 1024) == 4096


def test_the_fit_finds_a_linear_decoder_exactly():
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 16, generator=rng) / 20
    latents = [torch.randn(16, 8, 8, generator=rng) for _ in range(4)]
    pictures = [
        (torch.einsum("oc,chw->ohw", weight, z) + 0.5).repeat_interleave(8, 1).repeat_interleave(8, 2) for z in latents
    ]
    fitted = fit_linear(latents, pictures)
    assert fitted.error < 1e-4
    torch.testing.assert_close(torch.tensor(fitted.weight), weight, atol=1e-4, rtol=1e-3)


def test_a_preview_is_bytes_at_an_eighth_of_the_size():
    fitted = fit_linear([torch.randn(16, 8, 8)], [torch.rand(3, 64, 64)])
    shown = fitted(torch.randn(2, 16, 4, 6))
    assert shown.dtype == torch.uint8 and shown.shape == (2, 4, 6, 3)
