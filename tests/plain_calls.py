"""The plain diffusers call that a run is held against, and a counter of the network's evaluations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from fluxnb.records.recipe import Recipe


def plain_call(pipe: Any, recipe: Recipe, **more: Any) -> Any:
    """One picture as a diffusers user would make it."""
    import torch

    options: dict[str, Any] = {} if recipe.sigmas is None else {"sigmas": list(recipe.sigmas)}
    return pipe(
        recipe.prompt,
        height=recipe.height,
        width=recipe.width,
        num_inference_steps=recipe.steps,
        generator=torch.Generator("cpu").manual_seed(recipe.seed),
        max_sequence_length=recipe.max_sequence_length,
        **{**options, **more},
    ).images[0]


@contextlib.contextmanager
def counted(pipe: Any) -> Iterator[dict[str, int]]:
    """How often the transformer, the T5 encoder and the decoder were called inside the block."""
    counts = {"transformer": 0, "text_encoder_2": 0, "decoder": 0}
    parts = {"transformer": pipe.transformer, "text_encoder_2": pipe.text_encoder_2, "decoder": pipe.vae.decoder}

    def counter(name: str) -> Any:
        def count(*_: Any) -> None:
            counts[name] += 1

        return count

    hooks = [part.register_forward_hook(counter(name)) for name, part in parts.items()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
