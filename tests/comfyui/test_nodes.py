"""The nodes with stubs of the few names of ComfyUI that they use; `test_server.py` runs them in the real one."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import fluxnb as fnb
from fluxnb.io.png import encode_png
from tests.scenes import trajectory

FOLDER = Path(__file__).parents[2] / "comfyui"


class StubFormat:
    """Latents as FLUX.1 has them in ComfyUI."""

    scale_factor, shift_factor = 0.5, 0.25

    def __init__(self):
        self.latent_rgb_factors = [[0.1, 0.0, -0.1]] * 16
        self.latent_rgb_factors_bias = [0.0, 0.1, 0.2]

    def process_in(self, latent):
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent):
        return latent / self.scale_factor + self.shift_factor


class StubSampler:
    SAMPLERS, SCHEDULERS = ["euler", "heun"], ["simple", "beta"]

    def __init__(self, model, *, steps, **_):
        self.sigmas = torch.linspace(1.0, 0.0, steps + 1)


def stub_sample(*given, callback, **_):
    """Euler along the velocity of a straight path to the positive conditioning, with the callback of ComfyUI."""
    model, noise, steps, _cfg, _sampler, _scheduler, positive, _negative, _latents = given
    x, sigmas = noise, StubSampler(model, steps=steps).sigmas
    for step in range(steps):
        callback(step, positive.expand_as(x), x, steps)
        x = positive + (x - positive) * sigmas[step + 1] / sigmas[step]
    return model.model.latent_format.process_out(x)


@pytest.fixture
def pack(monkeypatch, tmp_path):
    """The node pack, imported with stubs of ComfyUI."""
    names = ("cli_args", "latent_formats", "model_detection", "model_management", "model_patcher", "sample", "samplers",
             "supported_models", "utils")  # fmt: skip
    comfy = {name: types.ModuleType(f"comfy.{name}") for name in names}
    root = types.ModuleType("comfy")
    for name, module in comfy.items():
        setattr(root, name, module)
        monkeypatch.setitem(sys.modules, f"comfy.{name}", module)
    monkeypatch.setitem(sys.modules, "comfy", root)
    comfy["latent_formats"].Flux = StubFormat
    comfy["samplers"].KSampler = StubSampler
    comfy["utils"].PROGRESS_BAR_ENABLED = False
    comfy["sample"].fix_empty_latent_channels = lambda model, latents: latents.repeat_interleave(
        16 // latents.shape[1], dim=1
    )
    comfy["sample"].prepare_noise = lambda latents, seed, *_: torch.randn(
        latents.shape, generator=torch.Generator().manual_seed(seed)
    )
    comfy["sample"].sample = stub_sample
    comfy["model_management"].get_torch_device = comfy["model_management"].unet_offload_device = lambda: "cpu"
    comfy["model_patcher"].ModelPatcher = lambda model, **places: SimpleNamespace(model=model, **places)
    comfy["model_detection"].convert_diffusers_mmdit = lambda weights, prefix: dict(weights)
    comfy["supported_models"].FluxSchnell = StubConfig
    previewer = types.ModuleType("latent_preview")
    previewer.shown = []
    previewer.prepare_callback = lambda model, steps: lambda *given: previewer.shown.append(given[0])
    paths = types.ModuleType("folder_paths")
    (tmp_path / "input").mkdir()
    paths.get_output_directory = lambda: str(tmp_path / "output")
    paths.get_input_directory = lambda: str(tmp_path / "input")
    monkeypatch.setitem(sys.modules, "latent_preview", previewer)
    monkeypatch.setitem(sys.modules, "folder_paths", paths)
    spec = importlib.util.spec_from_file_location(
        "pack", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pack", module)
    spec.loader.exec_module(module)
    yield SimpleNamespace(**module.NODE_CLASS_MAPPINGS, names=module.NODE_DISPLAY_NAME_MAPPINGS, folder=tmp_path,
                          shown=previewer.shown)  # fmt: skip
    for name in [name for name in sys.modules if name.startswith("pack.")]:
        del sys.modules[name]


class StubConfig:
    """A configuration whose network takes the weights as they are."""

    def __init__(self, sizes):
        self.sizes = sizes

    def set_inference_dtype(self, dtype, manual):
        self.dtype = dtype

    def get_model(self, weights, prefix):
        network = SimpleNamespace(state_dict=lambda: dict(weights), sizes=self.sizes, dtype=self.dtype)
        return SimpleNamespace(diffusion_model=network, latent_format=self.latent_format, model_config=self,
                               load_model_weights=lambda *_: None)  # fmt: skip


@pytest.fixture
def model():
    latent_format = StubFormat()
    inner = SimpleNamespace(latent_format=latent_format, process_latent_in=latent_format.process_in,
                            model_config=StubConfig({}))  # fmt: skip
    return SimpleNamespace(model=inner, load_device="cpu", model_options={})


def sampled(pack, model, *, steps=4, shape=(1, 16, 4, 6), sampler="euler"):
    goal = torch.full((1, 16, 1, 1), 0.5)
    node = pack.FluxnbKSampler()
    return node.sample(model, 3, steps, 1.0, sampler, "simple", goal, goal, {"samples": torch.zeros(shape)})


def test_every_node_has_what_comfyui_looks_up(pack):
    for name in ("FluxnbLoader", "FluxnbKSampler", "FluxnbFilm", "FluxnbRecipe"):
        node = getattr(pack, name)
        assert node.INPUT_TYPES()["required"] and node.RETURN_TYPES and node.CATEGORY == "fluxnb"
        assert callable(getattr(node, node.FUNCTION)) and pack.names[name]


def test_the_graph_of_pocket_fits_the_inputs_of_the_loader(pack):
    graph = fnb.comfy_workflow(fnb.Recipe(prompt="a", model="pocket", height=64, width=64, dtype="bfloat16"))
    inputs = pack.FluxnbLoader.INPUT_TYPES()
    known = {**inputs["required"], **inputs["optional"]}
    given = graph["38"]["inputs"]
    assert given.keys() == known.keys()
    assert given["model_name"] in known["model_name"][0] and given["dtype"] in known["dtype"][0]


def test_a_recording_has_the_steps_in_the_scale_of_the_model(pack, model):
    latents, recording = sampled(pack, model)
    (made,) = recording.trajectories
    assert len(made) == 4 and made.sigmas == pytest.approx((1.0, 0.75, 0.5, 0.25, 0.0)) and made.finished
    assert (made.height, made.width) == (32, 48) and pack.shown == [0, 1, 2, 3]
    for step in made:
        assert torch.allclose(step.clean, torch.full_like(step.clean, 0.5), atol=1e-6)
        assert torch.allclose(step.x + step.dt * step.v, step.x_next, atol=1e-5)
    last = model.model.process_latent_in(latents["samples"])
    assert torch.allclose(made.steps[-1].latents("x_next"), last[0])


def test_each_picture_of_a_batch_has_a_trajectory(pack, model):
    _, recording = sampled(pack, model, shape=(3, 4, 4, 4))
    assert len(recording.trajectories) == 3


@pytest.mark.parametrize("shape", [(1, 16, 5, 4), (1, 16, 1, 4, 4)])
def test_latents_of_other_models_are_refused(pack, model, shape):
    with pytest.raises(ValueError, match=r"Load a FLUX\.1 model"):
        sampled(pack, model, shape=shape)


@pytest.mark.parametrize("sampler", ["dpm_adaptive", "uni_pc"])
def test_samplers_that_do_not_report_their_levels_are_refused(pack, model, sampler):
    with pytest.raises(ValueError, match="such as euler"):
        sampled(pack, model, sampler=sampler)


@pytest.mark.slow  # the first figure imports matplotlib
@pytest.mark.parametrize("with_vae", [True, False])
def test_a_film_is_a_strip_and_a_page_in_the_output_folder(pack, model, with_vae):
    _, recording = sampled(pack, model, steps=2)

    def decode(latents):
        return torch.rand(len(latents), latents.shape[-2] * 8, latents.shape[-1] * 8, 3)

    vae = SimpleNamespace(decode=decode) if with_vae else None
    for number in (1, 2):
        drawn = pack.FluxnbFilm().draw(recording, "clean", "../../a b", vae)
        strip, path = drawn["result"]
        assert strip.shape[0] == 1 and strip.shape[-1] == 3 and 0 <= strip.min() and strip.max() <= 1
        assert Path(path) == pack.folder / "output" / f"_a_b_{number:05d}.html"
        assert "2 steps" in Path(path).read_text(encoding="utf-8")


def test_a_recipe_is_read_from_the_input_folder_and_from_json(pack):
    recipe = fnb.Recipe(prompt="a (red) fox", seed=7, steps=2, height=64, width=80, model="pocket")
    (pack.folder / "input" / "fox.png").write_bytes(encode_png(Image.new("RGB", (4, 4)), recipe))
    expected = ("a \\(red\\) fox", 7, 2, 80, 64, 1.0)
    assert pack.FluxnbRecipe().read("fox.png") == expected
    assert pack.FluxnbRecipe().read(recipe.to_json()) == expected
    graph = json.dumps(fnb.comfy_workflow(recipe))
    assert pack.FluxnbRecipe().read(graph)[:2] == expected[:2]
    assert pack.FluxnbRecipe.IS_CHANGED("fox.png") != pack.FluxnbRecipe.IS_CHANGED(recipe.to_json())


def test_a_linked_text_of_a_recipe_is_read_each_time(pack):
    assert math.isnan(pack.FluxnbRecipe.IS_CHANGED(None))  # ComfyUI passes None before the linked node has run


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "none.png", "", "a\0b"])
def test_a_file_outside_of_the_input_folder_is_refused(pack, name):
    (pack.folder / "secret.png").write_bytes(encode_png(Image.new("RGB", (4, 4)), trajectory().recipe))
    with pytest.raises(ValueError, match="no file of the input folder"):
        pack.FluxnbRecipe().read(name)


@pytest.mark.slow
def test_the_loader_gives_pocket_its_sizes_texts_and_pictures(pack):
    made, clip, vae = pack.FluxnbLoader().load("pocket", 48, "float32")
    flux = fnb.load("pocket")
    network, width = made.model.diffusion_model, flux.pipe.transformer.inner_dim
    assert network.sizes["hidden_size"] == width and network.dtype == torch.float32
    recipe = flux.resolve(fnb.Recipe(prompt="a (red) cube"))
    encoded = flux.encode(recipe)
    ((embeds, rest),) = clip.encode_from_tokens_scheduled(clip.tokenize(r"a \(red\) cube"))
    assert torch.equal(embeds, encoded.embeds) and torch.equal(rest["pooled_output"], encoded.pooled)
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    bytes_of_save_image = (vae.decode(latents)[0] * 255).to(torch.uint8)
    assert bytes_of_save_image.numpy().tobytes() == flux.decode(latents)[0].tobytes()


def test_the_package_imports_nothing_of_comfyui():
    root = Path(fnb.__file__).parent
    assert not [path for path in root.rglob("*.py") if "import comfy" in path.read_text(encoding="utf-8")]


def test_the_pack_has_its_own_licence_and_metadata():
    assert "GNU GENERAL PUBLIC LICENSE" in (FOLDER / "LICENSE").read_text()
    assert "[tool.comfy]" in (FOLDER / "pyproject.toml").read_text()
