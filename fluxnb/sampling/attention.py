"""Words in the picture: how much each place of the picture looks at each word, beside the model's own attention.

FLUX attends over one sequence, the text's tokens and then the picture's. Every query and key passes through the
module's norms, so hooks there see exactly what the attention is computed from, whichever way the projections were
made, fused or offloaded; nothing of the model is replaced, called twice or written to.

What a place gives to a word is then one more attention call: the same queries and keys, and for values a table that
holds 1 where a key belongs to the word and 0 elsewhere. It costs one kernel and the memory of one; no matrix of
tokens by tokens is ever written. Attention says where the model looked, which is a hint at what a word did and no
proof (Jain and Wallace, 1902.10186); the idea of such maps for pictures is that of DAAM (Tang et al., 2210.04885).
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.records import GROUPS

__all__ = ["Attention", "Words", "looking", "words_of"]

# Those that put text before picture and send queries and keys through the norms.
PROCESSORS = ("FluxAttnProcessor", "FluxIPAdapterAttnProcessor")

Maps = Float[Tensor, "pictures tokens words"]


@dataclass(frozen=True)
class Words:
    """The words of a prompt, and for each the positions of its tokens in the text sequence."""

    words: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]


def words_of(tokenizer: Any, prompt: str, length: int) -> Words:
    """The words that the encoder reads of a prompt, in order; the same word twice is two words.

    A word is what stands between spaces, without punctuation at its ends. What lies beyond `length` tokens is left
    out, since the model never sees it.
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
    return Words(tuple(words), tuple(places))


class Attention:
    """What `looking` yields: after each step, `take()` gives the maps of the step's first evaluation."""

    def __init__(self, modules: Sequence[Any], heads: tuple[int, ...] | None, wanted: Callable[[], bool]) -> None:
        self._modules, self._heads, self._wanted = modules, heads, wanted
        self._prompts: Sequence[Words] = ()
        self._reset()

    def aim(self, prompts: Sequence[Words]) -> None:
        """Say which words to look for, for each prompt of the batch; none turns the looking off."""
        self._prompts = prompts
        self._reset()

    def take(self) -> Maps | None:
        """The maps since the last `take`, float32 on the model's device; None where nothing was to be looked at.

        An entry is the share of its attention, 0 to 1, that an image token gives to all tokens of a word, the mean
        over the chosen heads and blocks. A batch's words are padded with zeros to the longest prompt's.
        """
        maps = None if self._sum is None else self._sum / self._looked
        self._reset()
        return maps

    def _reset(self) -> None:
        self._fresh, self._live, self._looked = True, False, 0
        self._sum: Tensor | None = None
        self._tables: dict[tuple[int, int], Tensor] = {}
        self._seen: dict[str, Any] = {}

    # ------------------------------------------------------------------------------------------------ the hooks
    def hooks(self, transformer: Any) -> Iterator[Any]:
        """Hang every hook; each must be removed."""
        yield transformer.register_forward_pre_hook(self._begin, with_kwargs=True)
        yield transformer.register_forward_hook(self._end, always_call=True)
        for module in self._modules:
            yield module.register_forward_pre_hook(self._enter, with_kwargs=True)
            for name in ("norm_q", "norm_k", "norm_added_k"):
                if getattr(module, name, None) is not None:
                    yield getattr(module, name).register_forward_hook(self._keeper(name))
            yield module.register_forward_hook(self._leave)

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Under true CFG the evaluation with the prompt comes first, and the one without it is not of interest.
        self._live = self._fresh and bool(self._prompts) and self._wanted()
        self._fresh = False
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        self._text = 0 if text is None else int(text.shape[1])

    def _end(self, *_: Any) -> None:
        self._live, self._tables, self._seen = False, {}, {}

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._live:
            self._seen = {"rope": kwargs.get("image_rotary_emb"), "mask": kwargs.get("attention_mask")}

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(module: Any, args: Any, output: Tensor) -> None:
            if self._live:
                self._seen[name] = output

        return keep

    def _leave(self, *_: Any) -> None:
        if not self._live:
            return
        seen, self._seen = self._seen, {}
        with torch.no_grad():
            part = self._look(seen)
            self._sum = part if self._sum is None else self._sum.add_(part.to(self._sum.device))
        self._looked += 1

    # --------------------------------------------------------------------------------------------- the mathematics
    def _look(self, seen: dict[str, Any]) -> Maps:
        from diffusers.models.embeddings import apply_rotary_emb

        query, key = seen["norm_q"], seen["norm_k"]  # (pictures, tokens, heads, numbers)
        if "norm_added_k" in seen:  # a double block norms text and picture apart
            key = torch.cat([seen["norm_added_k"], key], dim=1)
        else:
            query = query[:, self._text :]
        if self._heads is not None:
            query, key = query[:, :, self._heads], key[:, :, self._heads]
        if seen["rope"] is not None:
            cos, sin = seen["rope"]
            query = apply_rotary_emb(query, (cos[self._text :], sin[self._text :]), sequence_dim=1)
            key = apply_rotary_emb(key, (cos, sin), sequence_dim=1)
        pictures, most = len(query), max(len(words.words) for words in self._prompts)
        maps = query.new_zeros(pictures, query.shape[1], most, dtype=torch.float32)
        for picture in range(pictures):  # one by one: the memory is that of one, however large the batch
            places = self._prompts[picture * len(self._prompts) // pictures].places
            mask = seen["mask"] if seen["mask"] is None else seen["mask"][picture % len(seen["mask"])][None]
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
        """For values, a table: one column a word, 1 where a key is a token of it. As wide as a key: kernels want so."""
        if which not in self._tables:  # made once an evaluation, not once a block
            table = torch.zeros(like.shape[1], like.shape[-1])
            for column, tokens in enumerate(places):
                table[list(tokens), column] = 1
            self._tables[which] = table
        self._tables[which] = self._tables[which].to(like)
        return self._tables[which][None, :, None, :].expand_as(like).contiguous()


@contextlib.contextmanager
def looking(
    transformer: Any,
    *,
    blocks: str | tuple[int, ...] = "all",
    heads: tuple[int, ...] | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Attention]:
    """Look at the attention of a FLUX transformer inside the block; every hook is gone afterwards, whatever happened.

    Arguments:
        transformer: a FluxTransformer2DModel, offloaded or not, with fused projections or not.
        blocks: "all", "double" (text and picture apart), "single" (together), or indices, the double blocks first.
        heads: indices of the heads to average; None for all.
        wanted: asked before each evaluation whether to look at it.

    Raises:
        InputError: a model that cannot be looked into (compiled, spread over devices, with attention of its own), or
            blocks or heads it does not have.
    """
    modules = _modules(transformer, blocks)
    for module in modules:
        if heads is not None and not all(0 <= head < module.heads for head in heads):
            raise InputError(
                f"heads={shorten(heads)}", f"this model has heads 0 to {module.heads - 1}", "try heads=(0,)"
            )
    attention = Attention(modules, heads, wanted)
    with contextlib.ExitStack() as stack:
        for hook in attention.hooks(transformer):
            stack.callback(hook.remove)
        yield attention


def _modules(transformer: Any, blocks: str | tuple[int, ...]) -> list[Any]:
    double = list(getattr(transformer, "transformer_blocks", ()))
    every = [*double, *getattr(transformer, "single_transformer_blocks", ())]
    kind, refused = type(getattr(transformer, "_orig_mod", transformer)).__name__, ""
    if not every or not all(hasattr(getattr(block, "attn", None), "norm_q") for block in every):
        refused = "only a FluxTransformer2DModel's attention is known here"
    elif hasattr(transformer, "_orig_mod") or any(getattr(block, "_compiled_call_impl", None) for block in every):
        refused = "a compiled model has fused what would be looked at"
    elif getattr(transformer, "_parallel_config", None) is not None:
        refused = "each device of a parallel model has a part of the sequence only"
    else:
        others = {type(block.attn.processor).__name__ for block in every} - set(PROCESSORS)
        refused = f"its attention is computed by {', '.join(sorted(others))}, which is not known here" if others else ""
    if refused:
        raise InputError(f"attention of {kind}", refused, "leave attention out of Keep, or use the plain model")
    if isinstance(blocks, str):
        if blocks not in GROUPS:
            raise unknown_choice("attention", blocks, GROUPS)
        chosen = {"all": every, "double": double, "single": every[len(double) :]}[blocks]
    elif blocks and all(0 <= index < len(every) for index in blocks):
        chosen = [every[index] for index in blocks]
    else:
        known = f"this model has blocks 0 to {len(every) - 1}, {len(double)} of them double"
        raise InputError(f"attention={shorten(blocks)}", known, 'try attention="all"')
    if not chosen:
        raise InputError(f"attention={shorten(blocks)}", "this model has no such block", 'try attention="all"')
    return [block.attn for block in chosen]
