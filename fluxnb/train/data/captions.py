"""Captions of scenes: a canonical one, or a random paraphrase."""

from __future__ import annotations

import random

from fluxnb.train.data.nouns import NOUNS, article, countable, plural
from fluxnb.train.data.scenes import COLORS, PLAIN, Relation, Scene, Thing

COUNTS = {2: "two", 3: "three", 4: "four"}
STYLES: dict[str, tuple[str, ...]] = {
    "3d": ("a 3d render of {}", "a 3d {bare}", "{}, 3d style", "3d render of {}"),
    "flat": ("a flat icon of {}", "a flat {bare}", "{}, flat style", "flat icon of {}"),
    "cartoon": ("a cartoon of {}", "a cartoon {bare}", "{}, cartoon style", "cartoon of {}"),
    "sticker": ("a sticker of {}", "a sticker of {}", "{}, sticker style", "sticker of {}"),
}
PLACES: dict[str, tuple[str, ...]] = {
    "snow": ("in the snow", "in snow"),
    "meadow": ("in a meadow", "on the grass", "in the grass"),
    "beach": ("on the beach", "on a beach"),
    "forest": ("in the forest", "in a forest", "in the woods"),
    "desert": ("in the desert", "in a desert"),
    "mountains": ("in the mountains", "in front of mountains"),
    "city": ("in the city", "in a city"),
    "sea": ("at sea", "on the sea", "on the ocean"),
    "road": ("on a road", "on the road", "on a street"),
    "garden": ("in a garden", "among flowers", "in the garden"),
    "farm": ("on a farm", "on a field", "in a field"),
    "lake": ("by a lake", "at the lake"),
    "sky": ("in the sky", "in the clouds"),
    "underwater": ("under water", "underwater"),
    "space": ("in space", "in outer space"),
    "room": ("in a room", "indoors"),
}
TIMES: dict[str, tuple[str, ...]] = {
    "day": ("by day", "during the day"),
    "sunset": ("at sunset", "at dusk"),
    "night": ("at night", "by night"),
}
RELATIONS: dict[Relation, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "and": ("and", "next to", "beside"),
}
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_PAIRS = {"person": ("woman", "man"), "child": ("girl", "boy"), "elder": ("old woman", "old man")}
_PLURALS = {"woman": "women", "man": "men", "old woman": "old women", "old man": "old men"}


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """The caption of a scene: the canonical one, or a random paraphrase if `rng` is given.

    It specifies the attributes that are not None, and no others.

    >>> caption(Scene((Thing("fox", color="blue"),), style="sticker", backdrop="snow"))
    'a sticker of a blue fox in the snow'
    >>> caption(Scene((Thing("owl", count=3),), backdrop="forest", time="night"))
    'three owls in the forest at night'
    """
    things = [thing_words(thing, rng) for thing in scene.things]
    contents = things[0]
    if scene.relation is not None:
        contents = f"{things[0]} {_one(RELATIONS[scene.relation], rng)} {things[1]}"
    where = " ".join(filter(None, (_where(scene.backdrop, rng), _one(TIMES[scene.time], rng) if scene.time else "")))
    style = "{}" if scene.style is None else _one(STYLES[scene.style], rng, weights=(3, 2, 1, 1))
    one = len(scene.things) == 1 and scene.things[0].count == 1 and contents.startswith(("a ", "an "))
    if "{bare}" in style and not one:
        style = STYLES[str(scene.style)][0]
    suffixed = style.startswith("{}")
    subject = contents if suffixed else style.format(contents, bare=contents.partition(" ")[2])
    if scene.sign is not None:
        quote = '"' if rng is not None and rng.random() < 0.25 else ""
        sign = f"holding a sign that says {quote}{scene.sign}{quote}"
        parts = (subject, sign, where) if quote and rng is not None and rng.random() < 0.5 else (subject, where, sign)
        text = " ".join(filter(None, parts))
    elif where and rng is not None and rng.random() < 0.1 and style == "{}":
        text = f"{where}, {subject}"
    else:
        text = " ".join(filter(None, (subject, where)))
    return style.format(text) if suffixed else text


def thing_words(thing: Thing, rng: random.Random | None = None) -> str:
    """Noun phrase of a thing with its number, size, color, gender, skin tone and direction.

    >>> thing_words(Thing("doctor", gender="woman", tone="dark"))
    'a woman doctor with dark skin'
    """
    noun = NOUNS[thing.noun]
    name = noun.name
    if rng is not None and noun.synonyms and rng.random() < 0.3:
        name = rng.choice(noun.synonyms)
    several = thing.count != 1
    name = _gendered(thing, name, several, rng) if thing.gender else (plural(name) if several else name)
    size = _one(SIZES[thing.size], rng, weights=(3, 1, 1)) if thing.size in SIZES else ""
    color = thing.color if thing.color not in (None, "natural") else ""
    words = " ".join(filter(None, (size, color, name)))
    if several:
        words = " ".join(filter(None, (COUNTS.get(thing.count or 0, ""), words)))
    elif countable(name):
        dice = 1.0 if rng is None else rng.random()
        before = "the" if dice < 0.08 else "" if dice < 0.16 else article(words)
        words = " ".join(filter(None, (before, words)))
    if thing.tone:
        words += f" with {thing.tone} skin"
    if thing.facing:
        words += f" {_one(('facing', 'looking'), rng, weights=(3, 1))} {thing.facing}"
    return words


def _gendered(thing: Thing, name: str, several: bool, rng: random.Random | None) -> str:
    woman = thing.gender == "woman"
    if thing.noun in _PAIRS:
        word = _PAIRS[thing.noun][0 if woman else 1]
        return _PLURALS.get(word, plural(word)) if several else word
    adjectives = ("woman", "female") if woman else ("man", "male")
    word = adjectives[1] if several else _one(adjectives, rng)
    return f"{word} {plural(name) if several else name}"


def _where(backdrop: str | None, rng: random.Random | None) -> str:
    if backdrop is None:
        return ""
    if backdrop in PLACES:
        return _one(PLACES[backdrop], rng)
    phrase = _one(("on {} background", "on {bare}", "in front of {} wall"), rng, weights=(5, 2, 2))
    return phrase.format(f"{article(backdrop)} {backdrop}", bare=backdrop)


def _one(variants: tuple[str, ...], rng: random.Random | None, weights: tuple[int, ...] | None = None) -> str:
    """The first variant, or a random one if `rng` is given."""
    return variants[0] if rng is None else rng.choices(variants, weights)[0]


def words() -> list[str]:
    """All words of captions, except those on signs, sorted."""
    phrases: list[str] = [
        "a an the and holding a sign that says facing looking left right with skin woman female man male"
    ]
    phrases += ["light medium dark background wall on in front of women men old", *COUNTS.values(), *PLAIN]
    phrases += [*COLORS, *(word for pair in _PAIRS.values() for word in pair), "girls boys"]
    for table in (STYLES, PLACES, TIMES, RELATIONS, SIZES):
        phrases += [
            phrase.replace("{}", "").replace("{bare}", "").replace(",", "") for v in table.values() for phrase in v
        ]
    for noun in NOUNS.values():
        phrases += [form for name in (noun.name, *noun.synonyms) for form in (name, plural(name))]
    return sorted({word for phrase in phrases for word in phrase.split()})
