"""Names, the table of what each endpoint honors, refusals before a request, and the plan."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

import fluxnb as fnb
from fluxnb.errors import InputError, UnavailableError
from fluxnb.remote.endpoints import ENDPOINTS, EndpointName, endpoint_of, parameters, resolve

NAMES = [endpoint.name for endpoint in ENDPOINTS]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing in this file sends a request."""
    from fluxnb.remote import client

    def fail(*_, **__):
        pytest.fail("a request was sent")

    monkeypatch.setattr(client, "exchange", fail)
    monkeypatch.setenv("HF_TOKEN", "hf_n0tAToken")


def three_parts(problem) -> str:
    assert problem.given and problem.possible and problem.remedy
    return str(problem)


@pytest.mark.parametrize("name", NAMES)
def test_load_gives_a_remote(name):
    remote = fnb.load(name)
    assert isinstance(remote, fnb.Remote) and remote.model == name
    assert repr(remote) == f"Remote({name!r}, {endpoint_of(name).id})"


def test_a_name_of_another_form_is_no_endpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schnell@fal-ai").mkdir()
    for name in ("schnell", "user/model", "./schnell@fal-ai", "schnell@fal-ai", Path("schnell@fal-ai"), 3, None):
        assert endpoint_of(name) is None


@pytest.mark.parametrize("name", ["dev@fal-ai", "schnell@bfl", "schnell@mystic.ai", "schnell@nebius"])
def test_an_unknown_endpoint_is_an_error_that_lists_the_others(name):
    for function in (fnb.load, fnb.plan, fnb.Remote):
        with pytest.raises(InputError) as raised:
            function(name)
        assert all(known in three_parts(raised.value) for known in NAMES)


@pytest.mark.parametrize(
    "options", [{"preset": "lean"}, {"dtype": "bfloat16"}, {"fast": True}, {"variant": "fp16"}, {"revision": "main"}]
)
def test_load_refuses_arguments_about_weights(options):
    with pytest.raises(InputError, match=r"Leave \w+ out"):
        fnb.load("schnell@fal-ai", **options)


@pytest.mark.parametrize("options", [{"concurrent": 0}, {"concurrent": 33}, {"timeout": 0}, {"timeout": float("nan")}])
def test_a_number_out_of_range_is_refused(options):
    with pytest.raises(InputError):
        fnb.Remote("schnell@fal-ai", **options)


# -------------------------------------------------------------------------------------------------------------- recipes
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sigmas", (1.0, 0.75, 0.5, 0.25)),
        ("shift", 3.0),
        ("sampler", "renoise"),
        ("max_sequence_length", 128),
        ("negative", "blurry"),
        ("guidance", 3.5),
        ("seed", 2**53),
        ("steps", 60),
    ],
)
def test_a_value_that_an_endpoint_does_not_honor_is_refused(name, field, value):
    remote = fnb.load(name)
    with pytest.raises(InputError) as raised:
        fnb.sweep(remote, prompts="a fox", **({"seeds": value} if field == "seed" else {field: value}))
    assert field in three_parts(raised.value)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=NAMES)
def test_the_steps_of_the_table_are_sent_and_others_refused(endpoint):
    for steps in range(1, 60):
        recipe = fnb.Recipe(prompt="a", steps=steps)
        if endpoint.steps is not None and steps in endpoint.steps:
            assert parameters(endpoint, resolve(endpoint, recipe))["num_inference_steps"] == steps
        elif steps == endpoint.defaults.steps:
            assert "num_inference_steps" not in parameters(endpoint, resolve(endpoint, recipe))
        else:
            with pytest.raises(InputError, match=f"steps={steps}"):
                resolve(endpoint, recipe)


def test_replicate_draws_its_aspect_ratios_at_two_sizes():
    endpoint = endpoint_of("schnell@replicate")
    assert len(endpoint.sizes) == 22
    for (width, height), requested in endpoint.sizes.items():
        sent = parameters(endpoint, resolve(endpoint, fnb.Recipe(prompt="a", width=width, height=height)))
        assert requested.items() <= sent.items() and "width" not in sent
        assert (sent["go_fast"], sent["output_format"]) == (False, "png")
        left, right = map(int, requested["aspect_ratio"].split(":"))
        assert abs(width / height - left / right) < 0.06 * left / right
    with pytest.raises(InputError, match="width=1344, height=768"):
        resolve(endpoint, fnb.Recipe(prompt="a", width=1360, height=768))


def test_an_endpoint_without_seeds_refuses_an_axis_of_seeds():
    import dataclasses

    endpoint = dataclasses.replace(ENDPOINTS[0], seeds=False)
    assert "seed" not in parameters(endpoint, resolve(endpoint, fnb.Recipe(prompt="a")))
    with pytest.raises(InputError, match="takes no seed"):
        resolve(endpoint, fnb.Recipe(prompt="a", seed=1))


def test_a_recipe_of_a_local_model_can_be_drawn_by_an_endpoint():
    local = fnb.Recipe(prompt="a fox", model="pocket-base", guidance=1.5, negative="", max_sequence_length=48)
    resolved = fnb.load("schnell@fal-ai").resolve(local)
    assert (resolved.guidance, resolved.negative, resolved.max_sequence_length) == (None, None, 256)
    assert (resolved.model, resolved.revision, resolved.dtype) == ("schnell@fal-ai", "fal-ai/flux/schnell", "remote")


def test_the_files_of_a_remote_recipe_claim_no_local_model():
    from fluxnb.io.a1111 import parameters as text_of

    recipe = fnb.load("schnell@fal-ai").resolve(fnb.Recipe(prompt="a fox"))
    with pytest.raises(InputError, match="schnell@fal-ai"):
        fnb.comfy_workflow(recipe)
    text = text_of(recipe, "remote")
    assert "Model: schnell@fal-ai" in text and "Numerics: remote" in text


def test_a_recipe_of_an_endpoint_is_sampled_here_under_the_name_of_the_local_model(toy):
    recipe = fnb.load("schnell@fal-ai").resolve(fnb.Recipe(prompt="a fox", width=32, height=32, steps=1))
    resolved = fnb.run(toy, recipe).recipe
    assert (resolved.model, resolved.dtype) == (toy.model, "float32")


def test_a_model_is_not_loaded_in_the_number_format_of_an_endpoint():
    with pytest.raises(InputError, match="dtype='remote'"):
        fnb.load("pocket", dtype="remote")


# ----------------------------------------------------------------------------------------------------- what is refused
def test_everything_about_steps_is_refused_with_what_to_do_instead():
    remote = fnb.load("schnell@fal-ai")
    calls = {
        "run": lambda: fnb.run(remote, "a fox"),
        "recording": lambda: fnb.recording(remote),
        "pipe": lambda: fnb.recording(remote.pipe),
        "decode": lambda: remote.decode,
        "scrub": lambda: fnb.scrub(remote),
        "keep": lambda: fnb.sweep(remote, prompts="a fox", keep=fnb.Keep()),
        "attention": lambda: fnb.stream(remote, prompts="a fox", keep=fnb.Keep(attention="all")),
        "batch": lambda: fnb.sweep(remote, prompts="a fox", batch=4),
        "on_step": lambda: fnb.sweep(remote, prompts="a fox", on_step=print),
        "measure": lambda: fnb.plan_sweep(remote, prompts="a fox", measure=True),
        "lab": lambda: fnb.lab(remote, keep=fnb.Keep()),
        "filmstrip": lambda: fnb.filmstrip(remote),
        "save": lambda: fnb.save(remote, "fox.safetensors"),
        "tiny": lambda: fnb.tiny(remote, "models/taef1"),
    }
    for name, call in calls.items():
        with pytest.raises(InputError) as raised:
            call()
        text = three_parts(raised.value)
        assert "finished picture alone" in text and "fnb.sweep" in text and 'fnb.load("schnell")' in text, name


def test_a_missing_attribute_is_an_attribute_error():
    remote = fnb.load("schnell@fal-ai")
    assert not hasattr(remote, "pipe")
    with pytest.raises(UnavailableError):
        _ = remote.pipe


def test_a_missing_token_is_an_error_before_the_request(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for name, variables in {"schnell@fal-ai": ("FAL_KEY", "HF_TOKEN"), "klein@bfl": ("BFL_API_KEY",)}.items():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
        with pytest.raises(InputError) as raised:
            fnb.sweep(fnb.load(name), prompts="a fox", steps=4)
        assert all(variable in three_parts(raised.value) for variable in variables)


def test_a_token_with_a_line_end_is_refused(monkeypatch):
    monkeypatch.setenv("FAL_KEY", "k3y\r\nX-Injected: 1")
    with pytest.raises(InputError) as raised:
        fnb.load("schnell@fal-ai").draw(fnb.Recipe(prompt="a fox"))
    assert "FAL_KEY" in three_parts(raised.value) and "k3y" not in str(raised.value)


# ----------------------------------------------------------------------------------------------------------------- plan
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_states_host_token_and_what_is_sent(name, monkeypatch):
    endpoint = endpoint_of(name)
    for variable in endpoint.variables:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "missing")
    plan = fnb.plan(name)
    text = repr(plan)
    assert endpoint.host in text and "paid" in text and "prompt, seed, size" in text and endpoint.id in text
    assert all(variable in text for variable in endpoint.variables) and "none is set" in text
    assert ("steps" in text.split("sent")[1].split("\n")[0]) == (endpoint.steps is not None)
    assert (plan.preset, plan.vram_gib, plan.ram_gib, plan.exact, plan.refused) == ("endpoint", 0.0, 0.0, False, ())
    assert "seeds there" in text or "that seed here" in text
    assert "<pre>" in plan._repr_html_()


def test_a_plan_names_the_token_in_use_without_its_value(monkeypatch):
    assert "HF_TOKEN is set" in repr(fnb.plan("schnell@fal-ai")) and "router.huggingface.co" in repr(
        fnb.plan("schnell@fal-ai")
    )
    monkeypatch.setenv("FAL_KEY", "k3y")
    text = repr(fnb.plan("schnell@fal-ai"))
    assert "FAL_KEY is set" in text and "fal.run" in text and "k3y" not in text


def test_a_plan_checks_size_steps_and_preset():
    assert (fnb.plan("schnell@fal-ai", size=512, steps=2).size, fnb.plan("schnell@fal-ai").steps) == (512, 4)
    for options in ({"steps": 13}, {"size": 500}, {"preset": "lean"}):
        with pytest.raises(InputError):
            fnb.plan("schnell@fal-ai", **options)


def test_the_command_line_prints_the_plan_of_an_endpoint(capsys):
    from fluxnb.__main__ import main

    assert main(["plan", "klein@bfl"]) == 0
    text = capsys.readouterr().out
    assert "api.bfl.ai" in text and "BFL_API_KEY" in text


def test_the_names_for_type_checkers_are_those_of_the_table():
    assert get_args(EndpointName) == tuple(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_request_of_a_recipe_holds_what_is_sent_and_no_token(name, monkeypatch):
    monkeypatch.setenv("BFL_API_KEY", "bfl-n0tAToken")
    request = fnb.load(name).request_of(fnb.Recipe(prompt="a fox", seed=3))
    assert request["url"].startswith("https://")
    assert "a fox" in str(request["body"]) and "n0tAToken" not in str(request) and "placeholder" not in str(request)


def test_the_request_of_a_recipe_goes_to_the_host_of_the_token_in_use(monkeypatch):
    remote, recipe = fnb.load("schnell@fal-ai"), fnb.Recipe(prompt="a fox")
    assert remote.request_of(recipe)["url"] == "https://router.huggingface.co/fal-ai/fal-ai/flux/schnell"
    monkeypatch.setenv("FAL_KEY", "n0tAToken")
    assert remote.request_of(recipe)["url"] == "https://fal.run/fal-ai/flux/schnell"


def test_the_request_of_a_recipe_that_is_not_honored_is_an_error():
    with pytest.raises(InputError, match="takes 1 to 12"):
        fnb.load("schnell@fal-ai").request_of(fnb.Recipe(prompt="a fox", steps=28))


def test_a_prompt_that_may_be_longer_than_schnell_reads_has_a_warning():
    remote = fnb.load("schnell@together")
    assert remote.length_warning("a fox in the snow") == ""
    assert "reads 256" in remote.length_warning("a fox in the snow " * 60)
    assert fnb.load("klein@bfl").length_warning("a fox in the snow " * 60) == ""  # its encoder is another
