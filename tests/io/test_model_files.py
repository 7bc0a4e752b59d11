"""FLUX.1 models by the names of their files."""

from __future__ import annotations

import pytest

from fluxnb.io.model_files import LONGEST_NAME, has_fewer_bits, is_vae_of_flux1, known_model

KNOWN = {
    "flux1-schnell.safetensors": "schnell",
    "FLUX1/flux1-dev-fp8.safetensors": "dev",
    "unet\\flux1-dev.sft": "dev",
    "flux1-schnell-Q8_0.gguf": "schnell",
    "flux1-dev-Q4_K_S.gguf": "dev",
    "flux1-dev-bnb-nf4-v2.safetensors": "dev",
    "svdq-int4_r32-flux.1-schnell.safetensors": "schnell",
    "black-forest-labs/FLUX.1-dev": "dev",
    "FLUX Schnell (Quantized)": "schnell",
    "flux-schnell": "schnell",
}
OTHERS = [
    "flux1-fill-dev.safetensors", "flux1-canny-dev.safetensors", "flux1-dev-kontext_fp8_scaled.safetensors",
    "flux1-krea-dev_fp8_scaled.safetensors", "flux2-dev.safetensors", "flux2_dev_fp8mixed.safetensors",
    "chroma-unlocked-v47.safetensors", "my-style-dev.safetensors", "flux1-dev-schnell-merge.safetensors",
    "Hyper-FLUX.1-dev-8steps-lora.safetensors", "sd_xl_base_1.0.safetensors", "", "dev/other.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_file_of_the_model_is_known(name):
    assert known_model(name) == KNOWN[name]


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_model_is_not(name):
    assert known_model(name) is None


def test_names_of_smaller_weights_are_found():
    lossy = [name for name in KNOWN if has_fewer_bits(name)]
    assert len(lossy) == 6


def test_a_name_longer_than_the_bound_is_not_known():
    assert (
        known_model("x/" * 240 + "flux1-dev.sft") == "dev"
        and known_model("x/" * LONGEST_NAME + "flux1-dev.sft") is None
    )
    assert is_vae_of_flux1("flux/ae.safetensors") and not is_vae_of_flux1("x/" * LONGEST_NAME + "ae.safetensors")


@pytest.mark.parametrize("name", ["ae.safetensors", "FLUX1\\ae.sft", "my_flux-vae-bf16.safetensors"])
def test_a_vae_of_flux1_is_known(name):
    assert is_vae_of_flux1(name) and not is_vae_of_flux1(name.replace("ae", "oa"))
