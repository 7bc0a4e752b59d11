"""The requests of huggingface_hub's InferenceClient, built without sending them.

`InferenceClient.text_to_image` reads responses of any size, waits for pictures without a limit and follows redirects
with its token. Its code for the providers is therefore used for the request alone, from these private names:
`inference._providers.get_provider_helper`, the helper's `_prepare_mapping_info`, which would request the provider's
name of the model from the hub, and its `prepare_request`. `tests/remote/test_compat.py` compares the requests with
those that `text_to_image` sends.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fluxnb.remote.endpoints import Endpoint
from fluxnb.remote.exchange import Message

__all__ = ["hub_message"]

TASK = "text-to-image"


def hub_message(endpoint: Endpoint, prompt: str, parameters: Mapping[str, Any], token: str) -> Message:
    """The request that `InferenceClient(provider=..., api_key=token).text_to_image` sends for a prompt."""
    from huggingface_hub.hf_api import InferenceProviderMapping
    from huggingface_hub.inference._providers import get_provider_helper

    mapping = InferenceProviderMapping(
        provider=endpoint.provider, hf_model_id=endpoint.repo, providerId=endpoint.id, status="live", task=TASK
    )
    # The library has one helper per provider for the whole process.
    helper = copy.copy(get_provider_helper(endpoint.provider, task=TASK, model=endpoint.repo))  # type: ignore[arg-type]
    helper._prepare_mapping_info = lambda model: mapping  # type: ignore[method-assign]
    request = helper.prepare_request(
        inputs=prompt,
        parameters=dict(parameters),
        headers={"accept": "image/png"},
        model=endpoint.repo,
        api_key=token,
    )
    body = request.json if isinstance(request.json, Mapping) else {}
    return Message(url=str(request.url), body=body, headers={str(k): str(v) for k, v in request.headers.items()})
