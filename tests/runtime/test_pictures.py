"""Pictures that are converted on their device have the bytes of diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from fluxnb.runtime import pictures
from fluxnb.runtime.pictures import convert_on_device


@pytest.fixture
def processor(monkeypatch):
    """A processor that takes every tensor for one on a GPU."""
    monkeypatch.setattr(pictures, "is_on_gpu", torch.is_tensor)
    made = VaeImageProcessor(vae_scale_factor=16)
    convert_on_device(made)
    return made


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """Every finite number of a 16-bit type, as a picture."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return torch.where(numbers.isfinite(), numbers, 0).expand(3, -1).reshape(1, 3, 256, 256)


@pytest.mark.parametrize("denormalize", [None, [False]], ids=["from -1 to 1", "from 0 to 1"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_bytes_are_those_of_diffusers(processor, dtype, denormalize):
    image = every_number(torch.bfloat16).float() if dtype is torch.float32 else every_number(dtype)
    image = image.clamp(0, 1) if denormalize else image
    (ours,) = processor.postprocess(image, do_denormalize=denormalize)
    (theirs,) = VaeImageProcessor(vae_scale_factor=16).postprocess(image, do_denormalize=denormalize)
    assert ours.mode == theirs.mode and ours.tobytes() == theirs.tobytes()


def test_a_batch_has_one_picture_each(processor):
    found = processor.postprocess(torch.randn(3, 3, 8, 16, generator=torch.Generator().manual_seed(0)))
    assert [each.size for each in found] == [(16, 8)] * 3


@pytest.mark.parametrize("kind", ["np", "pt", "latent"])
def test_other_types_of_output_are_those_of_diffusers(processor, kind):
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = VaeImageProcessor(vae_scale_factor=16).postprocess(image, kind)
    assert np.array_equal(processor.postprocess(image, kind), theirs)


def test_a_grey_picture_is_converted_by_diffusers(processor):
    (found,) = processor.postprocess(torch.zeros(1, 1, 8, 8))
    assert found.mode == "L"


def test_a_processor_that_was_converted_before_stays_as_it_is(processor):
    kind = type(processor)
    convert_on_device(processor)
    assert type(processor) is kind and kind.__name__ == "VaeImageProcessor"


def test_other_processors_keep_their_class(processor):
    assert type(VaeImageProcessor()) is VaeImageProcessor and isinstance(processor, VaeImageProcessor)
