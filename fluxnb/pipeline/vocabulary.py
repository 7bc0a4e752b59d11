"""The words that a model with a closed vocabulary was trained on, and those of a prompt that are not among them.

FLUX's text encoders split any word into pieces that they have seen. Those of pocket have one token for each word of
their training captions and split other words into letters, which mean nothing outside signs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fluxnb.errors import shorten, warn_caller
from fluxnb.pipeline.prompts import PromptWarning

__all__ = ["Vocabulary", "unknown_words_text", "vocabulary_of", "warn_of_unknown_words"]

EXAMPLES = {
    "pocket": (
        "a fox in the snow",
        "a red car next to a cat",
        "a robot on the beach",
        "a dinosaur holding a sign that says hello",
        "a cat in front of a blue wall",
    ),
}
EXAMPLES["pocket-base"] = EXAMPLES["pocket"]

_QUOTED = r"\"[^\"]*\"|“[^”]*”|(?<!\w)'[^']*'(?!\w)|‘[^’]*’"
_WORD = re.compile(rf"{_QUOTED}|(?P<word>[^\W_]+(?:[-'][^\W_]+)*)")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The words that a model was trained on; any text may stand on a sign.

    Arguments:
        words: in lower case, sorted.
        examples: prompts of known words.

    Example:
        >>> vocabulary = Vocabulary(words=("a", "cat", "fox", "holding", "in", "says", "sign", "snow", "that", "the"))
        >>> vocabulary.unknown("A foxx in the snow, holding a sign that says 'winter'")
        ('foxx',)
        >>> vocabulary.nearest("foxx")
        ('fox',)
    """

    words: tuple[str, ...]
    examples: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", frozenset(self.words))

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and word.casefold() in vars(self)["_known"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __len__(self) -> int:
        return len(self.words)

    def unknown(self, prompt: str) -> tuple[str, ...]:
        """The words of a prompt that the model was not trained on, each once, as they are written.

        Quoted text, and what follows "says" up to the next known word, is text for a sign and may be anything.
        """
        found: dict[str, str] = {}
        on_sign = 0  # words of the sign so far, counted from 1; 0 outside signs
        for match in _WORD.finditer(prompt):
            word = match["word"]
            if word is None:
                on_sign = 0
                continue
            if on_sign == 1 or (on_sign and word not in self):
                on_sign += 1
                continue
            on_sign = int(word.casefold() == "says")
            if word not in self:
                found.setdefault(word.casefold(), word)
        return tuple(found.values())

    def nearest(self, word: str, *, count: int = 3) -> tuple[str, ...]:
        """Known words whose spelling is most like a given one; empty if none is similar."""
        candidates = [known for known in self.words if len(known) > 2]
        return tuple(difflib.get_close_matches(word.casefold(), candidates, n=count, cutoff=0.7))


def vocabulary_of(model: str, pipe: Any) -> Vocabulary | None:
    """The vocabulary of a model whose text encoders have no subwords; None for any other, or without its tokenizer."""
    # The notice is an extra: no call may fail for want of it.
    tokenizer = getattr(pipe, "tokenizer_2", None)
    if model not in EXAMPLES or tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return None
    pieces = tokenizer.get_vocab()
    words = {piece.removeprefix("▁") for piece in pieces if piece.startswith("▁") and piece != "▁"}
    return Vocabulary(words=tuple(sorted(words)), examples=EXAMPLES[model])


def warn_of_unknown_words(model: str, vocabulary: Vocabulary, prompt: str) -> None:
    """Warn about words of a prompt that a model with a closed vocabulary was not trained on.

    Warns:
        PromptWarning: names the words, and known ones of similar spelling.
    """
    if text := unknown_words_text(model, vocabulary, prompt):
        warn_caller(text, PromptWarning)


def unknown_words_text(model: str, vocabulary: Vocabulary, prompt: str) -> str:
    """A sentence that names the unknown words of a prompt and known ones of similar spelling; empty without any."""
    unknown = vocabulary.unknown(prompt)
    if not unknown:
        return ""
    similar = dict.fromkeys(near for word in unknown for near in vocabulary.nearest(word))
    hint = f"known words of similar spelling: {', '.join(list(similar)[:6])}" if similar else "no known word is similar"
    more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
    words = ", ".join(shorten(word, 40) for word in unknown[:8]) + more
    return (
        f"{model} was not trained on {words}, so the picture is not expected to show it; {hint}. "
        f"See flux.vocabulary for its {len(vocabulary)} words, or try {vocabulary.examples[0]!r}."
    )
