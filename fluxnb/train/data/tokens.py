"""Tokenizers of the same classes as FLUX's, with the vocabulary of the synthetic captions.

Each word of the vocabulary is one token. Other words are split into characters, so that a sign can show any word.
Both tokenizers ignore case.
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
    """All words of captions outside signs, sorted."""
    vocabulary = {"and", "next"}
    for name in world.NAMES:
        vocabulary |= {name, "a", "an", "the"}
    for background in world.BACKGROUNDS:
        vocabulary |= set(world.background_words(background).split())
    vocabulary |= set("left of right of above over below under to the in front of wall holding sign that says".split())
    return sorted(word for word in vocabulary if len(word) > 1 or word == "a")


def t5_tokenizer(length: int) -> T5Tokenizer:
    """A unigram tokenizer in which a known word scores higher than its characters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -3.0) for word in words()]
    pieces += [(character, -6.0) for character in CHARACTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, _spm_precompiled_charsmap=_case_folding(), model_max_length=length)


def clip_tokenizer(length: int) -> CLIPTokenizer:
    """A byte-pair encoding whose merges build each known word from left to right."""
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
    """Tokenize captions for both text encoders.

    >>> clip_ids, t5_ids = Tokens.of(sizes)(["a fox in the snow"])  # doctest: +SKIP
    """

    def __init__(self, clip: CLIPTokenizer, t5: T5Tokenizer):
        self.clip, self.t5, self.length = clip, t5, t5.model_max_length

    @staticmethod
    def of(sizes: Sizes) -> Tokens:
        """The tokenizers for networks of these sizes."""
        return Tokens(clip_tokenizer(sizes.text_tokens), t5_tokenizer(sizes.text_tokens))

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Padded token ids of CLIP and of T5, (N, length) each."""
        options = {"padding": "max_length", "max_length": self.length, "truncation": True}
        options |= {"return_attention_mask": False}  # unused, and it takes as long as the ids
        clip, t5 = (torch.tensor(tokenizer(captions, **options).input_ids) for tokenizer in (self.clip, self.t5))
        return clip, t5


def _case_folding() -> bytes:
    """SentencePiece's table of case folding, taken from a minimal model that is trained only for it."""
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
