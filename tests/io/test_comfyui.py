"""ComfyUI graphs, checked against the inputs, types, ranges and outputs of its nodes."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fluxnb.errors import InputError
from fluxnb.families.defaults import DEFAULTS, ModelDefaults
from fluxnb.io.comfyui import MODELS, comfy_workflow, estimated_tokens, workflow_or_none
from fluxnb.io.png import encode_png
from fluxnb.records.recipe import Recipe
from tests.records.test_recipe import words

TEXT, SIDE = str, (16, 16384)
# node: inputs (a type's name is a link to an output of that type, a tuple a range, a set a choice), outputs
NODES = {
    "UNETLoader": ({"unet_name": TEXT, "weight_dtype": {"default", "fp8_e4m3fn", "fp8_e5m2"}}, "MODEL"),
    "DualCLIPLoader": ({"clip_name1": TEXT, "clip_name2": TEXT, "type": {"sdxl", "sd3", "flux"}}, "CLIP"),
    "VAELoader": ({"vae_name": TEXT}, "VAE"),
    "FluxnbLoader": (
        {
            "model_name": {"pocket", "pocket-base"},
            "max_sequence_length": (1, 512),
            "dtype": {"float32", "bfloat16", "float16"},
            "revision": TEXT,
        },
        ("MODEL", "CLIP", "VAE"),
    ),
    "T5TokenizerOptions": ({"clip": "CLIP", "min_padding": (0, 10000), "min_length": (0, 10000)}, "CLIP"),
    "ModelSamplingAuraFlow": ({"model": "MODEL", "shift": (0.0, 100.0)}, "MODEL"),
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
                source, slot = value
                outputs = NODES[graph[source]["class_type"]][1]
                assert ((outputs,) if isinstance(outputs, str) else outputs)[slot] == kind
    assert sum(NODES[node["class_type"]][1] is None for node in graph.values()) == 1


def read_by_comfy(text: str) -> str:
    """A prompt as ComfyUI parses it: escaped brackets are letters, others would be weights."""
    marked = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
    assert "(" not in marked and ")" not in marked
    return marked.replace("\0\1", ")").replace("\0\2", "(")


def with_guidance(recipe: Recipe, guidance: float | None) -> Recipe:
    return recipe.replace(guidance=guidance) if MODELS[recipe.model].guided_by else recipe


comfy_recipes = st.builds(
    with_guidance,
    st.builds(
        Recipe,
        prompt=words.filter(lambda text: "\0" not in text and "embedding:" not in text.lower()),
        seed=st.integers(0, 2**64 - 1),
        steps=st.integers(1, 50),
        height=st.integers(1, 128).map(lambda n: 16 * n),
        width=st.integers(1, 128).map(lambda n: 16 * n),
        model=st.sampled_from(list(MODELS)),
        shift=st.none() | st.floats(0.01, 100),
    ),
    st.none() | st.floats(0, 100),
)


@pytest.mark.moderate
@given(comfy_recipes)
def test_a_graph_has_valid_inputs_and_the_values_of_the_recipe(recipe):
    graph = comfy_workflow(recipe, browser=False)
    check(graph)
    sampler, size = graph["31"]["inputs"], graph["27"]["inputs"]
    assert (sampler["seed"], sampler["steps"]) == (recipe.seed, recipe.steps)
    assert (size["height"], size["width"]) == (recipe.height, recipe.width)
    assert read_by_comfy(graph["6"]["inputs"]["text"]) == recipe.prompt
    assert recipe.shift is None or graph["30"]["inputs"]["shift"] == recipe.shift
    if recipe.guidance is not None:
        assert recipe.guidance in (sampler["cfg"], graph.get("26", {"inputs": {}})["inputs"].get("guidance"))


def test_embedded_guidance_has_a_node():
    graph = comfy_workflow(Recipe(prompt="a", model="dev", height=64, width=64, guidance=2.0))
    assert graph["26"]["inputs"]["guidance"] == 2.0 and graph["31"]["inputs"]["positive"] == ["26", 0]


VALID = Recipe(prompt="a fox", model="schnell", height=64, width=64)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "FLUX.2-klein"},
        {"model": None},
        {"sampler": "renoise"},
        {"sigmas": (1.0, 0.3)},
        {"negative": "blur"},
        {"guidance": 2.0},
        {"height": None},
        {"prompt": "a Embedding:style fox"},
        {"prompt": "a \0 fox"},
        {"prompt": "a fox " * 100},
        {"revision": "741f7c3ce8b3+0123456789ab"},
    ],
)
@pytest.mark.parametrize("browser", [True, False])
def test_a_recipe_that_comfyui_cannot_repeat_has_no_graph(changes, browser):
    assert workflow_or_none(VALID) is not None and workflow_or_none(VALID.replace(**changes)) is None
    with pytest.raises(InputError) as caught:
        comfy_workflow(VALID.replace(**changes), browser=browser)
    assert caught.value.possible and caught.value.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "a {red|blue} fox"},
        {"prompt": "either|or"},
        {"prompt": "see https://example.com"},
        {"prompt": "a /* not */ fox"},
        {"prompt": "two\r\nlines"},
        {"prompt": "ends with \\"},
        {"seed": 2**53},
        {"shift": 1.234},
        {"model": "dev", "guidance": 3.14},
    ],
)
def test_what_the_browser_changes_has_a_graph_for_scripts_only(changes):
    recipe = VALID.replace(**changes)
    assert workflow_or_none(recipe) is None and comfy_workflow(recipe, browser=False)
    with pytest.raises(InputError, match=r"fnb\.comfy_workflow\(recipe, browser=False\)"):
        comfy_workflow(recipe)


def test_the_text_length_of_a_recipe_has_a_node_where_comfyui_pads_to_another():
    assert "41" not in comfy_workflow(VALID)
    for recipe in (VALID.replace(max_sequence_length=512), VALID.replace(model="dev")):
        graph = comfy_workflow(recipe)
        assert graph["41"]["inputs"]["min_length"] == 512 and graph["6"]["inputs"]["clip"] == ["41", 0]
    assert "41" not in comfy_workflow(VALID.replace(model="dev", max_sequence_length=256))


def test_pocket_has_a_graph_with_the_loader_of_the_node_pack():
    graph = comfy_workflow(VALID.replace(model="pocket-base", negative="blur", guidance=1.5, dtype="bfloat16"))
    assert graph["38"] == {
        "class_type": "FluxnbLoader",
        "inputs": {"model_name": "pocket-base", "max_sequence_length": 48, "dtype": "bfloat16", "revision": ""},
    }
    assert graph["42"]["inputs"]["text"] == "blur" and graph["31"]["inputs"]["cfg"] == 1.5


@pytest.mark.parametrize("name", sorted(DEFAULTS.keys() & MODELS.keys()))
def test_the_values_that_a_recipe_leaves_out_are_the_defaults_of_the_model(name):
    expected = ModelDefaults(**DEFAULTS[name])
    given = MODELS[name]
    assert (given.tokens, given.guidance) == (expected.max_sequence_length, expected.guidance)
    assert (given.guided_by or "none") == expected.guidance_kind


def test_the_estimate_of_tokens_is_high_for_english():
    assert estimated_tokens("A photograph of a red fox in the snow, golden hour, 85mm lens") >= 17


@pytest.mark.parametrize("model", ["schnell", "pocket"])
def test_a_png_holds_the_graph_as_ascii_in_the_prompt_chunk(model):
    recipe = VALID.replace(prompt="狐 (雪)", model=model)
    with Image.open(io.BytesIO(encode_png(Image.new("RGB", (4, 4)), recipe))) as opened:
        assert opened.text["prompt"].isascii() and json.loads(opened.text["prompt"]) == comfy_workflow(recipe)


def test_a_png_holds_no_graph_that_the_browser_would_change():
    recipe = VALID.replace(prompt="a {red|blue} fox")
    with Image.open(io.BytesIO(encode_png(Image.new("RGB", (4, 4)), recipe))) as opened:
        assert "prompt" not in opened.text
