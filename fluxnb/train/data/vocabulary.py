"""The two tokenizers, of the classes that FLUX uses, with the words of `captions` and with characters for signs.

T5's tokenizer has one token for each word of `captions` and splits any other word into characters, so that a sign can
have any text. Both tokenizers fold case.
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

CLIP_TOKENS = 77  # FLUX's
CLIP_USED = 64  # CLIP is causal and pooled at the first end token, so the tokens after it have no effect
T5_TOKENS = 512  # the most that T5 accepts
CAPTION_TOKENS = 48  # T5 tokens to which a caption is padded; the longest caption has 35
CHARACTERS = string.ascii_lowercase + string.digits + "\"',.!?-:;()&+#/"
_PIECES = re.compile(r"[a-z]+|[0-9]|[^a-z0-9\s]+")  # how CLIP's tokenizer splits a word before it merges characters


@functools.cache
def words() -> tuple[str, ...]:
    """Every word that is a token of its own, sorted."""
    return tuple(word for word in captions.words() if len(word) > 1 or word == "a")


def t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer, in which a word of `words` has a higher score than its characters together."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -3.0) for word in words()]
    pieces += [(character, -6.0) for character in CHARACTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, _spm_precompiled_charsmap=_case_folding(), model_max_length=T5_TOKENS)


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding whose merges build each word of `words` from left to right."""
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
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), unk_token="<unk>", model_max_length=CLIP_TOKENS)


class Tokenizers:
    """Converts captions to the token ids of both text encoders."""

    def __init__(self) -> None:
        self.clip, self.t5 = clip_tokenizer(), t5_tokenizer()

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids for CLIP (N, CLIP_TOKENS) and for T5 (N, CAPTION_TOKENS), padded as in FLUX's pipeline."""
        options = {"padding": "max_length", "truncation": True, "return_attention_mask": False}
        clip = self.clip(list(captions), max_length=CLIP_TOKENS, **options).input_ids
        t5 = self.t5(list(captions), max_length=CAPTION_TOKENS, **options).input_ids
        return torch.tensor(clip), torch.tensor(t5)


@functools.cache
def _case_folding() -> bytes:
    """SentencePiece's normalization table that folds case, taken from a model trained on the alphabet."""
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
