"""A store never answers with a picture of a pipeline that no longer exists."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fluxnb as fnb
from tests.conftest import toy_pipeline
from tests.pipeline.test_identity import CHANGES, own_processors, require_working_cache

GRID = {"prompts": "a red fox in the snow", "seeds": 3, "steps": 2, "height": 64, "width": 64}


def loaded():
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe, fnb.load(pipe)


def plain(pipe):
    generator = torch.Generator().manual_seed(3)
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 48}
    return pipe(GRID["prompts"], generator=generator, **options).images[0]


# Changes after which diffusers' own call raises, so that there is no picture to compare with.
WITHOUT_PICTURE = ("a text encoder less", "text encoder in bfloat16", "VAE in bfloat16")


@pytest.mark.moderate
@pytest.mark.parametrize("name", [name for name in CHANGES if name not in WITHOUT_PICTURE])
def test_a_sweep_after_a_change_gives_the_pictures_of_the_changed_pipeline(name, tmp_path):
    if name == "first block cache":
        require_working_cache()
    pipe, flux = loaded()
    (before,) = fnb.sweep(flux, **GRID, store=tmp_path)
    CHANGES[name](pipe)
    expected = np.asarray(plain(pipe))
    with pytest.warns(fnb.StoreWarning) if name == "attention processor" else no_warning():
        same_handle = fnb.sweep(flux, **GRID, store=tmp_path)[0]
        loaded_anew = fnb.sweep(fnb.load(pipe), **GRID, store=tmp_path)[0]
    assert same_handle.made
    for cell in (same_handle, loaded_anew):
        assert np.array_equal(np.asarray(cell.image), expected)
        assert cell.key != before.key


class no_warning:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.moderate
def test_an_unchanged_pipeline_is_answered_from_the_store_by_any_handle(tmp_path):
    pipe, flux = loaded()
    first = fnb.sweep(flux, **GRID, store=tmp_path)[0]
    assert first.made
    assert not fnb.sweep(flux, **GRID, store=tmp_path)[0].made
    assert not fnb.sweep(fnb.load(pipe), **GRID, store=tmp_path)[0].made


@pytest.mark.moderate
def test_a_change_that_is_undone_finds_the_stored_pictures_again(tmp_path):
    pipe, flux = loaded()
    fnb.sweep(flux, **GRID, store=tmp_path)
    pipe.scheduler.set_shift(3.0)
    assert fnb.sweep(flux, **GRID, store=tmp_path)[0].made
    pipe.scheduler.set_shift(1.0)
    assert not fnb.sweep(flux, **GRID, store=tmp_path)[0].made


def test_pictures_of_what_cannot_be_identified_are_not_stored(tmp_path):
    pipe, flux = loaded()
    own_processors(pipe)
    with pytest.warns(fnb.StoreWarning, match="Weaker"):
        cell = fnb.sweep(flux, **GRID, store=tmp_path)[0]
    assert cell.made and cell.path is None and not list(tmp_path.rglob("*.png"))


@pytest.mark.moderate
@pytest.mark.parametrize("state", ["added", "scaled", "disabled", "fused"])
def test_adapters_have_keys_of_their_own(state, tmp_path):
    peft = pytest.importorskip("peft")
    pipe, flux = loaded()
    before = fnb.sweep(flux, **GRID, store=tmp_path)[0]
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    pipe.transformer.add_adapter(config, "style")
    if state == "scaled":
        pipe.set_adapters(["style"], [0.3])
    elif state == "disabled":
        pipe.transformer.disable_adapters()
    elif state == "fused":
        pipe.transformer.fuse_lora()
    expected = np.asarray(plain(pipe))
    for handle in (flux, fnb.load(pipe)):
        cell = fnb.sweep(handle, **GRID, store=tmp_path)[0]
        assert np.array_equal(np.asarray(cell.image), expected) and cell.key != before.key
