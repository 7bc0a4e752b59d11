"""pocket in a real ComfyUI against fluxnb, and graphs through ComfyUI's real window.

These tests need COMFYUI_HOME, see `conftest.py`.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import random

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import fluxnb as fnb
from fluxnb.io.comfyui import workflow_or_none
from fluxnb.io.png import encode_png
from fluxnb.records.recipe import Recipe
from tests.comfyui.conftest import OPEN

pytestmark = pytest.mark.long

PROMPTS = ("a red cube", "a fox in the snow", "a (blue) ball beside a [green] tree", "two apples on a table")


@pytest.fixture(scope="module")
def models():
    """Loaded models by name and number format."""
    loaded: dict[tuple[str, str], fnb.Flux] = {}

    def model(name, dtype="float32"):
        if (name, dtype) not in loaded:
            loaded[name, dtype] = fnb.load(name, dtype=dtype)
        return loaded[name, dtype]

    return model


def drawn(server, recipe, **changes):
    """The latents and the picture that ComfyUI draws from the graph of a recipe."""
    graph = copy.deepcopy(fnb.comfy_workflow(recipe, browser=False))
    graph["10"] = {"class_type": "SaveLatent", "inputs": {"samples": ["31", 0], "filename_prefix": "latents/fluxnb"}}
    for name, node in changes.items():
        graph[name.removeprefix("n")] = node
    outputs = server.run(graph)
    latents = outputs["10"]["latents"][0]
    image = outputs["9"]["images"][0]
    tensor = load_file(server.folder / "output" / latents["subfolder"] / latents["filename"])["latent_tensor"]
    with Image.open(server.folder / "output" / image["subfolder"] / image["filename"]) as opened:
        return tensor[0].float(), numpy.asarray(opened.convert("RGB")).astype(int)


def decibels(a, b):
    return 10 * numpy.log10(255**2 / max(numpy.mean((a - b) ** 2.0), 1e-9))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_pocket_gives_the_latents_of_fluxnb_to_2e_4_and_its_pixels_to_one_level(server, models, steps):
    furthest, levels = 0.0, 0
    for seed in range(10):
        ours = fnb.run(models("pocket"), PROMPTS[seed % 4], seed=seed, steps=steps)
        latents, picture = drawn(server, ours.recipe)
        furthest = max(furthest, float((latents - ours.steps[-1].latents("x_next")).abs().max()))
        levels = max(levels, int(abs(picture - numpy.asarray(ours.image).astype(int)).max()))
    print(f"{steps} steps: latents to {furthest:.1e}, pixels to {levels}")
    assert furthest <= 2e-4 and levels <= 1


@pytest.mark.parametrize("seed", [2**53 + 1, 2**64 - 1])
def test_a_seed_of_64_bits_gives_the_picture_of_fluxnb_to_one_level(server, models, seed):
    ours = fnb.run(models("pocket"), "two apples on a table", seed=seed, steps=4)
    latents, picture = drawn(server, ours.recipe)
    assert float((latents - ours.steps[-1].latents("x_next")).abs().max()) <= 1e-4
    assert abs(picture - numpy.asarray(ours.image).astype(int)).max() <= 1


@pytest.mark.usefixtures("same_noise_in_16_bits")
def test_pocket_in_bfloat16_is_as_close_to_fluxnb_as_bfloat16_is_to_float32(server, models):
    """ComfyUI draws noise in 32 bits. Two roundings of equal size add up to 6 dB less at most."""
    found, own = [], []
    for seed in range(10):
        ours = fnb.run(models("pocket", "bfloat16"), PROMPTS[seed % 4], seed=seed, steps=4)
        exact = fnb.run(models("pocket"), PROMPTS[seed % 4], seed=seed, steps=4)
        picture = numpy.asarray(ours.image).astype(int)
        found.append(decibels(drawn(server, ours.recipe)[1], picture))
        own.append(decibels(numpy.asarray(exact.image).astype(int), picture))
    print(
        "bfloat16, dB:",
        sorted(round(each, 1) for each in found),
        "from float32:",
        sorted(round(each, 1) for each in own),
    )
    assert numpy.median(found) >= 42 and min(found) >= min(own) - 6 and numpy.mean(found) >= numpy.mean(own) - 1


def test_pocket_base_with_guidance_and_a_shift_gives_the_latents_of_fluxnb(server, models):
    recipe = fnb.Recipe(prompt="a red cube", negative="blur", guidance=1.5, steps=10, seed=3, shift=1.7)
    ours = fnb.run(models("pocket-base"), recipe)
    latents, _ = drawn(server, ours.recipe)
    assert float((latents - ours.steps[-1].latents("x_next")).abs().max()) < 2e-3


@pytest.mark.parametrize(
    ("scheduler", "steps", "shift"),
    [("sgm_uniform", 4, None), ("beta", 5, None), ("normal", 4, 1.7), ("kl_optimal", 4, None), ("karras", 4, None),
     ("linear_quadratic", 4, 3.0), ("simple", 3, None)],
)  # fmt: skip
def test_the_recipe_of_a_graph_gives_the_picture_of_comfyui(server, models, scheduler, steps, shift):
    recipe = models("pocket").resolve(fnb.Recipe(prompt="a red cube", seed=5, steps=steps, shift=shift))
    sampler = {**fnb.comfy_workflow(recipe)["31"]["inputs"], "scheduler": scheduler}
    node = {"class_type": "KSampler", "inputs": sampler}
    latents, picture = drawn(server, recipe, n31=node)
    read = fnb.import_recipe({**fnb.comfy_workflow(recipe), "31": node})
    ours = fnb.run(models("pocket"), read.recipe)
    furthest = float((latents - ours.steps[-1].latents("x_next")).abs().max())
    level = abs(picture - numpy.asarray(ours.image).astype(int)).max()
    print(f"{scheduler}: latents to {furthest:.1e}, pixels to {level}, {read.differs}")
    # Levels that ComfyUI rounds to thousandths are listed as a difference.
    assert furthest <= (1e-4 if not read.differs else 2e-2) and level <= (1 if not read.differs else 8)


def test_another_text_length_gives_the_latents_of_fluxnb(server, models):
    ours = fnb.run(models("pocket"), fnb.Recipe(prompt="a red cube", steps=2, max_sequence_length=17))
    latents, _ = drawn(server, ours.recipe)
    assert float((latents - ours.steps[-1].latents("x_next")).abs().max()) < 5e-5


def test_a_recording_sampler_gives_the_latents_of_ksampler_and_the_steps_of_fluxnb(server, models):
    ours = fnb.run(models("pocket"), "a red cube", seed=3, steps=4)
    plain, _ = drawn(server, ours.recipe)
    inputs = fnb.comfy_workflow(ours.recipe)["31"]["inputs"]
    film = {"trajectory": ["31", 1], "rows": "all", "filename_prefix": "../film", "vae": ["38", 2]}
    nodes = {
        "n31": {"class_type": "FluxnbKSampler", "inputs": inputs},
        "n50": {"class_type": "FluxnbFilm", "inputs": film},
        "n51": {"class_type": "SaveImage", "inputs": {"images": ["50", 0], "filename_prefix": "strip"}},
    }
    recorded, _ = drawn(server, ours.recipe, **nodes)
    assert torch.equal(plain, recorded)
    for picture in (server.folder / "output").glob("fluxnb_*.png"):
        assert fnb.import_recipe(picture).source == "comfyui"
    newest = max((server.folder / "output").glob("fluxnb_*.png"))
    assert fnb.import_recipe(newest).recipe == ours.recipe
    page = (server.folder / "output" / "_film_00001.html").read_text(encoding="utf-8")
    assert "4 steps" in page and len(page) > 20_000
    assert (server.folder / "output" / "strip_00001_.png").stat().st_size > 10_000


def test_graphs_of_flux_are_valid_for_the_server(server):
    # The model files are empty, so a graph that is accepted fails when its turn comes; acceptance is what counts.
    for recipe in (
        Recipe(prompt="a fox", model="schnell", height=16, width=8192, seed=2**64 - 1, steps=1000),
        Recipe(prompt="a fox", model="dev", height=1024, width=1024, guidance=0.0, shift=3.0),
    ):
        assert server.post(fnb.comfy_workflow(recipe, browser=False))


# --------------------------------------------------------------------------------------------------------------- window
def generated_prompts(count=60):
    """Prompts from parts that programs read in different ways."""
    rng = random.Random(7)
    parts = [
        "a fox", "{red|blue}", "(bright)", "[old]", "((very)) big", "// note", "/* aside */", "\\(literal\\)", "{", "}",
        "|",
        "狐が雪の中", "лиса в снегу", "ثعلب في الثلج", "👩🏽\u200d🚀🏳️\u200d🌈",
        "e\u0301 decomposed", "a\nline", "\ttab",
        "\r\nline", "back\\slash", "trailing\\", "<script>alert(1)</script>", "%date%", "&amp; &lt;",
        "https://example.com/a", "http:/x", "#tag", "__wildcard__", "embedding:style", "$HOME `id`", "\u202e reversed",
        "\x00", "100%", "'single' \"double\"", "a,b;c:d", "  spaces  ", "\ufeffmark", "\u2028", "(red:1.2)",
        "AND", "*/", "/ / apart",
    ]  # fmt: skip
    singles = [f"a {part}" for part in parts]
    return singles + [" ".join(rng.sample(parts, rng.choice((2, 3)))) for _ in range(count - len(singles))]


def generated_recipes():
    """Sixty recipes with unusual prompts, and thirty with unusual numbers."""
    rng = random.Random(8)
    seeds, guidances = [0, 2**53 - 1, 2**53, 2**53 + 1, 2**60, 2**64 - 1], [None, 0.0, 1.5, 3.5, 2.25, 3.14159, 100.0]
    for number, prompt in enumerate([*generated_prompts(), *["a fox"] * 30]):
        unusual = number >= 60
        model = rng.choice(["schnell", "dev", "pocket", "pocket-base"])
        seed = rng.choice(seeds) if unusual else rng.randrange(2**53)
        recipe = Recipe(prompt=prompt, seed=seed, steps=rng.choice([1, 3, 4, 28]), height=64, width=80, model=model)
        if unusual and model in ("dev", "pocket-base"):
            recipe = recipe.replace(guidance=rng.choice(guidances))
        yield recipe.replace(shift=rng.choice([None, 1.15, 3.0, 1.2345])) if unusual else recipe


def unchanged(ours, theirs):
    """Whether a graph of the window has our nodes with our inputs; it adds the defaults of optional inputs."""
    return ours.keys() == theirs.keys() and all(
        node["class_type"] == theirs[name]["class_type"] and node["inputs"].items() <= theirs[name]["inputs"].items()
        for name, node in ours.items()
    )


def opened(window, data, count):
    given = ["fox.png", base64.b64encode(data).decode(), "image/png", count]
    return json.loads(window.evaluate(OPEN, given))


def test_the_window_of_comfyui_changes_no_graph_that_a_png_holds(window):
    identical, without = 0, 0
    for recipe in generated_recipes():
        data = encode_png(Image.new("RGB", (8, 8)), recipe)
        graph = workflow_or_none(recipe)
        with Image.open(io.BytesIO(data)) as picture:
            assert (json.loads(picture.text["prompt"]) if "prompt" in picture.text else None) == graph
        if graph is None:
            without += 1
            continue
        assert unchanged(graph, opened(window, data, len(graph))), recipe
        identical += 1
    print(f"{identical} identical, {without} without a graph")
    assert identical >= 15 and without >= 15


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "a {red|blue} fox"}, {"prompt": "see https://example.com"}, {"prompt": "a /* aside */ fox"},
        {"prompt": "a\r\nfox"}, {"prompt": "ends with \\"}, {"seed": 2**53 + 1}, {"model": "dev", "guidance": 3.14},
        {"shift": 1.2345},
    ],
)  # fmt: skip
def test_what_has_no_graph_for_the_window_is_changed_by_it(window, changes):
    recipe = Recipe(prompt="a fox", height=64, width=64, model="schnell").replace(**changes)
    graph = fnb.comfy_workflow(recipe, browser=False)
    given = ["fox.json", base64.b64encode(json.dumps(graph).encode()).decode(), "application/json", len(graph)]
    assert not unchanged(graph, json.loads(window.evaluate(OPEN, given)))
