"""The requests are those of `InferenceClient.text_to_image`, and the double responds with what that method reads.

A change of the shapes of huggingface_hub fails here.
"""

from __future__ import annotations

import pytest

import fluxnb as fnb
from fluxnb.remote.endpoints import endpoint_of, parameters, resolve
from tests.remote.conftest import HUB_TOKEN
from tests.remote.double import REPO

PROVIDERS = ("fal-ai", "together", "replicate", "hf-inference")
RECIPE = fnb.Recipe(prompt="a fox in the snow", seed=3, width=512, height=512, steps=2)


def text_to_image(provider):
    """What the client of huggingface_hub draws for the same parameters."""
    from huggingface_hub import InferenceClient

    endpoint = endpoint_of(f"schnell@{provider}")
    sent = parameters(endpoint, resolve(endpoint, RECIPE))
    named = {name: sent.pop(name) for name in ("seed", "width", "height", "num_inference_steps") if name in sent}
    client = InferenceClient(provider=provider, api_key=HUB_TOKEN, timeout=5)
    return client.text_to_image(RECIPE.prompt, model=REPO, extra_body=sent, **named)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_request_is_that_of_text_to_image(double, provider):
    theirs = text_to_image(provider)
    ours = fnb.Remote(f"schnell@{provider}").draw(RECIPE).image
    assert ours.tobytes() == theirs.convert("RGB").tobytes()
    reference, request = double.paid
    assert (request.path, request.body) == (reference.path, reference.body)
    different = {name for name in {*request.headers, *reference.headers}
                 if request.headers.get(name) != reference.headers.get(name)}  # fmt: skip
    # Nothing compressed, a connection of its own, and a random number for each request.
    assert different <= {"accept-encoding", "connection", "x-amzn-trace-id"}


def test_no_request_to_the_hub_precedes_that_for_a_picture(double):
    fnb.Remote("schnell@hf-inference").draw(RECIPE)
    assert [request.path for request in double.requests] == [f"/hf-inference/models/{REPO}"]


def test_the_provider_s_own_name_of_a_model_can_be_given(double):
    remote = fnb.Remote("schnell@fal-ai:fal-ai/flux-1/schnell")
    assert remote.draw(RECIPE).recipe.revision == "fal-ai/flux-1/schnell"
    assert double.paid[0].path == "/fal-ai/fal-ai/flux-1/schnell"


def test_the_helpers_of_the_library_are_not_changed(double):
    from huggingface_hub.inference._providers import PROVIDERS as helpers

    fnb.Remote("schnell@fal-ai").draw(RECIPE)
    assert "_prepare_mapping_info" not in vars(helpers["fal-ai"]["text-to-image"])


def test_the_request_of_bfl_has_its_own_fields(double):
    fnb.Remote("klein@bfl").draw(RECIPE.replace(steps=4))
    assert double.paid[0].path == "/v1/flux-2-klein-4b"
    assert double.paid[0].body == {"prompt": "a fox in the snow", "seed": 3, "width": 512, "height": 512,
                                   "output_format": "png"}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "variable", "host"),
    [
        ("schnell@fal-ai", "FAL_KEY", "https://fal.run/"),
        ("schnell@together", "TOGETHER_API_KEY", "https://api.together.xyz/"),
        ("schnell@replicate", "REPLICATE_API_TOKEN", "https://api.replicate.com/"),
    ],
)
def test_a_token_of_the_provider_goes_to_the_provider(double, monkeypatch, name, variable, host):
    from fluxnb.remote.client import Client

    monkeypatch.setenv(variable, "own-n0tAToken")
    endpoint = endpoint_of(name)
    message = Client(endpoint, 1.0)._message("a fox", {})
    assert message.url.startswith(host) and message.secrets == ["own-n0tAToken"]
    assert f"https://{endpoint.host}/" == host
