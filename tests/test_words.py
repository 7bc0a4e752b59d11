"""The package uses the usual terms of its field: old words of the project are counted in code, comments and strings.

`python -m tests.test_words` prints the counts for each package; with a path it prints every line.
"""

from __future__ import annotations

import functools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 30

# A word, as a regular expression for the whole of it, and what to write instead.
WORDS = {
    r"walk(s|ed|er|ers|ing)?": "trajectory (noun), sample (verb)",
    r"reels?|rolls?": "frames",
    r"shel(f|ves)": "weight reader",
    r"shadow(s|ed|ing)?": "patched method",
    r"lanes?": "worker",
    r"company": "batch",
    r"doors?": "entry point",
    r"houses?|rooms?": "package, module",
    r"veils?": "overlay",
    r"eyes?|looking|looked": "recorder, recording, recorded, attended",
    r"watched|watcher": "recorded, callback",
    r"told|tells?|telling": "displayed, reported, parsed",
    r"says?|said": "displays, states, reports",
    r"shown": "displayed",
    r"asked|asks|asking": "requested, arguments",
    r"answers?|answered": "output, result, return",
    r"whoever|somebody|somebodys|nobody|nobodys": "the caller, user-supplied, no one",
    r"handed": "passed",
    r"knows": "has, supports",
    r"wanted|wants": "requested, required",
    r"kept": "retained, cached, stored",
    r"begun": "started",
    r"lit|truth|anatomy|laboratory": "the usual term",
}
PATTERN = re.compile("|".join(f"(?P<w{i}>{word})" for i, word in enumerate(WORDS)))

LETTERS = re.compile(r"[A-Za-z]+")

# Uses with another meaning, by path prefix (of `fluxnb/`) and word: the literal sense, or a name of another library.
OTHER_MEANING = {
    ("train/data/", r"doors?|houses?|rooms?|eyes?|shadow|shadows|lit|looking|walk|walking|roll|rolls|shelf|shelves"): (
        "nouns of the pictures that are drawn, and the drawing of them"
    ),
    ("records/", r"kept"): "the tensors that `Keep` selects",
    ("io/trajectory_files", r"kept"): "the tensors that `Keep` selects",
    ("metrics.py", r"kept"): "the tensors that `Keep` selects",
    ("sampling/call_trace", r"kept"): "the tensors that `Keep` selects",
    ("sampling/sampler", r"kept"): "the tensors that `Keep` selects",
    ("visuals/", r"kept"): "the tensors that `Keep` selects",
    ("front-end/", r"shown|answered|rolls?|shadow"): "elements that are shown, requests, dice, the shadow DOM",
    ("io/containers", r"tell"): "a method of files",
    ("lessons/", r"answers?"): "the answers of readers to exercises",
    ("__init__.py", r"answers?"): "the answers of readers to exercises, and the module of their judges",
    ("pipeline/vocabulary", r"says"): "a word of captions: holding a sign that says hello",
    ("", r"wants"): "`Keep.wants`, a method of the public API",
}
# Lines in which a word is not ours (calls of other libraries, CSS), or is about the tensors that `Keep` selects.
OTHER_USE = re.compile(r"\b(ast|os)\.walk\(|\.roll\(|-shadow:|\.kept\b|def kept|keep\b|Keep\b|tensors|x_next|attention")

# Remaining uses: file of `fluxnb/` and word, with their number and the reason.
REMAINING: dict[tuple[str, str], tuple[int, str]] = {
    ("arguments.py", "door"): (1, "beartype.door, a module of beartype"),
    ("lessons/claims.py", "says"): (1, "a prompt: holding a sign that says hello"),
    ("plots/attention_maps.py", "shown"): (1, "a note in the figure: 2 of 4 steps shown"),
    ("plots/strips.py", "shown"): (1, "a note in the figure: 6 of 28 steps shown"),
    ("records/latents.py", "eye"): (1, "the function torch.eye"),
    ("train/data/captions.py", "says"): (2, "captions: holding a sign that says hello"),
    ("train/evaluation/samples.py", "says"): (1, "a caption: holding a sign that says hello world"),
}


def parts(line: str) -> Iterator[str]:
    """The words of a line in lower case, identifiers split at underscores and capitals."""
    for token in LETTERS.findall(line.replace("'s", "s")):
        yield from (part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", token))


def other_meaning(path: str, word: str) -> bool:
    return any(path.startswith(prefix) and re.fullmatch(words, word) for prefix, words in OTHER_MEANING)


@functools.cache
def old_words(token: str) -> tuple[str, ...]:
    """The old words in one run of letters, of which most lines of code have the same few thousand."""
    return tuple(word for word in parts(token) if PATTERN.fullmatch(word))


def sources() -> list[Path]:
    """The Python of the package, and the JavaScript and CSS that its bundles are made from."""
    package, front_end = ROOT / "fluxnb", ROOT / "front-end" / "src"
    return sorted(
        [*package.rglob("*.py"), *package.rglob("*.pyi"), *front_end.rglob("*.js"), *front_end.rglob("*.css")]
    )


def uses() -> Iterator[tuple[str, int, str]]:
    """File, line and word of every use in the sources."""
    for path in sources():
        name = path.relative_to(ROOT).as_posix().removeprefix("fluxnb/")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for word in (word for token in LETTERS.findall(line.replace("'s", "s")) for word in old_words(token)):
                excused = OTHER_USE.search(line) and word in ("kept", "walk", "roll", "shadow")
                if not excused and not other_meaning(name, word):
                    yield name, number, word


def test_an_old_word_is_found_in_names_and_prose():
    assert list(parts("def walk_of(reelName): # the shelf's")) == ["def", "walk", "of", "reel", "name", "the", "shelfs"]
    assert PATTERN.fullmatch("walking") and not PATTERN.fullmatch("sidewalk")


def test_at_most_thirty_old_words_remain_each_with_its_reason():
    found = Counter((name, word) for name, _, word in uses())
    assert found - Counter({place: count for place, (count, _) in REMAINING.items()}) == Counter()
    assert found.total() <= LIMIT
    assert all(len(reason) > 10 for _, reason in REMAINING.values())


def report(prefix: str | None) -> None:
    """Print the counts for each package, or the lines below a path."""
    packages = Counter(name.split("/")[0] for name, _, _ in uses())
    if prefix is None:
        for package, count in packages.most_common():
            words = Counter(word for name, _, word in uses() if name.split("/")[0] == package)
            print(f"{package:16} {count:5}  {', '.join(f'{word} {n}' for word, n in words.most_common(12))}")
        print(f"{'total':16} {packages.total():5}")
        return
    for name, number, word in uses():
        if name.startswith(prefix):
            path = ROOT / name if name.startswith("front-end/") else ROOT / "fluxnb" / name
            line = path.read_text(encoding="utf-8").splitlines()[number - 1]
            print(f"{path.relative_to(ROOT)}:{number}: {word}: {line.strip()[:110]}")


if __name__ == "__main__":
    report(sys.argv[1] if len(sys.argv) > 1 else None)
