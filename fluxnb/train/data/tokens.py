"""The two tokenizers, of the classes that FLUX uses, with the vocabulary of this small world.

Known words are one token each; a word that the vocabulary lacks falls apart into characters, so
that a sign can say anything. Both fold case.
"""

from __future__ import annotations

import io
import string

import torch
from torch import Tensor
from transformers import CLIPTokenizer, T5Tokenizer

from fluxnb.train.config import Sizes
from fluxnb.train.data import world

CHARACTERS = string.ascii_lowercase + string.digits + "\"',.!?-:;()&+#/"


def words() -> list[str]:
    """Every word that a caption uses outside a sign, sorted."""
    spoken = {"and", "next"}
    for name in world.NAMES:
        spoken |= {name, "a", "an", "the"}
    for background in world.BACKGROUNDS:
        spoken |= set(world.where_words(background).split())
    spoken |= set("left of right of above over below under to the in front of wall holding sign that says".split())
    return sorted(word for word in spoken if len(word) > 1 or word == "a")


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
    for word in words():
        pieces = [*list(word[:-1]), f"{word[-1]}</w>"]
        built = pieces[0]
        for piece in pieces[1:]:
            merges[built, piece] = None
            built += piece
            vocabulary.setdefault(built, len(vocabulary))
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), unk_token="<unk>", model_max_length=length)


class Tokens:
    """Captions as the two id tables that the encoders take, each (N, length)."""

    def __init__(self, clip: CLIPTokenizer, t5: T5Tokenizer):
        self.clip, self.t5, self.length = clip, t5, t5.model_max_length

    @staticmethod
    def of(sizes: Sizes) -> Tokens:
        """The tokenizers of the world."""
        return Tokens(clip_tokenizer(sizes.text_tokens), t5_tokenizer(sizes.text_tokens))

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP's and T5's ids, padded."""
        options = {"padding": "max_length", "max_length": self.length, "truncation": True}
        options |= {"return_attention_mask": False}  # nobody reads it, and it takes as long to make as the ids
        clip, t5 = (torch.tensor(names(captions, **options).input_ids) for names in (self.clip, self.t5))
        return clip, t5


def _case_folding() -> bytes:
    """SentencePiece's table that folds case, taken from a model trained on nothing much for its sake alone."""
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
