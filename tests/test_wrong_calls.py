"""Wrong calls of the public functions: each gives a result or an error in three parts, and never a bare exception."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import ArgumentError, FluxnbError, InputError, UnavailableError
from tests.test_public_api import stub_names

plots, metrics, widgets = fnb.plots, fnb.metrics, fnb.widgets


@pytest.fixture(scope="module")
def records(toy, toy_trajectory, tmp_path_factory) -> SimpleNamespace:
    """A model, records of it, and a folder to write into."""
    folder = tmp_path_factory.mktemp("written")
    sweep = fnb.sweep(toy, prompts="a fox", seeds=[1, 2], steps=[1, 2], keep=fnb.Keep())
    trajectory = toy_trajectory
    png = folder / "fox.png"
    fnb.io.write_png(trajectory.image, png, trajectory.recipe)
    saved = fnb.save(trajectory, folder / "fox.safetensors")
    with_attention = fnb.run(toy, "a fox", steps=1, keep=fnb.Keep(attention="all"))
    return SimpleNamespace(
        picture=Image.new("RGB", (128, 128)),
        flux=toy,
        trajectory=trajectory,
        sweep=sweep,
        folder=folder,
        png=png,
        saved=saved,
        attention=with_attention,
    )


# Calls that a user of diffusers, or one who has forgotten the order of the arguments, makes.
WRONG = {
    "a list in place of one trajectory": lambda r: fnb.filmstrip([r.trajectory]),
    "a trajectory in place of a sweep": lambda r: fnb.contact_sheet(r.trajectory),
    "one trajectory in place of several": lambda r: fnb.compare(r.trajectory),
    "keep=True": lambda r: fnb.run(r.flux, "a", keep=True),
    "one sigma": lambda r: fnb.run(r.flux, "a", sigmas=0.5),
    "a model in place of a trajectory": lambda r: plots.sigma_curve(r.flux),
    "a picture in place of a trajectory": lambda r: plots.path(r.trajectory.image),
    "channels of a model": lambda r: plots.latent_channels(r.flux),
    "velocity of None": lambda r: plots.velocity(None),
    "lock_in of text": lambda r: plots.lock_in("x"),
    "straightness of a model": lambda r: metrics.straightness(r.flux),
    "film of a trajectory by a trajectory": lambda r: fnb.film(r.trajectory, r.trajectory),
    "a model is saved": lambda r: fnb.save(r.flux, "x"),
    "tiny of a number": lambda r: fnb.tiny(3),
    "a list of numbers is explored": lambda r: fnb.explore([1]),
    "a number as prompts": lambda r: fnb.sweep(r.flux, prompts=3),
    "None as prompts": lambda r: fnb.sweep(r.flux, prompts=None),
    "text as seeds": lambda r: fnb.sweep(r.flux, prompts="a", seeds="abc"),
    "a number as store": lambda r: fnb.sweep(r.flux, prompts="a", store=3),
    "a lab with keep=True": lambda r: fnb.lab(r.flux, keep=True),
    "a lab with a number as prompt": lambda r: fnb.lab(r.flux, prompt=3),
    "a number is recorded": lambda r: fnb.recording(3),
    "a recording with keep=True": lambda r: fnb.recording(r.flux, keep=True),
    "a number as on_step": lambda r: fnb.run(r.flux, "a", on_step=3),
    "plan of a number": lambda r: fnb.plan(3),
    "plan of None": lambda r: fnb.plan(None),
    "a number as hardware": lambda r: fnb.plan("schnell", 3),
    "text as size": lambda r: fnb.plan("schnell", size="1024"),
    "text as tensors": lambda r: fnb.Keep(tensors="x"),
    "every=0": lambda r: fnb.Keep(every=0),
    "a number as folder of a store": lambda r: fnb.Store(3),
    # And more of these kinds.
    "the prompt before the model": lambda r: fnb.run("a fox", r.flux),
    "no model": lambda r: fnb.run("a fox"),
    "no prompt": lambda r: fnb.run(r.flux),
    "seeds as text in a list": lambda r: fnb.sweep(r.flux, prompts="a", seeds=["1"]),
    "prompts by position": lambda r: fnb.sweep(r.flux, "a"),
    "rows by position": lambda r: fnb.filmstrip(r.trajectory, ["x"]),
    "a number among prompts": lambda r: fnb.sweep(r.flux, prompts=["a", 3]),
    "an unknown axis": lambda r: fnb.sweep(r.flux, prompts="a", setps=3),
    "no words": lambda r: plots.attention(r.attention, []),
    "an unknown word": lambda r: plots.attention(r.attention, ["dog"]),
    "attention of a run without it": lambda r: plots.attention(r.trajectory),
    "tensors=3": lambda r: fnb.Keep(tensors=3),
    "heads as text": lambda r: fnb.Keep(heads="x"),
    "attention=3.5": lambda r: fnb.Keep(attention=3.5),
    "Keep by position": lambda r: fnb.Keep([0]),
    "Recipe by position": lambda r: fnb.Recipe("a fox"),
    "an unknown field": lambda r: fnb.Recipe(prompt="a", sede=3),
    "a recipe from a mapping": lambda r: fnb.Recipe.from_json({}),
    "versions=3": lambda r: fnb.Recipe(prompt="a").key(3),
    "select by an unknown field": lambda r: r.sweep.select(sede=3),
    "a word that is no text": lambda r: r.attention.attention(None),
    "a page to None": lambda r: r.trajectory.to_html(None),
    "an unknown option of a page": lambda r: r.sweep.to_html("x.html", sizes=3),
    "a page of a model": lambda r: fnb.html.page.write(r.flux, "x.html"),
    "pictures of different sizes": lambda r: metrics.diversity([r.trajectory, r.trajectory.image]),
    "plan of an unknown name": lambda r: fnb.plan("foo"),
    "plan of a missing folder": lambda r: fnb.plan("./foo"),
    "steps=0 in a plan": lambda r: fnb.plan("schnell", "rtx-4090", steps=0),
    "size=100 in a plan": lambda r: fnb.plan("schnell", "rtx-4090", size=100),
    "a model is loaded again": lambda r: fnb.load(r.flux),
    "a preset of a loaded pipeline": lambda r: fnb.load(r.flux.pipe, preset="lean"),
    "an unknown preset of a loaded pipeline": lambda r: fnb.load(r.flux.pipe, preset="lena"),
    "another dtype of a loaded pipeline": lambda r: fnb.load(r.flux.pipe, dtype="bfloat16"),
    "one bit": lambda r: fnb.quantize(r.flux, bits=1),
    "16 bits": lambda r: fnb.quantize(r.flux, bits=16),
    "groups of nothing": lambda r: fnb.quantize(r.flux, group=0),
    "an unknown part": lambda r: fnb.quantize(r.flux, parts=["unet"]),
    "no part": lambda r: fnb.quantize(r.flux, parts=[]),
    "quantize of a name": lambda r: fnb.quantize("pocket", 4),
    "a variant of a loaded pipeline": lambda r: fnb.load(r.flux.pipe, variant="fp16"),
    "a revision of a name": lambda r: fnb.load("pocket", revision="main"),
    "run of an endpoint": lambda r: fnb.run(fnb.Remote("schnell@fal-ai"), "a"),
    "an unknown endpoint": lambda r: fnb.load("schnell@nowhere"),
    "a preset of an endpoint": lambda r: fnb.load("schnell@fal-ai", preset="lean"),
    "a dtype that is no dtype": lambda r: fnb.load("pocket", dtype="int4"),
    "the model is called": lambda r: r.flux("a fox"),
    "the model is moved": lambda r: r.flux.to("cuda"),
    "pictures of a model": lambda r: r.flux.images,
    "a canvas of an unknown shape": lambda r: fnb.canvas("two mons"),
    "a canvas of points in space": lambda r: fnb.canvas([[1, 2, 3]]),
    "a canvas of points outside it": lambda r: fnb.canvas([[1, 20]]),
    "a canvas of too many points": lambda r: fnb.canvas([[0, 0]] * 2001),
    "a shape of no points": lambda r: fnb.widgets.shape("ring", count=0),
    "encode of text": lambda r: r.flux.encode("a fox"),
    "decode of tokens": lambda r: r.flux.decode(r.trajectory.final),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_is_answered_in_three_parts(records, name):
    with pytest.raises(FluxnbError) as caught:
        WRONG[name](records)
    error = caught.value
    assert error.given and error.possible and error.remedy
    assert len(str(error)) < 700 and "\n" not in str(error)


def test_one_index_is_accepted_as_the_steps_to_keep():
    assert fnb.Keep(steps=3).steps == (3,)


# ------------------------------------------------------------------------------------------------------ every argument
# The arguments of a valid call of each function; each is replaced by each of VALUES.
VALUES: dict[str, Any] = {
    "None": None,
    "3": 3,
    "text": "x",
    "a picture": "image",
    "a list": [1, "x"],
    "an object": object(),
}
GOOD: dict[str, Any] = {
    "fnb.load": lambda r: {"model": "./missing", "preset": "auto", "dtype": "auto", "fast": False, "variant": None,
                           "revision": None},
    "fnb.load_pair": lambda r: {"model": "./missing", "teacher": "./missing", "preset": "auto"},
    "fnb.quantize": lambda r: {"flux": r.flux, "bits": 4, "group": 64, "parts": "transformer"},
    "fnb.plan": lambda r: {"model": "schnell", "hardware": "rtx-4090", "preset": "auto", "size": 512, "steps": 4},
    "fnb.run": lambda r: {"flux": r.flux, "prompt": "a fox", "seed": 1, "steps": 1, "height": 64, "width": 64,
                          "guidance": None, "negative": None, "sampler": "euler", "sigmas": None, "shift": None,
                          "keep": fnb.Keep(), "on_step": None},
    "fnb.invert": lambda r: {"flux": r.flux, "picture": r.trajectory, "prompt": "a fox", "steps": 1, "guidance": None,
                             "negative": None, "sigmas": None, "shift": None, "keep": fnb.Keep(), "on_step": None},
    "fnb.recording": lambda r: {"pipe": r.flux, "keep": None, "prompts": None},
    "fnb.sweep": lambda r: {"flux": r.flux, "prompts": "a fox", "seeds": 0, "steps": 1, "store": None, "recipe": None,
                            "keep": None, "batch": 1, "on_step": None, "progress": False, "guidance": None,
                            "height": 64},
    "fnb.stream": lambda r: {"flux": r.flux, "prompts": "a fox", "seeds": 0, "steps": 1, "store": None, "recipe": None,
                             "keep": None, "batch": 1, "on_step": None},
    "fnb.Remote": lambda r: {"name": "schnell@fal-ai", "concurrent": 2, "timeout": 60.0},
    "fnb.plan_sweep": lambda r: {"flux": r.flux, "prompts": "a fox", "seeds": 0, "steps": 1, "store": None,
                                 "recipe": None, "keep": None, "measure": False},
    "fnb.lab": lambda r: {"flux": r.flux, "prompt": "a fox", "store": None, "keep": None},
    "fnb.Recipe": lambda r: {"prompt": "a fox", **{name: None for name in ("negative", "height", "width", "guidance",
                             "sigmas", "shift", "max_sequence_length", "model", "revision", "dtype")},
                             "seed": 0, "steps": 4, "sampler": "euler"},
    "fnb.Keep": lambda r: {"steps": None, "every": 1, "tensors": ("x",), "attention": None, "heads": None},
    "fnb.Axes": lambda r: {"base": fnb.Recipe(prompt="a"), "seed": [1], "steps": [1]},
    "fnb.Axes.of": lambda r: {"base": None, "prompts": "a", "seeds": 0, "steps": 1},
    "fnb.Store": lambda r: {"folder": r.folder / "store"},
    "fnb.filmstrip": lambda r: {"trajectory": r.trajectory, "shows": ["x"], "decode": None, "columns": 4, "ax": None},
    "fnb.compare": lambda r: {"trajectories": [r.trajectory, r.trajectory], "show": "x", "decode": None, "labels": None,
                              "ax": None},
    "fnb.contact_sheet": lambda r: {"sweep": r.sweep, "rows": None, "columns": None, "ax": None},
    "fnb.plots.attention": lambda r: {"trajectory": r.attention, "words": None, "over": "picture", "decode": None,
                                      "columns": 4, "ax": None},
    "fnb.plots.latent_channels": lambda r: {"trajectory": r.trajectory, "step": 0, "show": "x", "ax": None},
    **{f"fnb.plots.{name}": lambda r: {"trajectories": r.trajectory, "ax": None}
       for name in ("lock_in", "path", "sigma_curve", "velocity")},
    "fnb.plots.memory": lambda r: {"courses": {"lean": [(0.0, 1.0), (1.0, 2.0)]}, "peaks": None, "cards": (8,),
                                   "title": "a", "subtitle": "b", "ax": None},
    "fnb.plots.pictures": lambda r: {"rows": [[r.trajectory, None]], "columns": ["a", "b"], "labels": ["c"],
                                     "title": "d", "note": "e", "alt": "f", "size": 1.0, "ax": None},
    "fnb.plots.chart": lambda r: {"columns": 2, "width": 3.0, "height": 2.0, "alt": "a"},
    "fnb.plots.describe": lambda r: {"figure": fnb.filmstrip(r.trajectory), "alt": "a"},
    "fnb.scrub": lambda r: {"trajectories": r.trajectory, "shows": ["x"], "decode": None, "labels": None},
    "fnb.explore": lambda r: {"grid": r.sweep, "shows": ["x"], "decode": None, "size": 64, "folder": r.folder},
    "fnb.canvas": lambda r: {"points": "ring"},
    "fnb.widgets.shape": lambda r: {"name": "ring", "count": 3, "seed": 0},
    "fnb.film": lambda r: {"flux": r.flux, "trajectory": r.trajectory, "what": "x", "by": "linear"},
    "fnb.tiny": lambda r: {"flux": r.flux, "source": r.flux.pipe.vae},
    "fnb.save": lambda r: {"trajectory": r.trajectory, "path": r.folder / "a.safetensors"},
    "fnb.open_trajectory": lambda r: {"path": r.saved},
    "fnb.open_recipe": lambda r: {"png": r.png},
    "fnb.io.encode_png": lambda r: {"image": r.trajectory.image, "recipe": None, "numerics": "exact"},
    "fnb.io.write_png": lambda r: {"image": r.trajectory.image, "path": r.folder / "b.png", "recipe": None,
                                   "numerics": "exact"},
    "fnb.import_recipe": lambda r: {"file": r.png},
    "fnb.comfy_workflow": lambda r: {"recipe": fnb.Recipe(prompt="a", model="schnell", height=64, width=64),
                                     "browser": False},
    **{f"fnb.metrics.{name}": lambda r: {"trajectory": r.trajectory}
       for name in ("chord", "coarseness", "distance_to_final", "drift", "length", "length_over_chord", "straightness",
                    "turning_angle", "velocity_norm")},
    "fnb.metrics.lock_in": lambda r: {"trajectory": r.trajectory, "share": 0.1},
    "fnb.metrics.diversity": lambda r: {"pictures": [r.trajectory, r.trajectory]},
    "fnb.metrics.principal_path": lambda r: {"trajectory": r.trajectory, "count": 2},
    "fnb.metrics.principal": lambda r: {"points": r.trajectory.final, "count": 2},
    "flow.schedule": lambda r: {"steps": 4, "sigmas": None, "shift": 1.0},
    "flow.dynamic_shift": lambda r: {"tokens": 256},
    **{f"flow.{name}": lambda r: {"x": r.trajectory.final, "v": r.trajectory.final, "sigma": 0.5}
       for name in ("clean_estimate", "noise_estimate")},
    "flow.interpolate": lambda r: {"x0": r.trajectory.final, "noise": r.trajectory.final, "sigma": 0.5},
    "flow.velocity_target": lambda r: {"x0": r.trajectory.final, "noise": r.trajectory.final},
    "flow.euler_step": lambda r: {"x": r.trajectory.final, "v": r.trajectory.final, "sigma": 1.0, "sigma_next": 0.5},
    "flow.share_prefixes": lambda r: {"schedules": [(1.0, 0.5, 0.0), (1.0, 0.0)]},
    "flow.shared_evaluations": lambda r: {"schedules": [(1.0, 0.5, 0.0), (1.0, 0.0)]},
    "fnb.Claims": lambda r: {"notebook": "seeds", "model": "pocket", "prompts": ["a fox"], "seeds": range(2),
                             "about": ["pocket"]},
    "fnb.metrics.Count": lambda r: {"hits": 3, "trials": 4},
    "fnb.judge": lambda r: {"pictures": r.picture},
    "fnb.check": lambda r: {"exercise": "guidance-2", "answer": 56},
    "fnb.exercises": lambda r: {"notebook": "guidance"},
    "r.trajectory.to_html": lambda r: {"path": r.folder / "a.html", "shows": ["x"], "decode": None},
    "r.trajectory.save_png": lambda r: {"path": r.folder / "c.png"},
    "r.trajectory.save": lambda r: {"path": r.folder / "c.safetensors"},
    "r.attention.attention": lambda r: {"word": "fox"},
    "r.trajectory.steps[0].latents": lambda r: {"what": "x"},
    "r.sweep.to_html": lambda r: {"path": r.folder / "b.html", "shows": ["x"], "decode": None, "size": 64},
    "r.sweep.select": lambda r: {"seed": 1},
    "r.flux.with_defaults": lambda r: {"size": 64, "steps": 4, "guidance_kind": "none", "guidance": None},
    "fnb.Recipe.from_json": lambda r: {"text": r.trajectory.recipe.to_json()},
    "r.trajectory.recipe.replace": lambda r: {"seed": 3, "steps": 4},
    "r.trajectory.recipe.key": lambda r: {"versions": None, "numerics": "exact"},
}  # fmt: skip
# Names whose values are made by fluxnb and not by its users.
MADE_HERE = {
    "Canvas", "Cell", "Claim", "Exercise", "Explorer", "Film", "Flux", "Imported", "Lab", "LoadedPair", "Plan",
    "Reading", "Recorder", "Scrubber", "Step", "Stream", "Sweep", "Trajectory", "Verdict",
}  # fmt: skip
NOT_CALLED = {"STOP", "last", "flow", "io", "metrics", "plots", "widgets"}


def resolved(path: str, r: Any) -> Any:
    return eval(path, {"fnb": fnb, "flow": fnb.flow, "r": r})


def test_every_public_function_is_tested():
    public = {f"fnb.{name}" for name in stub_names("fluxnb")}
    for module in ("plots", "metrics", "widgets", "io", "flow"):
        prefix = "flow" if module == "flow" else f"fnb.{module}"
        public |= {f"{prefix}.{name}" for name in getattr(fnb, module).__all__}
    classes = {name for name in public if name.endswith(("Error", "Warning"))}
    ignored = classes | {f"fnb.{name}" for name in MADE_HERE | NOT_CALLED}
    tested = {name.rpartition(".")[2] for name in GOOD} | {name.rpartition(".")[2] for name in MADE_HERE}
    assert sorted(name for name in public - ignored if name.rpartition(".")[2] not in tested) == []


@pytest.mark.parametrize("path", GOOD)
def test_the_valid_call_works(records, path):
    if path not in ("fnb.load", "fnb.load_pair"):
        call(path, records, GOOD[path](records))


def call(path: str, r: Any, arguments: dict[str, Any]) -> Any:
    function = resolved(path, r)
    positional = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.POSITIONAL_ONLY]
    result = function(*(arguments[name] for name in positional), **arguments)
    if path == "fnb.stream":
        return list(result)
    if path in ("fnb.explore", "fnb.lab"):
        result.close()
    return result


@pytest.mark.moderate
@pytest.mark.parametrize("path", GOOD)
def test_a_wrong_value_of_any_argument_gives_a_result_or_an_error_in_three_parts(records, path, monkeypatch):
    monkeypatch.chdir(records.folder)  # text is a path in some calls
    for name, (label, value) in itertools.product(GOOD[path](records), VALUES.items()):
        arguments = {**GOOD[path](records), name: records.trajectory.image if label == "a picture" else value}
        try:
            call(path, records, arguments)
        except FluxnbError as error:
            assert error.given and error.remedy, f"{path}({name}={label}): {error}"
        except Exception as error:
            pytest.fail(f"{path}({name}={label}): {type(error).__name__}: {error}")


@pytest.mark.parametrize("path", [path for path in GOOD if not path.startswith("r.")])
def test_an_unknown_keyword_and_too_many_arguments_are_answered(records, path):
    function = resolved(path, records)
    with pytest.raises(ArgumentError) as caught:
        function(**GOOD[path](records), nonsense=3)
    assert "nonsense" in caught.value.given
    with pytest.raises(ArgumentError):
        function(*([None] * 30))


# ------------------------------------------------------------------------------------------------ keywords of diffusers
KEYWORDS: dict[str, Any] = {
    "num_inference_steps": 4,
    "guidance_scale": 3.5,
    "generator": None,
    "negative_prompt": "blurry",
    "torch_dtype": None,
    "device": "cuda",
    "batch_size": 2,
    "num_images_per_prompt": 2,
    "callback_on_step_end": print,
    "output_type": "pil",
}
ENTRY_POINTS = ("load", "run", "sweep", "stream", "plan_sweep", "lab", "explore", "recording")


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_a_keyword_of_diffusers_is_answered_with_ours(records, name, keyword):
    import torch

    value = {"generator": torch.Generator().manual_seed(7), "torch_dtype": torch.bfloat16}.get(
        keyword, KEYWORDS[keyword]
    )
    with pytest.raises(ArgumentError) as caught:
        getattr(fnb, name)(**GOOD[f"fnb.{name}"](records) | {keyword: value})
    error = caught.value
    assert keyword in error.given and error.possible
    typed = error.remedy.removeprefix("type ")
    ours = {"num_inference_steps": "steps=4", "guidance_scale": "guidance=3.5", "generator": "=7",
            "negative_prompt": "negative='blurry'", "torch_dtype": 'dtype="bfloat16"', "device": 'preset="auto"',
            "batch_size": "batch=2", "num_images_per_prompt": "seeds=range(2)", "callback_on_step_end": "on_step=",
            "output_type": "flux.pipe("}[keyword]  # fmt: skip
    assert ours in typed
    compile(typed if not typed.startswith("with ") else typed + "\n", "remedy", "exec")


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"prompts": ["a", "b"]}, "fnb.sweep(flux, prompts=['a', 'b'])"),
        ({"seeds": [1, 2]}, "seeds=[1, 2])"),
        ({"seeds": 3}, "seed=3"),
        ({"max_steps": 3}, "steps=3"),
        ({"xyzzy": 3}, "leave xyzzy out"),
    ],
)
def test_a_keyword_of_run_that_does_not_exist_is_answered(records, given, remedy):
    with pytest.raises(ArgumentError) as caught:
        fnb.run(records.flux, "a fox", **given)
    assert remedy in caught.value.remedy


# ----------------------------------------------------------------------------------------------------------------- Flux
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("to", "flux.pipe"),
        ("images", 'fnb.run(flux, "a fox").image'),
        ("transformer", "flux.pipe.transformer"),
        ("load_lora_weights", "flux.pipe.load_lora_weights"),
        ("sweep", "fnb.sweep(flux"),
        ("resolv", "flux.resolve"),
        ("xyzzy", "help(fnb.Flux)"),
    ],
)
def test_an_unknown_attribute_of_a_model_is_answered_and_is_an_attribute_error(toy, name, remedy):
    assert not hasattr(toy, name)
    with pytest.raises(UnavailableError) as caught:
        getattr(toy, name)
    assert remedy in caught.value.remedy and isinstance(caught.value, AttributeError)


def test_a_model_that_is_called_names_run(toy):
    with pytest.raises(ArgumentError, match=r"Type fnb.run\(flux, 'a fox'\)"):
        toy("a fox", num_inference_steps=4)


def test_a_model_can_be_copied_and_inspected(toy):
    import copy

    assert copy.copy(toy).pipe is toy.pipe
    assert "pipe" in dict(inspect.getmembers(toy))


# --------------------------------------------------------------------------------------------------------------- values
@pytest.mark.moderate
def test_numbers_of_numpy_and_torch_and_whole_numbers_as_floats_are_accepted(records):
    import numpy as np
    import torch

    assert len(fnb.sweep(records.flux, prompts=("a",), seeds=np.arange(2), steps=np.int64(1))) == 2
    assert len(fnb.sweep(records.flux, prompts=iter(["a"]), seeds=torch.arange(2), steps=1)) == 2
    assert metrics.lock_in(records.trajectory, share=1) >= 0


def test_values_survive_pickle_copy_and_replace():
    import copy
    import dataclasses
    import pickle

    for value in (fnb.Recipe(prompt="a fox"), fnb.Keep(every=2), fnb.plan("schnell", "rtx-4090")):
        assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == dataclasses.replace(value) == value
    with pytest.raises(ArgumentError, match="Keep"):
        dataclasses.replace(fnb.Keep(), evry=2)
    with pytest.raises(InputError):
        dataclasses.replace(fnb.Keep(), every=0)


def test_every_example_of_a_remedy_is_python():
    from fluxnb.arguments import EXAMPLES

    for name, text in EXAMPLES.items():
        compile(text, name, "exec")
        assert re.match(rf"{name} ?=", text)


def test_a_path_may_start_with_a_tilde(records, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fnb.save(records.trajectory, "~/fox") == tmp_path / "fox.safetensors"
    assert fnb.open_trajectory("~/fox.safetensors").recipe == records.trajectory.recipe
    assert Path(records.trajectory.to_html("~/fox.html")) == tmp_path / "fox.html"
