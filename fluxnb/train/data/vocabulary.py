"""The two tokenizers, of the classes that FLUX uses, with the vocabulary of this world and letters for signs.

A known word is one token of T5's; a word that the vocabulary lacks falls apart into characters, so that a sign can say
anything. Both fold case.
"""

from __future__ import annotations

import functools
import io
import re
import string
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer, T5Tokenizer

from fluxnb.train.data import captions
from fluxnb.train.second.config import Sizes

CHARACTERS = string.ascii_lowercase + string.digits + "\"',.!?-:;()&+#/"
_PIECES = re.compile(r"[a-z]+|[0-9]|[^a-z0-9\s]+")  # how CLIP's tokenizer splits a word before it merges characters


@functools.cache
def words() -> tuple[str, ...]:
    """Every word that is a token of its own, sorted."""
    return tuple(word for word in captions.words() if len(word) > 1 or word == "a")


def t5_tokenizer(length: int) -> T5Tokenizer:
    """Unigram: a known word outscores its letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -3.0) for word in words()]
    pieces += [(character, -6.0) for character in CHARACTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, _spm_precompiled_charsmap=_case_folding(), model_max_length=length)


def clip_tokenizer(length: int) -> CLIPTokenizer:
    """Byte-pair encoding whose merges build each known word from left to right."""
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "<unk>": 2}
    for character in CHARACTERS:
        vocabulary[character] = len(vocabulary)
        vocabulary[f"{character}</w>"] = len(vocabulary)
    merges: dict[tuple[str, str], None] = {}
    for word in sorted({piece for known in words() for piece in _PIECES.findall(known)}):
        pieces = [*list(word[:-1]), f"{word[-1]}</w>"]
        built = pieces[0]
        for piece in pieces[1:]:
            merges[built, piece] = None
            built += piece
            vocabulary.setdefault(built, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), unk_token="<unk>", model_max_length=length)


class Tokens:
    """Captions as the two id tables that the encoders take.

    CLIP's is always as long as its tokenizer allows, as in FLUX's pipeline; T5's is padded to `length`.
    """

    def __init__(self, clip: CLIPTokenizer, t5: T5Tokenizer, length: int):
        self.clip, self.t5, self.length = clip, t5, length

    @staticmethod
    def of(sizes: Sizes) -> Tokens:
        """The tokenizers of the world."""
        return Tokens(clip_tokenizer(sizes.clip_tokens), t5_tokenizer(sizes.text_tokens), sizes.caption_tokens)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """CLIP's ids (N, clip_tokens) and T5's (N, length)."""
        options = {"padding": "max_length", "truncation": True, "return_attention_mask": False}
        clip = self.clip(list(captions), max_length=self.clip.model_max_length, **options).input_ids
        t5 = self.t5(list(captions), max_length=self.length, **options).input_ids
        return torch.tensor(clip), torch.tensor(t5)


@functools.cache
def _case_folding() -> bytes:
    """SentencePiece's table that folds case, from a model that is trained for this table alone."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(string.ascii_lowercase)] * 9),
        model_writer=model,
        vocab_size=30,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model.getvalue())
    return proto.normalizer_spec.precompiled_charsmap
