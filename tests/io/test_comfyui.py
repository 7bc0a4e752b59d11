"""ComfyUI graphs, checked against the inputs, types, ranges and outputs of its nodes."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fluxnb.io.comfyui import comfy_graph
from fluxnb.io.png import encode_png
from fluxnb.records.recipe import Recipe
from tests.records.test_recipe import words

TEXT, SIDE = str, (16, 16384)
# node: inputs (a type's name is a link to an output of that type, a tuple a range, a set a choice), output
NODES = {
    "UNETLoader": ({"unet_name": TEXT, "weight_dtype": {"default", "fp8_e4m3fn", "fp8_e5m2"}}, "MODEL"),
    "DualCLIPLoader": ({"clip_name1": TEXT, "clip_name2": TEXT, "type": {"sdxl", "sd3", "flux"}}, "CLIP"),
    "VAELoader": ({"vae_name": TEXT}, "VAE"),
    "CLIPTextEncode": ({"text": TEXT, "clip": "CLIP"}, "CONDITIONING"),
    "ConditioningZeroOut": ({"conditioning": "CONDITIONING"}, "CONDITIONING"),
    "FluxGuidance": ({"conditioning": "CONDITIONING", "guidance": (0.0, 100.0)}, "CONDITIONING"),
    "EmptySD3LatentImage": ({"width": SIDE, "height": SIDE, "batch_size": (1, 4096)}, "LATENT"),
    "ModelSamplingFlux": (
        {"model": "MODEL", "max_shift": (0.0, 100.0), "base_shift": (0.0, 100.0), "width": SIDE, "height": SIDE},
        "MODEL",
    ),
    "KSampler": (
        {
            "seed": (0, 2**64 - 1),
            "steps": (1, 10000),
            "cfg": (0.0, 100.0),
            "sampler_name": {"euler", "heun", "dpmpp_2m"},
            "scheduler": {"simple", "normal", "karras", "beta"},
            "denoise": (0.0, 1.0),
            "model": "MODEL",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
        },
        "LATENT",
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, "IMAGE"),
    "SaveImage": ({"filename_prefix": TEXT, "images": "IMAGE"}, None),
}


def check(graph):
    for node in graph.values():
        takes, _ = NODES[node["class_type"]]
        assert node["inputs"].keys() == takes.keys()
        for name, value in node["inputs"].items():
            kind = takes[name]
            if kind is TEXT:
                assert isinstance(value, str)
            elif isinstance(kind, set):
                assert value in kind
            elif isinstance(kind, tuple):
                assert type(value) is type(kind[0]) and kind[0] <= value <= kind[1]
            else:
                giver, slot = value
                assert slot == 0 and NODES[graph[giver]["class_type"]][1] == kind
    assert sum(NODES[node["class_type"]][1] is None for node in graph.values()) == 1


def read_by_comfy(text: str) -> str:
    """A prompt as ComfyUI parses it: escaped brackets are letters, others would be weights."""
    marked = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
    assert "(" not in marked and ")" not in marked
    return marked.replace("\0\1", ")").replace("\0\2", "(")


comfy_recipes = st.builds(
    Recipe,
    prompt=words.filter(lambda text: "\0" not in text and "embedding:" not in text.lower()),
    seed=st.integers(0, 2**64 - 1),
    steps=st.integers(1, 50),
    height=st.integers(1, 128).map(lambda n: 16 * n),
    width=st.integers(1, 128).map(lambda n: 16 * n),
    model=st.sampled_from(["schnell", "black-forest-labs/FLUX.1-dev", "dev"]),
    guidance=st.none() | st.floats(0, 100),
)


@given(comfy_recipes)
def test_a_graph_has_valid_inputs_and_the_values_of_the_recipe(recipe):
    graph = comfy_graph(recipe)
    check(graph)
    sampler, size = graph["31"]["inputs"], graph["27"]["inputs"]
    assert (sampler["seed"], sampler["steps"]) == (recipe.seed, recipe.steps)
    assert (size["height"], size["width"]) == (recipe.height, recipe.width)
    assert read_by_comfy(graph["6"]["inputs"]["text"]) == recipe.prompt


def test_embedded_guidance_has_a_node():
    graph = comfy_graph(Recipe(prompt="a", model="dev", height=64, width=64, guidance=2.0))
    assert graph["26"]["inputs"]["guidance"] == 2.0 and graph["31"]["inputs"]["positive"] == ["26", 0]


VALID = Recipe(prompt="a fox", model="schnell", height=64, width=64)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "pocket"},
        {"model": None},
        {"sampler": "renoise"},
        {"sigmas": (1.0, 0.3)},
        {"shift": 3.0},
        {"negative": "blur"},
        {"height": None},
        {"prompt": "a Embedding:style fox"},
    ],
)
def test_a_recipe_that_comfyui_cannot_repeat_has_no_graph(changes):
    assert comfy_graph(VALID) is not None and comfy_graph(VALID.replace(**changes)) is None


def test_a_png_holds_the_graph_as_ascii_in_the_prompt_chunk():
    recipe = VALID.replace(prompt="狐 (雪)")
    with Image.open(io.BytesIO(encode_png(Image.new("RGB", (4, 4)), recipe))) as opened:
        assert opened.text["prompt"].isascii() and json.loads(opened.text["prompt"]) == comfy_graph(recipe)
    with Image.open(io.BytesIO(encode_png(Image.new("RGB", (4, 4)), recipe.replace(model="pocket")))) as opened:
        assert "prompt" not in opened.text
