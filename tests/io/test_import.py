"""Recipes from the files of other programs: what is read, what is listed as different, what is refused."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import struct
import time
import tracemalloc
import zlib

import pytest
from hypothesis import assume, given, settings
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import fluxnb as fnb
from fluxnb.errors import FluxnbError, InputError, StorageError
from fluxnb.io import containers, other_programs
from fluxnb.io.a1111 import parameters
from fluxnb.io.comfyui import MODELS
from fluxnb.io.containers import USER_COMMENT
from fluxnb.io.png import encode_png
from fluxnb.records.recipe import Recipe
from tests.io.test_comfyui import comfy_recipes

TINY = Image.new("RGB", (32, 16))
SCHNELL = Recipe(prompt="a (red) fox", seed=3, steps=4, height=512, width=768, model="schnell", max_sequence_length=256)
DEV = SCHNELL.replace(model="dev", guidance=2.5, max_sequence_length=512, steps=20)


@pytest.fixture(autouse=True)
def noise(same_noise_in_16_bits):
    """Noise as in ComfyUI; a single test is about the difference that other noise makes."""


def graph(recipe=SCHNELL, **nodes):
    """The graph of a recipe; each keyword replaces inputs of the node of that number, as in n31={"cfg": 2}."""
    made = copy.deepcopy(fnb.comfy_workflow(recipe, browser=False))
    for name, inputs in nodes.items():
        made[name[1:]]["inputs"].update(inputs)
    return made


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def png(**texts):
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    buffer = io.BytesIO()
    TINY.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


# -------------------------------------------------------------------------------------------------------------- ComfyUI
@pytest.mark.parametrize(
    "recipe",
    [
        SCHNELL,
        DEV,
        SCHNELL.replace(shift=3.0, seed=2**64 - 1, max_sequence_length=512),
        SCHNELL.replace(model="pocket", dtype="bfloat16", revision="98f8c6cdc04e", max_sequence_length=48),
        SCHNELL.replace(model="pocket-base", dtype="float32", negative="blur", guidance=1.5, max_sequence_length=32),
    ],
)
def test_a_recipe_comes_back_from_its_graph(recipe):
    read = fnb.import_recipe(fnb.comfy_workflow(recipe, browser=False))
    assert (read.recipe, read.source, read.differs) == (recipe, "comfyui", ())
    assert {"prompt", "seed", "steps", "height", "width"} <= set(read.same)


@settings(max_examples=30)
@given(comfy_recipes)
def test_every_recipe_that_has_a_graph_comes_back_from_it(recipe):
    assume(recipe.shift is None or abs(recipe.shift - 1) > 1e-3)  # a shift of 1 is schnell's own, read as None
    known = MODELS[recipe.model]
    read = fnb.import_recipe(fnb.comfy_workflow(recipe, browser=False))
    filled = {"max_sequence_length": known.tokens, "guidance": recipe.guidance}
    if known.guided_by and recipe.guidance is None:
        filled["guidance"] = known.guidance
    if known.guided_by == "true_cfg":
        filled["negative"] = ""
    if not known.file:
        filled["dtype"] = "float32"
    assert read.recipe == recipe.replace(model=recipe.model.rpartition("FLUX.1-")[2], **filled)
    assert all("rounds the levels" in each for each in read.differs)
    levels = 10_000 if recipe.model.endswith("dev") and recipe.shift is None else 1000  # among which ComfyUI chooses
    assert bool(read.differs) == (levels % recipe.steps != 0)


def advanced(recipe=DEV, **scheduler):
    """The graph of a recipe with SamplerCustomAdvanced, as the official examples have it."""
    made = graph(recipe)
    inputs = made.pop("31")["inputs"]
    model = inputs["model"]
    return made | {
        "8": node("VAEDecode", samples=["13", 0], vae=["39", 0]),
        "13": node("SamplerCustomAdvanced", noise=["25", 0], guider=["22", 0], sampler=["16", 0], sigmas=["17", 0],
                   latent_image=["27", 0]),
        "25": node("RandomNoise", noise_seed=recipe.seed),
        "22": node("BasicGuider", model=model, conditioning=inputs["positive"]),
        "16": node("KSamplerSelect", sampler_name="euler"),
        "17": node("BasicScheduler", **{"scheduler": "simple", "steps": recipe.steps, "denoise": 1.0, "model": model,
                                       **scheduler}),
    }  # fmt: skip


@pytest.mark.parametrize("recipe", [SCHNELL, DEV])
def test_the_graph_of_the_official_examples_gives_the_recipe(recipe):
    assert fnb.import_recipe(advanced(recipe)).recipe == recipe


def test_a_graph_is_read_from_png_webp_and_json(tmp_path):
    text = json.dumps(graph())
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "b.json").write_text(json.dumps({"prompt": graph(), "client_id": "1"}))
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{text}"
    TINY.save(tmp_path / "a.webp", exif=exif)
    (tmp_path / "a.png").write_bytes(png(prompt=text, workflow="{}"))
    for name in ("a.json", "b.json", "a.webp", "a.png"):
        assert fnb.import_recipe(tmp_path / name).recipe == SCHNELL
        data = (tmp_path / name).read_bytes()
        for held in (data, bytearray(data), memoryview(data)):
            assert fnb.import_recipe(held).recipe == SCHNELL


def test_a_scheduler_other_than_simple_becomes_own_levels():
    read = fnb.import_recipe(graph(n31={"scheduler": "sgm_uniform", "steps": 2}))
    assert read.recipe.sigmas == pytest.approx((1.0, 0.5005)) and read.recipe.steps == 2


def test_the_levels_of_dev_are_kept_before_the_shift():
    read = fnb.import_recipe(advanced(scheduler="simple", steps=3))
    assert read.recipe.sigmas is None and "rounds the levels" in read.differs[0]
    read = fnb.import_recipe(advanced(scheduler="beta", steps=4))
    assert len(read.recipe.sigmas) == 4 and read.recipe.shift is None


def test_a_shift_that_is_not_the_models_own_becomes_a_field():
    without = graph(DEV)
    without["31"]["inputs"]["model"] = ["38", 0]
    assert fnb.import_recipe(without).recipe.shift == pytest.approx(math.exp(1.15))
    assert fnb.import_recipe(graph(DEV, n30={"width": 1024, "height": 1024})).recipe.shift == pytest.approx(
        math.exp(1.15)
    )
    assert fnb.import_recipe(graph(DEV.replace(height=1024, width=1024))).recipe.shift is None


def test_linked_values_are_read_through_reroutes_and_constants():
    made = graph(n31={"seed": ["50", 0], "model": ["52", 0]}, n6={"text": ["51", 0]})
    made |= {
        "50": node("PrimitiveInt", value=77),
        "51": node("PrimitiveStringMultiline", value="a linked prompt"),
        "52": node("Reroute", **{"": ["38", 0]}),
    }
    read = fnb.import_recipe(made)
    assert (read.recipe.seed, read.recipe.prompt) == (77, "a linked prompt")


def test_a_sampler_that_nothing_uses_is_left_out():
    made = graph()
    made["99"] = node("KSampler", **{**made["31"]["inputs"], "seed": 9})
    assert fnb.import_recipe(made).recipe.seed == 3


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (graph(n38={"unet_name": "flux1-schnell-Q4_K_S.gguf"}), "fewer bits"),
        (graph(n38={"weight_dtype": "fp8_e4m3fn"}), "fewer bits"),
        (graph(n40={"clip_name2": "t5xxl_fp8_e4m3fn.safetensors"}), "fewer bits"),
        (graph(n27={"batch_size": 4}), "of a batch"),
        (graph(n31={"steps": 3}), "rounds the levels of 3 steps, by at most 0.0007"),
        (graph(n31={"scheduler": "ddim_uniform"}), "scales the noise"),
        (graph(n6={"text": "a (red:1.3) fox"}), "(red:1.3)"),
        (graph(n6={"text": "a fox " * 200}), "longer than 256 tokens"),
        (graph(n39={"vae_name": "taef1"}), "taef1"),
        (graph() | {"60": node("ImageUpscaleWithModel", image=["8", 0]), "9": node("SaveImage", images=["60", 0])},
         "60 (ImageUpscaleWithModel) comes after the sampler"),
        (graph() | {"6": node("CLIPTextEncodeFlux", clip=["40", 0], clip_l="fox", t5xxl="a fox", guidance=3.5)},
         "'fox'"),
    ],
)  # fmt: skip
def test_a_difference_is_listed(made, words):
    read = fnb.import_recipe(made)
    assert any(words in sentence for sentence in read.differs), read.differs


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (graph(n31={"denoise": 0.5}), "'31' (KSampler)"),
        (graph(n31={"sampler_name": "heun"}), "'31' (KSampler)"),
        (graph(n31={"cfg": 7.0}), "'31' (KSampler)"),
        (graph(n31={"scheduler": "align_your_steps"}), "'31' (KSampler)"),
        (graph(n31={"steps": 0}), "'31' (KSampler)"),
        (graph(n31={"seed": -1}), "'31' (KSampler)"),
        (graph(n31={"seed": ["70", 0]}) | {"70": node("RandomInt", low=0, high=9)}, "'70' (RandomInt)"),
        (graph(n27={"width": 500}), "'27' (EmptySD3LatentImage)"),
        (graph(n31={"latent_image": ["70", 0]}) | {"70": node("VAEEncode", pixels=["71", 0])}, "'70' (VAEEncode)"),
        (graph(n31={"positive": ["70", 0]}) | {"70": node("ControlNetApplyAdvanced", positive=["6", 0])},
         "'70' (ControlNetApplyAdvanced)"),
        (graph(n31={"positive": ["42", 0]}), "'42' (ConditioningZeroOut)"),
        (graph(n6={"text": "an embedding:style fox"}), "'6' (CLIPTextEncode)"),
        (graph(n31={"model": ["70", 0]})
         | {"70": node("LoraLoaderModelOnly", model=["38", 0], lora_name="a.safetensors", strength_model=0.8)},
         "'70' (LoraLoaderModelOnly)"),
        (graph(n31={"model": ["70", 0]}) | {"70": node("ModelSamplingSD3", model=["38", 0], shift=3.0)},
         "'70' (ModelSamplingSD3)"),
        (graph(n38={"unet_name": "flux1-fill-dev.safetensors"}), "'38' (UNETLoader)"),
        (graph(n38={"unet_name": "my-dev-finetune.safetensors"}), "'38' (UNETLoader)"),
        (graph(n40={"type": "sd3"}), "'40' (DualCLIPLoader)"),
        (graph(n6={"clip": ["70", 0]}) | {"70": node("CLIPLoader", clip_name="a")}, "'70' (CLIPLoader)"),
        (graph() | {"9": node("SaveImage", images=["70", 0]), "70": node("VAEDecode", samples=["71", 0], vae=["39", 0]),
                    "71": node("KSampler", **{**graph()["31"]["inputs"], "latent_image": ["31", 0]})},
         "31 (KSampler) and 71 (KSampler)"),
        ({"5": node("XlabsSampler", model=["6", 0])}, "'5' (XlabsSampler)"),
        ({"5": node("LoadImage", image="a.png")}, "5 (LoadImage)"),
        (advanced(denoise=0.9), "'17' (BasicScheduler)"),
        (advanced() | {"25": node("DisableNoise")}, "'25' (DisableNoise)"),
        (advanced() | {"17": node("Flux2Scheduler", steps=4)}, "'17' (Flux2Scheduler)"),
        (advanced() | {"22": node("DualCFGGuider", model=["38", 0])}, "'22' (DualCFGGuider)"),
        (graph(n31={"model": ["52", 0]}) | {"52": node("Reroute", x=["52", 0])}, "'52' (Reroute)"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_repeat_is_refused_with_the_name_of_the_node(made, names):
    with pytest.raises(InputError) as caught:
        fnb.import_recipe(made)
    assert names in str(caught.value)
    assert caught.value.possible and caught.value.remedy


def test_links_in_a_circle_are_refused():
    made = graph(n31={"model": ["70", 0]})
    made |= {"70": node("TorchCompileModel", model=["71", 0]), "71": node("TorchCompileModel", model=["70", 0])}
    with pytest.raises(InputError, match="circle"):
        fnb.import_recipe(made)


def test_a_workflow_of_the_window_is_refused_with_what_to_choose():
    with pytest.raises(InputError, match=r"'KSampler'.*Workflow > Export \(API\)"):
        fnb.import_recipe({"nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4})


def test_nan_in_a_graph_is_accepted():
    made = json.dumps(graph() | {"9": {**node("SaveImage", images=["8", 0]), "is_changed": [math.nan]}})
    assert fnb.import_recipe(png(prompt=made)).recipe == SCHNELL


# ------------------------------------------------------------------------------------------------------- other programs
A1111 = (
    "a fox, (snow:1.2)\nNegative prompt: blur\nSteps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, "
    "Distilled CFG Scale: 3.5, Seed: 9, Size: 1024x768, Model hash: abc, Model: flux1-dev-bnb-nf4, "
    'Module 1: "ae, x", Version: f2.0.1v1.10.1'
)


def test_the_parameters_of_forge_give_a_recipe_and_its_differences():
    read = fnb.import_recipe(png(parameters=A1111))
    recipe = read.recipe
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.guidance) == ("a fox, snow", 9, 4, 3.5)
    assert (recipe.width, recipe.height, recipe.model, read.source) == (1024, 768, "dev", "forge")
    assert len(read.differs) == 4 and any("nf4" in each for each in read.differs)


def test_the_parameters_in_the_user_comment_of_a_jpeg_are_read():
    for encoding in ("utf-16-be", "utf-16-le"):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode(encoding)
        buffer = io.BytesIO()
        TINY.save(buffer, "JPEG", exif=exif)
        assert fnb.import_recipe(buffer.getvalue()).recipe.seed == 9


@pytest.mark.parametrize(
    "recipe",
    [
        SCHNELL.replace(max_sequence_length=256),
        DEV.replace(prompt="two\nlines [old]", revision="a:b, c", dtype="bfloat16"),
        SCHNELL.replace(model="pocket-base", negative="a (blur)", guidance=1.5, sigmas=(1.0, 0.31), shift=2.5),
        SCHNELL.replace(sampler="renoise", model="pocket"),
    ],
)
def test_our_own_parameters_text_gives_the_recipe_back(recipe):
    with Image.open(io.BytesIO(encode_png(TINY, recipe))) as opened:
        text = opened.text["parameters"]
    read = fnb.import_recipe(png(parameters=text))
    assert (read.recipe, read.source, read.differs) == (recipe, "fluxnb", ())


@pytest.mark.parametrize(
    "text", [" a fox ", "\\(a", "a \\\\(b) \\", "\\\\)", "[a (b]) c", "((a:1.2", "a\n\n b", "][", "{red|blue} fox"]
)
def test_spaces_backslashes_brackets_and_braces_of_a_prompt_come_back(text):
    recipe = SCHNELL.replace(prompt=text, model="pocket-base", guidance=1.5, negative=text)
    assert fnb.import_recipe(fnb.comfy_workflow(recipe, browser=False)).recipe.prompt == text
    read = fnb.import_recipe(png(parameters=parameters(recipe))).recipe
    assert (read.prompt, read.negative) == (text, text)


SWARM = {"prompt": "a fox", "model": "FLUX1/flux1-schnell-fp8", "seed": 5, "steps": 4, "cfgscale": 1.0, "width": 1024,
         "height": 1024, "sampler": "euler", "swarm_version": "0.9"}  # fmt: skip
INVOKE = {"positive_prompt": "a fox", "seed": 5, "steps": 30, "width": 1024, "height": 1024, "guidance": 4.0,
          "generation_mode": "flux_txt2img", "model": {"name": "FLUX Dev (Quantized)", "base": "flux"}}  # fmt: skip
MFLUX = {"mflux_version": "0.10", "model": "schnell", "seed": 5, "steps": 4, "guidance": None, "height": 1024,
         "width": 1024, "quantize": 8, "lora_paths": None, "prompt": "a fox"}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "source", "model", "guidance"),
    [
        (png(parameters=json.dumps({"sui_image_params": SWARM})), "swarmui", "schnell", None),
        (png(invokeai_metadata=json.dumps(INVOKE)), "invokeai", "dev", 4.0),
        (json.dumps(MFLUX).encode(), "mflux", "schnell", None),
    ],
)
def test_other_programs_give_a_recipe(data, source, model, guidance):
    read = fnb.import_recipe(data)
    assert (read.source, read.recipe.model, read.recipe.guidance) == (source, model, guidance)
    assert (read.recipe.prompt, read.recipe.seed, read.recipe.height) == ("a fox", 5, 1024)
    assert any("fewer bits" in each for each in read.differs) and any("noise" in each for each in read.differs)


def test_a_picture_of_black_forest_labs_gives_prompt_model_and_size():
    exif = Image.Exif()
    exif[0x0131], exif[0x010F], exif[0x0110] = "AI generated;txt2img;flux", "Black Forest Labs", "flux-schnell"
    exif[0x010E] = "a fox"
    buffer = io.BytesIO()
    TINY.save(buffer, "JPEG", exif=exif)
    read = fnb.import_recipe(buffer.getvalue())
    assert (read.source, read.recipe.prompt, read.recipe.model) == ("bfl", "a fox", "schnell")
    assert (read.recipe.height, read.recipe.width) == (16, 32)
    assert read.differs[0] == "The seed is not in the file." and "seed" not in read.same


def test_our_own_png_gives_every_field():
    read = fnb.import_recipe(encode_png(TINY, SCHNELL))
    assert (read.recipe, read.source, read.differs) == (SCHNELL, "fluxnb", ())


@pytest.mark.parametrize(
    "text",
    [
        A1111.replace("Euler", "DPM++ 2M"),
        A1111.replace("CFG scale: 1", "CFG scale: 7"),
        A1111.replace("flux1-dev-bnb-nf4", "realvis-xl"),
        A1111.replace("Seed: 9", "Seed: 9, Denoising strength: 0.4"),
        A1111.replace("a fox", "a <lora:style:1> fox"),
        A1111.replace("Size: 1024x768", "Size: large"),
        "only a prompt",
    ],
)
def test_parameters_that_a_recipe_cannot_repeat_are_refused(text):
    with pytest.raises(InputError) as caught:
        fnb.import_recipe(png(parameters=text))
    assert caught.value.possible and caught.value.remedy


@pytest.mark.parametrize("document", [
    {"sui_image_params": {**SWARM, "loras": ["style"]}}, {"sui_image_params": {**SWARM, "cfgscale": 7}},
    {"sui_image_params": {**SWARM, "comfyuisampler": "heun"}},
    {"sui_image_params": []}, {**INVOKE, "generation_mode": "flux_img2img"}, {**INVOKE, "loras": [{"model": 1}]},
    {**INVOKE, "model": {"name": "a", "base": "sdxl"}}, {**MFLUX, "lora_paths": ["a"]}, {**MFLUX, "model": "dev-krea"},
    {**MFLUX, "model": "someone/style", "base_model": "dev"}, {**MFLUX, "seed": "x"},
])  # fmt: skip
def test_metadata_that_a_recipe_cannot_repeat_is_refused(document):
    with pytest.raises(InputError) as caught:
        fnb.import_recipe(document)
    assert caught.value.possible and caught.value.remedy


# --------------------------------------------------------------------------------------------------------------- bounds
def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def picture(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


BOMB = zlib.compress(b"[" * 10**8)
CYCLIC: dict = {}
CYCLIC["1"] = {"class_type": "KSampler", "inputs": CYCLIC}


@pytest.mark.parametrize(
    "given",
    [
        b"", b"{", b"[" * 200_000, b'{"a":' * 100_000, b"\x89PNG\r\n\x1a\n", picture(), b"\xff\xd8\xff",
        b"RIFF\0\0\0\0WEBP",
        picture(chunk(b"zTXt", b"prompt\0\0" + BOMB)), picture(chunk(b"iTXt", b"prompt\0\1\0\0\0" + BOMB)),
        picture(chunk(b"tEXt", b"prompt\0" + b"{" * 100)),
        picture(chunk(b"tEXt", b"parameters\0" + b"a:" * 100_000)),
        picture(chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")), picture(chunk(b"IHDR", b"")),
        json.dumps({str(n): node("KSampler") for n in range(20_000)}).encode(),
        json.dumps({"1": node("KSampler", model=["1", 0])}).encode(),
        json.dumps(graph(n6={"text": "(" * 19_000})).encode()[:-1], {}, CYCLIC, {"fluxnb_recipe": CYCLIC},
        {"prompt": {"1": {"class_type": 3}}}, b"GIF89a",
    ],
)  # fmt: skip
def test_a_hostile_file_is_an_error_in_three_parts(given):
    with pytest.raises(FluxnbError) as caught:
        fnb.import_recipe(given)
    assert caught.value.possible and caught.value.remedy


def test_many_large_texts_take_little_memory():
    texts = [chunk(b"tEXt", b"other%d\0" % n + bytes(1_000_000)) for n in range(30)]
    tracemalloc.start()
    with pytest.raises(InputError, match="other0"):
        fnb.import_recipe(io.BytesIO(picture(*texts)).getvalue())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 75_000_000  # two copies of the file itself


@pytest.mark.moderate
def test_deep_brackets_are_read_in_linear_time():
    assert fnb.import_recipe(graph(n6={"text": "(" * 9_000 + "fox" + ")" * 9_000})).recipe.prompt == "fox"


def exif_of(tag, count, body):
    """A PNG whose EXIF has `count` entries from `tag` on, or of it alone, that all have the same text."""
    tags = [tag] * count if isinstance(tag, int) else list(tag)[:count]
    place = 10 + 12 * len(tags)
    entries = b"".join(struct.pack("<HHII", each, 2, len(body), place) for each in tags)
    return picture(chunk(b"eXIf", b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + body))


@pytest.mark.parametrize("tag", [range(1000, 1200), USER_COMMENT], ids=["many", "one"])
def test_tags_of_exif_that_share_a_text_take_the_memory_of_one(tag):
    data = exif_of(tag, 200, b"UNICODE\0" + b"a\0" * 250_000)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(InputError):
        fnb.import_recipe(data)
    peak, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - started
    tracemalloc.stop()
    assert peak < 15_000_000 and seconds < 2  # 200 times the text are 100 MB


LONG = {
    "the file of a VAE": graph(n39={"vae_name": "-flux" * 2_000 + "vae" * 2_000}),
    "the file of a text encoder": graph(n40={"clip_name1": "1" * 1_000_000}),
    "the file of a model": {**MFLUX, "model": "schnell" + "-1" * 500 + "1" * 1_000_000},
    "a weight": graph(n6={"text": "(a:" + "1" * 19_000 + "x)"}),
    "a prompt": {"sui_image_params": {**SWARM, "prompt": "(" * 100_000 + ":1" * 10**6 + ")" * 100_000}},
    "a number": graph(DEV, n30={"max_shift": 10**308, "base_shift": -(10**308)}),
}


@pytest.mark.parametrize("what", LONG)
def test_a_long_value_is_read_or_refused_in_linear_time(what):
    started = time.process_time()
    with contextlib.suppress(InputError):
        fnb.import_recipe(LONG[what])
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("within", "above"),
    [
        ({"98": node("a" * 500)}, {"98": node("a" * 501)}),
        ({"98": node("Note", **{f"n{n}": n for n in range(1000)})},
         {"98": node("Note", **{f"n{n}": n for n in range(1001)})}),
        ({f"n{n}": node("Note") for n in range(10_000 - len(graph()))},
         {f"n{n}": node("Note") for n in range(10_001 - len(graph()))}),
    ],
    ids=["class", "inputs", "nodes"],
)  # fmt: skip
def test_a_graph_has_bounds(within, above):
    assert fnb.import_recipe({**graph(), **within}).recipe == SCHNELL
    with pytest.raises(InputError):
        fnb.import_recipe({**graph(), **above})


def test_more_than_twenty_differences_are_counted():
    changes = {f"n{n}": node(f"Sharpen{n}", image=["8", 0]) for n in range(30)}
    differs = fnb.import_recipe({**graph(), **changes}).differs
    assert len(differs) == 21 and differs[-1] == "There are 10 further differences."


def test_a_parameters_text_has_bounds(monkeypatch):
    further = ", ".join(f"n{n}: 1" for n in range(5))
    assert fnb.import_recipe(png(parameters=f"{A1111}, {further}")).recipe.seed == 9
    with pytest.raises(InputError, match="at most 60000"):
        fnb.import_recipe(png(parameters="a" * 60_001 + A1111))
    first = A1111.replace("Steps:", f"{further}, Steps:")
    for name in ("MOST_SETTINGS", "LONGEST_SETTINGS"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match="without settings"):
            patch.setattr(other_programs, name, 5)
            fnb.import_recipe(png(parameters=first))


@pytest.mark.parametrize("bound", ["MOST_CHUNKS", "MOST_SEGMENTS", "MOST_TAGS", "LONGEST_TEXT"])
def test_what_comes_after_a_bound_of_a_picture_is_not_read(monkeypatch, bound):
    text = chunk(b"tEXt", b"parameters\0" + A1111.encode())
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0131] = "prompt:" + json.dumps(graph()), "model", "software"
    buffer = io.BytesIO()
    TINY.save(buffer, "JPEG", exif=exif)
    given = {"MOST_CHUNKS": picture(chunk(b"tEXt", b"a\0b"), text), "LONGEST_TEXT": picture(text)}
    data = given.get(bound, buffer.getvalue())
    assert fnb.import_recipe(data).source in ("forge", "comfyui")
    monkeypatch.setattr(containers, bound, {"LONGEST_TEXT": len(A1111)}.get(bound, 1 if bound != "MOST_TAGS" else 0))
    with pytest.raises(InputError, match="without a recipe"):
        fnb.import_recipe(data)


def test_a_file_that_does_not_exist_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        fnb.import_recipe(tmp_path / "none.png")


def test_open_recipe_names_import_recipe():
    with pytest.raises(InputError, match=r"fnb\.import_recipe\(picture\)"):
        fnb.open_recipe(png(prompt="{}"))


@pytest.mark.usefixtures("other_noise_in_16_bits")
def test_an_import_mentions_that_this_pytorch_draws_other_noise_in_16_bits():
    pocket = SCHNELL.replace(model="pocket", height=128, width=128, revision=None)
    large, small = (fnb.import_recipe(graph(recipe)).differs for recipe in (SCHNELL, pocket))
    assert large[-1].startswith("In 16 bits, this version of PyTorch draws other noise")
    assert small == ()
