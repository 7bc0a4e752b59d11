from __future__ import annotations

import pytest

from tests.remote.double import Double

HUB_TOKEN = "hf_n0tAToken"
BFL_TOKEN = "bfl-n0tAToken"
TOKENS = (HUB_TOKEN, BFL_TOKEN)


@pytest.fixture
def double(monkeypatch):
    """The double, in place of the hub's router and of BFL's API, with tokens for both."""
    from huggingface_hub import constants
    from huggingface_hub.inference._providers import PROVIDERS

    from fluxnb.remote import client, handle

    with Double() as serving:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", serving.url)
        monkeypatch.setattr(constants, "INFERENCE_PROXY_TEMPLATE", serving.url + "/{provider}")
        helper = PROVIDERS["hf-inference"]["text-to-image"]  # has formatted the template when it was imported
        monkeypatch.setattr(helper, "base_url", f"{serving.url}/hf-inference")
        monkeypatch.setattr(client, "BFL", serving.url)
        monkeypatch.setattr(client, "PAUSES", (0.01, 0.01, 0.01))
        monkeypatch.setattr(handle, "POLL", 0.01)
        for variable in ("FAL_KEY", "TOGETHER_API_KEY", "REPLICATE_API_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
        monkeypatch.setenv("BFL_API_KEY", BFL_TOKEN)
        yield serving
