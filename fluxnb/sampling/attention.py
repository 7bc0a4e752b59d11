"""Attention maps: how much each place of the picture attends to each word, computed beside the model's own attention.

FLUX attends over one sequence, the text tokens followed by the image tokens. Every query and key passes through the
module's norms, so hooks on the norms see exactly what the attention is computed from, whether the projections are
fused, offloaded or neither. Nothing of the model is replaced, called twice or written to.

The share that a place gives to a word is one more attention call: the same queries and keys, and as values a table that
holds 1 where a key belongs to the word and 0 elsewhere. It costs one kernel and the memory of one; no matrix of tokens
by tokens is written. Attention shows which places used a word, which suggests what the word did and does not prove it
(Jain and Wallace, 1902.10186). Such maps for text-to-image models come from DAAM (Tang et al., 2210.04885).
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fluxnb.cleanup import undoing
from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.pipeline.compat import apply_rope, is_compiled, is_parallel, remove_hooks
from fluxnb.records import BLOCK_GROUPS

__all__ = ["AttentionCapture", "PromptWords", "attention_modules", "capture_attention", "words_of"]

# The processors that put text before image tokens and pass queries and keys through the norms.
PROCESSORS = ("FluxAttnProcessor", "FluxIPAdapterAttnProcessor")

Maps = Float[Tensor, "pictures tokens words"]


@dataclass(frozen=True)
class PromptWords:
    """The words of a prompt, and for each the positions of its tokens in the text sequence."""

    words: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]


def words_of(tokenizer: Any, prompt: str, length: int) -> PromptWords:
    """The words of a prompt that the encoder reads, in order; a repeated word is listed again.

    A word is the text between two spaces, without punctuation at its ends. Words beyond `length` tokens are left out,
    since the encoder truncates them.
    """
    given = tokenizer(prompt, truncation=True, max_length=length, return_offsets_mapping=True)
    spans = list(enumerate(given["offset_mapping"]))
    words, places = [], []
    for found in re.finditer(r"\S+", prompt):
        begin, end = found.span()
        while begin < end and unicodedata.category(prompt[begin])[0] == "P":
            begin += 1
        while begin < end and unicodedata.category(prompt[end - 1])[0] == "P":
            end -= 1
        tokens = tuple(place for place, (first, last) in spans if first < min(last, end) and last > begin)
        if begin < end and tokens:
            words.append(prompt[begin:end])
            places.append(tokens)
    return PromptWords(tuple(words), tuple(places))


@dataclass(frozen=True, eq=False)
class _Hook:
    """A hook of a capture that does not let an exception reach the model's caller."""

    capture: AttentionCapture
    function: Callable[..., None]

    def __call__(self, *args: Any) -> None:
        if self.capture.failure is not None:
            return
        try:
            self.function(*args)
        except Exception as problem:
            self.capture.failure = problem


class AttentionCapture:
    """Made by `capture_attention`: after each step, `take()` returns the maps of the step's first evaluation.

    Hooks fire for every caller of the transformer; only evaluations of the thread that made the capture are captured.
    A failure inside a hook ends the capture, is stored as `.failure`, and does not reach the model's caller.
    """

    def __init__(self, modules: Sequence[Any], heads: tuple[int, ...] | None, enabled: Callable[[], bool]) -> None:
        self._modules, self._heads, self._enabled = modules, heads, enabled
        self._thread = threading.get_ident()
        self._prompts: Sequence[PromptWords] = ()
        self._handles: list[Any] = []
        self.failure: Exception | None = None
        self._reset()

    def aim(self, prompts: Sequence[PromptWords]) -> None:
        """Set the words to capture for each prompt of the batch; none turns the capture off."""
        self._prompts = prompts
        self._reset()

    def take(self) -> Maps | None:
        """The maps since the last `take`, float32 on the model's device; None where nothing was captured.

        An entry is the share of its attention, 0 to 1, that an image token gives to all tokens of a word, averaged
        over the chosen heads and blocks. The words of a batch are padded with zeros to the longest prompt's.
        """
        maps = None if self._sum is None else self._sum / self._captured
        self._reset()
        return maps

    def _reset(self) -> None:
        self._first_evaluation, self._active, self._captured = True, False, 0
        self._sum: Tensor | None = None
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._inputs: dict[str, Any] = {}

    @property
    def _capturing(self) -> bool:
        return self._active and threading.get_ident() == self._thread

    # ------------------------------------------------------------------------------------------------ the hooks
    def register(self, transformer: Any) -> None:
        """Register every hook."""
        add = self._handles.append
        add(transformer.register_forward_pre_hook(_Hook(self, self._begin), with_kwargs=True))
        add(transformer.register_forward_hook(_Hook(self, self._end), always_call=True))
        for module in self._modules:
            add(module.register_forward_pre_hook(_Hook(self, self._enter), with_kwargs=True))
            for name in ("norm_q", "norm_k", "norm_added_k"):
                if getattr(module, name, None) is not None:
                    add(getattr(module, name).register_forward_hook(_Hook(self, self._keeper(name))))
            add(module.register_forward_hook(_Hook(self, self._leave)))

    def unregister(self, transformer: Any) -> None:
        """Remove every hook, also one whose registration was interrupted before its handle was returned."""
        for handle in self._handles:
            handle.remove()
        for module in (transformer, *self._modules, *(part for each in self._modules for part in each.children())):
            remove_hooks(module, lambda hook: isinstance(hook, _Hook) and hook.capture is self)

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != self._thread or not self._enabled():
            return
        # Under true CFG the evaluation with the prompt comes first; the one without it is not captured.
        self._active = self._first_evaluation and bool(self._prompts)
        self._first_evaluation = False
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        self._text = 0 if text is None else int(text.shape[1])

    def _end(self, *_: Any) -> None:
        if threading.get_ident() == self._thread:
            self._active, self._tables, self._inputs = False, {}, {}

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._capturing:
            self._inputs = {"rope": kwargs.get("image_rotary_emb"), "mask": kwargs.get("attention_mask")}

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(module: Any, args: Any, output: Tensor) -> None:
            if self._capturing:
                self._inputs[name] = output

        return keep

    def _leave(self, *_: Any) -> None:
        if not self._capturing:
            return
        inputs, self._inputs = self._inputs, {}
        with torch.no_grad():
            part = self._maps(inputs)
            self._sum = part if self._sum is None else self._sum.add_(part.to(self._sum.device))
        self._captured += 1

    # --------------------------------------------------------------------------------------------- the mathematics
    def _maps(self, inputs: dict[str, Any]) -> Maps:
        query, key = inputs["norm_q"], inputs["norm_k"]  # (pictures, tokens, heads, features)
        if "norm_added_k" in inputs:  # a double block has separate norms for text and picture
            key = torch.cat([inputs["norm_added_k"], key], dim=1)
        else:
            query = query[:, self._text :]
        if self._heads is not None:
            query, key = query[:, :, self._heads], key[:, :, self._heads]
        if inputs["rope"] is not None:
            cos, sin = inputs["rope"]
            query = apply_rope(query, (cos[self._text :], sin[self._text :]))
            key = apply_rope(key, (cos, sin))
        pictures, most = len(query), max(len(words.words) for words in self._prompts)
        maps = query.new_zeros(pictures, query.shape[1], most, dtype=torch.float32)
        for picture in range(pictures):  # one by one, so that the memory is that of one picture
            places = self._prompts[picture * len(self._prompts) // pictures].places
            mask = inputs["mask"] if inputs["mask"] is None else inputs["mask"][picture % len(inputs["mask"])][None]
            one = slice(picture, picture + 1)
            for first in range(0, len(places), key.shape[-1]):
                few = places[first : first + key.shape[-1]]
                shares = torch.nn.functional.scaled_dot_product_attention(
                    query[one].transpose(1, 2),
                    key[one].transpose(1, 2),
                    self._values((picture, first), few, key[one]).transpose(1, 2),
                    attn_mask=mask,
                )
                maps[picture, :, first : first + len(few)] = shares[0, :, :, : len(few)].mean(0, dtype=torch.float32)
        return maps

    def _values(self, which: tuple[int, int], places: Sequence[Sequence[int]], like: Tensor) -> Tensor:
        """The values: one column a word, 1 where a key is a token of it; as wide as a key, as kernels require."""
        if which not in self._tables:  # once an evaluation, not once a block
            table = torch.zeros(like.shape[1], like.shape[-1])
            for column, tokens in enumerate(places):
                table[list(tokens), column] = 1
            self._tables[which] = table
        self._tables[which] = self._tables[which].to(like)
        return self._tables[which][None, :, None, :].expand_as(like).contiguous()


@contextlib.contextmanager
def capture_attention(
    transformer: Any,
    *,
    blocks: str | tuple[int, ...] = "all",
    heads: tuple[int, ...] | None = None,
    enabled: Callable[[], bool] = lambda: True,
) -> Iterator[AttentionCapture]:
    """Capture the attention of a FLUX transformer inside the block; all hooks are removed afterwards.

    Arguments:
        transformer: a FluxTransformer2DModel, offloaded or not, with fused projections or not.
        blocks: "all", "double" (separate streams), "single" (one stream), or indices, the double blocks first.
        heads: indices of the heads to average; None for all.
        enabled: called before each evaluation; False skips it.

    Raises:
        InputError: a model whose attention cannot be captured (compiled, spread over devices, with processors of its
            own), or blocks or heads that it does not have.
    """
    capture = AttentionCapture(attention_modules(transformer, blocks, heads), heads, enabled)
    with undoing(functools.partial(capture.unregister, transformer)):
        capture.register(transformer)
        yield capture


def attention_modules(
    transformer: Any, blocks: str | tuple[int, ...], heads: tuple[int, ...] | None = None
) -> list[Any]:
    """The attention modules of the chosen blocks; raises InputError as `capture_attention` does."""
    double = list(getattr(transformer, "transformer_blocks", ()))
    every = [*double, *getattr(transformer, "single_transformer_blocks", ())]
    if refused := _reason_against(transformer, every):
        kind = type(getattr(transformer, "_orig_mod", transformer)).__name__
        raise InputError(f"attention of {kind}", refused, "leave attention out of Keep, or use the plain model")
    if isinstance(blocks, str):
        if blocks not in BLOCK_GROUPS:
            raise unknown_choice("attention", blocks, BLOCK_GROUPS)
        chosen = {"all": every, "double": double, "single": every[len(double) :]}[blocks]
    elif blocks and all(0 <= index < len(every) for index in blocks):
        chosen = [every[index] for index in blocks]
    else:
        known = f"this model has blocks 0 to {len(every) - 1}, {len(double)} of them double"
        raise InputError(f"attention={shorten(blocks)}", known, 'try attention="all"')
    if not chosen:
        raise InputError(f"attention={shorten(blocks)}", "this model has no such block", 'try attention="all"')
    modules = [block.attn for block in chosen]
    for module in modules:
        if heads is not None and not all(0 <= head < module.heads for head in heads):
            raise InputError(
                f"heads={shorten(heads)}", f"this model has heads 0 to {module.heads - 1}", "try heads=(0,)"
            )
    return modules


def _reason_against(transformer: Any, blocks: Sequence[Any]) -> str:
    """Why the attention of a transformer cannot be captured; "" where it can."""
    if not blocks or not all(hasattr(getattr(block, "attn", None), "norm_q") for block in blocks):
        return "only the attention of a FluxTransformer2DModel can be recorded"
    if is_compiled(transformer) or any(is_compiled(block) for block in blocks):
        return "hooks inside a compiled model do not fire"
    if is_parallel(transformer):
        return "each device of a parallel model holds only a part of the sequence"
    others = {type(block.attn.processor).__name__ for block in blocks} - set(PROCESSORS)
    return f"its attention is computed by {', '.join(sorted(others))}, which is not supported" if others else ""
