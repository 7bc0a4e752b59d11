"""Prompt encodings, and a warning about the part of a prompt that an encoder truncates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxnb.errors import shorten, warn_caller
from fluxnb.pipeline.compat import silenced

__all__ = ["Encoded", "PromptWarning", "encode_prompt", "warn_of_truncation"]


class PromptWarning(UserWarning):
    """Part of a prompt lies beyond an encoder's limit; the message quotes it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """Encoded prompts: T5's sequences (n, L, D) and CLIP's pooled vectors (n, P)."""

    embeds: Tensor
    pooled: Tensor
    negative_embeds: Tensor | None = None
    negative_pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    @classmethod
    def batch(cls, prompts: Sequence[Encoded]) -> Encoded:
        """Several encoded prompts as one batch; a single one is returned unchanged."""
        if len(prompts) == 1:
            return prompts[0]

        def joined(name: str) -> Tensor | None:
            parts = [getattr(prompt, name) for prompt in prompts]
            return None if parts[0] is None else torch.cat(parts)

        return cls(**{field.name: joined(field.name) for field in dataclasses.fields(cls)})


def encode_prompt(pipe: Any, prompt: str, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """T5's sequence (1, length, D) and CLIP's pooled vector (1, P) of one prompt."""
    # diffusers warns of truncation as well, but quotes the wrong words for T5 (it slices by CLIP's limit).
    with silenced():
        embeds, pooled, _ = pipe.encode_prompt(prompt=prompt, prompt_2=None, max_sequence_length=length, device=device)
    return embeds, pooled


def warn_of_truncation(pipe: Any, prompt: str, length: int) -> None:
    """Warn about the part of a prompt that an encoder truncates, with the caller's line as the warning's place.

    Arguments:
        length: tokens that T5 reads; CLIP's limit is that of its tokenizer.

    Warns:
        PromptWarning: quotes what is lost.
    """
    limits = {
        "CLIP": (pipe.tokenizer, pipe.tokenizer_max_length),
        "T5": (pipe.tokenizer_2, length),
    }
    for name, (tokenizer, limit) in limits.items():
        # A token is at least one character, except the two that mark beginning and end.
        if tokenizer is None or len(prompt) + 2 <= limit:
            continue
        with silenced():
            ids = tokenizer(prompt).input_ids
        if len(ids) > limit:
            lost = tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True)
            warn_caller(
                f"{name} reads {limit} tokens of this prompt's {len(ids)} and ignores {shorten(lost, 200)}. "
                "Put what matters first, or shorten the prompt.",
                PromptWarning,
            )
