"""Prompt encodings, and a warning about the part of a prompt that an encoder truncates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxnb.errors import shorten, warn_caller
from fluxnb.families.family import Family
from fluxnb.pipeline.compat import silenced

__all__ = ["Encoded", "PromptWarning", "encode_prompt", "truncations", "warn_of_truncation"]


class PromptWarning(UserWarning):
    """Part of a prompt lies beyond an encoder's limit, or the model was not trained on a word; it is quoted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """Encoded prompts.

    Arguments:
        embeds: the sequences of the text encoder (n, L, D), or a list of n sequences (L, D) of different lengths.
        pooled: a vector for each prompt (n, P), None for families without one.
        negative_embeds, negative_pooled: the same of the negative prompts, None without true CFG.
    """

    embeds: Tensor | list[Tensor]
    pooled: Tensor | None = None
    negative_embeds: Tensor | list[Tensor] | None = None
    negative_pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    @classmethod
    def batch(cls, prompts: Sequence[Encoded]) -> Encoded:
        """Several encoded prompts as one batch; a single one is returned unchanged."""
        if len(prompts) == 1:
            return prompts[0]

        def joined(name: str) -> Tensor | list[Tensor] | None:
            parts = [getattr(prompt, name) for prompt in prompts]
            if isinstance(parts[0], list):
                return [each for part in parts for each in part]
            return None if parts[0] is None else torch.cat(parts)

        return cls(**{field.name: joined(field.name) for field in dataclasses.fields(cls)})

    def arguments(self) -> dict[str, Any]:
        """The keywords of a pipeline's call for these prompts."""
        named = {
            "prompt_embeds": self.embeds,
            "pooled_prompt_embeds": self.pooled,
            "negative_prompt_embeds": self.negative_embeds,
            "negative_pooled_prompt_embeds": self.negative_pooled,
        }
        return {name: value for name, value in named.items() if value is not None}


def encode_prompt(
    pipe: Any, family: Family, prompt: str, length: int, device: torch.device
) -> tuple[Tensor | list[Tensor], Tensor | None]:
    """The embeddings of one prompt and its pooled vector, see `Encoded`."""
    # diffusers warns of truncation as well, but quotes the wrong words for T5 (it slices by CLIP's limit).
    with silenced():
        return family.encode(pipe, prompt, length, device)


def warn_of_truncation(pipe: Any, family: Family, prompt: str, length: int) -> None:
    """Warn about the part of a prompt that an encoder truncates, with the caller's line as the warning's place.

    Arguments:
        length: tokens that the main text encoder reads.

    Warns:
        PromptWarning: quotes what is lost.
    """
    for text in truncations(pipe, family, prompt, length):
        warn_caller(text, PromptWarning)


def truncations(pipe: Any, family: Family, prompt: str, length: int) -> list[str]:
    """For each encoder that truncates the prompt a sentence that quotes what is lost.

    Arguments:
        length: tokens that the main text encoder reads.
    """
    found: list[str] = []
    if not prompt:  # a negative prompt; of a template alone nothing is lost
        return found
    for limit in family.limits(pipe, prompt, length):
        tokenizer = limit.tokenizer
        # A token is at least one character, except the two that mark beginning and end.
        if tokenizer is None or len(limit.text) + 2 <= limit.tokens:
            continue
        with silenced():
            ids = tokenizer(limit.text).input_ids
        if len(ids) > limit.tokens:
            # Of a template, what follows the prompt is lost as well, and is not quoted.
            after = limit.text.rpartition(prompt)[2] if limit.text != prompt else ""
            first, last = (limit.tokens, len(ids)) if after else (limit.tokens - 1, -1)
            lost = tokenizer.decode(ids[first:last], skip_special_tokens=True)
            lost = lost.removesuffix(tokenizer.decode(tokenizer(after).input_ids, skip_special_tokens=True))
            found.append(
                f"{limit.encoder} reads {limit.tokens} tokens of this prompt's {len(ids)} and ignores "
                f"{shorten(lost, 200)}. Put what matters first, or shorten the prompt."
            )
    return found
