"""Prompt encodings, and a warning about the part of a prompt that an encoder truncates."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxnb.errors import shorten, warn_caller
from fluxnb.pipeline.compat import silenced

__all__ = ["Encoded", "PromptWarning", "encode_prompt", "truncations", "unknown_words", "warn_of_truncation"]

WORD_VOCABULARY = 5000  # tokens; a smaller vocabulary has the words of a small model, each as one token


class PromptWarning(UserWarning):
    """Part of a prompt lies beyond an encoder's limit, or the model was not trained on a word; it is quoted."""


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
    for text in truncations(pipe, prompt, length):
        warn_caller(text, PromptWarning)


def truncations(pipe: Any, prompt: str, length: int) -> list[str]:
    """For each encoder that truncates the prompt a sentence that quotes what is lost.

    Arguments:
        length: tokens that T5 reads; CLIP's limit is that of its tokenizer.
    """
    found = []
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
            found.append(
                f"{name} reads {limit} tokens of this prompt's {len(ids)} and ignores {shorten(lost, 200)}. "
                "Put what matters first, or shorten the prompt."
            )
    return found


def unknown_words(pipe: Any, prompt: str) -> list[str]:
    """The words of a prompt that the T5 tokenizer has no tokens for, in order.

    For a small model, whose vocabulary holds each known word as one token, these are also the words that are spelled
    out in several tokens, except quoted ones, which are lettering.
    """
    tokenizer = pipe.tokenizer_2
    if tokenizer is None:
        return []
    has_words = tokenizer.vocab_size < WORD_VOCABULARY
    unquoted = re.sub(r"[\"“”][^\"“”]*[\"“”]", " ", prompt) if has_words else prompt
    unknown = []
    for word in dict.fromkeys(re.findall(r"[^\s,.;:!?()]+", unquoted)):
        with silenced():
            ids = [id for id in tokenizer(word, add_special_tokens=False).input_ids if tokenizer.decode([id]).strip()]
        if tokenizer.unk_token_id in ids or (has_words and len(ids) > 1):
            unknown.append(word)
    return unknown
