"""Prompts as the transformer takes them, and a warning about what an encoder never sees of one."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import types
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxnb.errors import shorten

__all__ = ["Encoded", "PromptWarning", "embed", "warn_of_cut"]


class PromptWarning(UserWarning):
    """Part of a prompt is beyond what an encoder reads; the message quotes it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """Prompts as the transformer takes them: T5's sequences (n, L, D) and CLIP's pooled vectors (n, P)."""

    embeds: Tensor
    pooled: Tensor
    negative_embeds: Tensor | None = None
    negative_pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    @classmethod
    def together(cls, several: Sequence[Encoded]) -> Encoded:
        """Several prompts as one batch; a single one is given back as it is."""
        if len(several) == 1:
            return several[0]

        def joined(name: str) -> Tensor | None:
            parts = [getattr(each, name) for each in several]
            return None if parts[0] is None else torch.cat(parts)

        return cls(**{field.name: joined(field.name) for field in dataclasses.fields(cls)})


def embed(pipe: Any, prompt: str, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """T5's sequence (1, length, D) and CLIP's pooled vector (1, P) of one prompt."""
    # diffusers tells of the cut too, but quotes the wrong words for T5 (it slices by CLIP's limit).
    with _silent("diffusers.pipelines.flux.pipeline_flux"):
        embeds, pooled, _ = pipe.encode_prompt(prompt=prompt, prompt_2=None, max_sequence_length=length, device=device)
    return embeds, pooled


def warn_of_cut(pipe: Any, prompt: str, length: int) -> None:
    """Quote what an encoder never sees of a prompt, in a PromptWarning at the reader's own line.

    Arguments:
        length: tokens that T5 reads; CLIP's number stands in its tokenizer.
    """
    limits = {
        "CLIP": (pipe.tokenizer, pipe.tokenizer_max_length),
        "T5": (pipe.tokenizer_2, length),
    }
    for name, (tokenizer, limit) in limits.items():
        # A token is at least one character, but for the two that mark beginning and end.
        if tokenizer is None or len(prompt) + 2 <= limit:
            continue
        with _silent("transformers.tokenization_utils_base"):
            ids = tokenizer(prompt).input_ids
        if len(ids) > limit:
            lost = tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True)
            warnings.warn(
                f"{name} reads {limit} tokens of this prompt's {len(ids)} and never sees {shorten(lost, 200)}. "
                "Put what matters first, or shorten it.",
                PromptWarning,
                stacklevel=_outside(sys._getframe()),
            )


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _outside(frame: types.FrameType) -> int:
    """The stacklevel, seen from `frame`, of the first caller outside this package: the reader's own line."""
    ours = ("fluxnb", "torch", "jaxtyping", "beartype")  # and what wraps us: no_grad, and the checks of the tests
    level = 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    return level
