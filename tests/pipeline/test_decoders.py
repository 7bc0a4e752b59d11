"""What stands in for the VAE: how it is made, kept, measured and refused."""

from __future__ import annotations

import json
import os

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError, StorageError
from fluxnb.pipeline import preview
from tests.conftest import toy_pipeline
from tests.plain_calls import counted


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and the one file that a fit would leave there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets" / "fluxnb" / "previews"


@pytest.fixture(scope="module")
def small():
    """A tiny decoder for toys, untrained."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    return AutoencoderTiny(
        latent_channels=16,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    ).eval()


def fits(monkeypatch):
    made = []
    real = preview.fit_preview
    monkeypatch.setattr(preview, "fit_preview", lambda pipe: made.append(1) or real(pipe))
    return made


def test_a_preview_is_fitted_once_and_read_back_to_the_last_bit(cache, monkeypatch):
    made = fits(monkeypatch)
    first = preview.preview_of(toy_pipeline())
    again = preview.preview_of(toy_pipeline())  # another process, as far as the memory of this one goes
    assert made == [1] and again == first and len(list(cache.iterdir())) == 1


@pytest.mark.moderate
def test_another_vae_has_a_preview_of_its_own(cache, monkeypatch):
    made = fits(monkeypatch)
    assert preview.preview_of(toy_pipeline()) != preview.preview_of(toy_pipeline(seed=5))
    assert made == [1, 1] and len(list(cache.iterdir())) == 2


@pytest.mark.moderate
@pytest.mark.parametrize(
    "damage",
    [
        lambda told: b"",
        lambda told: b"\xff\x00 no json",
        lambda told: b"[" * 100_000,
        lambda told: b"{}",
        lambda told: json.dumps({**told, "weight": told["weight"][:2]}).encode(),
        lambda told: json.dumps({**told, "bias": [0.1, "0.2", 0.3]}).encode(),
        lambda told: json.dumps({**told, "error": float("nan")}).encode(),
        lambda told: json.dumps(told).encode()[:-9],
    ],
)
def test_a_damaged_file_is_made_anew(cache, monkeypatch, damage):
    made = fits(monkeypatch)
    first = preview.preview_of(toy_pipeline())
    (file,) = cache.iterdir()
    file.write_bytes(damage(json.loads(file.read_bytes())))
    assert preview.preview_of(toy_pipeline()) == first and made == [1, 1]
    assert preview.preview_of(toy_pipeline()) == first and made == [1, 1]


@pytest.mark.moderate
def test_where_nothing_can_be_written_it_is_fitted_each_time(cache, monkeypatch):
    made = fits(monkeypatch)
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")  # refuses root, too, whom no right stops
    assert preview.preview_of(toy_pipeline()) == preview.preview_of(toy_pipeline()) and made == [1, 1]


def test_a_full_disk_is_no_error(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("pathlib.Path.replace", full)
    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert preview.preview_of(toy_pipeline()).error > 0 and not list(cache.iterdir())


@pytest.mark.moderate
def test_the_error_of_the_preview_is_its_distance_from_the_vae(toy):
    linear = toy.preview
    size = preview.samples().shape[-2:]
    assert linear.error == pytest.approx(preview.measure(toy.pipe, lambda z: linear.pictures(z, tuple(size))))
    assert preview.measure(toy.pipe, toy.decode) < 0.5 / 255  # the VAE itself, but for the rounding to bytes


def test_a_recorded_call_of_a_loaded_model_brings_its_preview(toy):
    fitted = toy.preview
    with fnb.recording(toy.pipe) as recorder:
        toy.pipe("a fox", num_inference_steps=1, height=32, width=32, max_sequence_length=48)
    assert recorder.trajectories[0].preview == fitted


@pytest.mark.moderate
def test_a_tiny_decoder_stands_in_for_the_vae_and_is_measured(toy, toy_trajectory, small):
    decode = fnb.tiny(toy, small)
    with counted(toy.pipe) as counts:
        film = fnb.film(toy, toy_trajectory, by=decode)
    assert counts["decoder"] == 0 and film[0].size == (64, 64) and len(film) == 4
    assert film.error == decode.error == pytest.approx(preview.measure(toy.pipe, decode)) and decode.error > 0.01
    assert "AutoencoderTiny" in film.by


@pytest.mark.moderate
def test_a_tiny_decoder_may_be_handed_in_or_be_a_folder(toy, toy_trajectory, small, tmp_path):
    small.save_pretrained(tmp_path / "taef1")
    handed, *read = (
        fnb.film(toy, toy_trajectory, by=by) for by in (small, tmp_path / "taef1", str(tmp_path / "taef1"))
    )
    assert all(film[3].tobytes() == handed[3].tobytes() and film.error == handed.error for film in read)


def test_frames_say_how_far_they_are_from_the_vae(toy, toy_trajectory, small):
    from fluxnb.visuals.frames import frames_of

    film = fnb.film(toy, toy_trajectory, by=small)
    assert frames_of(film).by.endswith(f"(rms {film.error:.2g} from the VAE)")
    assert frames_of(fnb.film(toy, toy_trajectory)).by == "the VAE"


def test_what_is_no_tiny_decoder_for_this_model_is_told(toy, tmp_path):
    from diffusers import AutoencoderTiny

    other = AutoencoderTiny(latent_channels=4, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    with pytest.raises(InputError, match="4 latent channels: this model's latents have 16"):
        fnb.tiny(toy, other)
    with pytest.raises(InputError, match="of type int"):
        fnb.tiny(toy, 3)
    with pytest.raises(StorageError, match="save_pretrained"):
        fnb.tiny(toy, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StorageError, match="save_pretrained"):
        fnb.tiny(toy, tmp_path)
