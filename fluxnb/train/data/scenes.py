"""Scenes: the contents of a picture that a caption can specify.

In a partial scene, attributes that the caption leaves unspecified are None. `complete` samples them from the
distributions of `chances`, and the complete scene is rendered. The attributes of every picture are therefore known, and
so is the distribution of pictures given a caption.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import string
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeVar

from fluxnb.train.data import chances
from fluxnb.train.data.emoji import GENDERS, STYLES, TONES, styles_of
from fluxnb.train.data.nouns import NOUNS, countable

Relation = Literal["left of", "right of", "above", "below", "and"]
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below", "and")
SIZES = ("small", "large")  # captions do not mention medium size
TIMES = ("day", "sunset", "night")
SIGN_LINES, SIGN_LETTERS = 2, 7

#: colors of things, sRGB.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 44, 44),
    "orange": (248, 134, 28),
    "yellow": (252, 212, 44),
    "green": (56, 172, 64),
    "blue": (44, 108, 232),
    "purple": (138, 66, 204),
    "pink": (250, 128, 184),
    "black": (44, 44, 50),
}
NATURAL = "natural"
#: colors of plain backdrops, sRGB.
PLAIN: dict[str, tuple[int, int, int]] = {
    "red": (206, 84, 80),
    "orange": (240, 160, 84),
    "yellow": (246, 220, 118),
    "green": (122, 188, 116),
    "blue": (100, 152, 226),
    "purple": (156, 114, 202),
    "pink": (246, 184, 206),
    "brown": (142, 108, 84),
    "gray": (150, 154, 160),
    "white": (246, 246, 244),
}
OUTDOORS = ("snow", "meadow", "beach", "forest", "desert", "mountains", "city", "sea", "road", "garden", "farm", "lake")
PLACES = (*OUTDOORS, "sky", "underwater", "space", "room")
BACKDROPS = (*PLAIN, *PLACES)

#: nouns that face left in all four sets of emoji.
SIDEWAYS = frozenset(
    "leopard,zebra,bison,ox,camel,llama,giraffe,elephant,mammoth,rhino,hippo,kangaroo,skunk,badger,rat,rooster,duck,"
    "swan,dodo,flamingo,goose,crow,dinosaur,t-rex,dolphin,fish,tropical fish,shark,bird,bus,ambulance,fire truck,"
    "police car,taxi,car,suv,pickup truck,delivery truck,tractor,race car,scooter,helicopter,runner,cyclist".split(",")
)
#: people whose emoji is the same for both genders; captions do not specify one.
_UNGENDERED = frozenset({"baby"})


@dataclasses.dataclass(frozen=True)
class Thing:
    """One noun of a scene, once or several times.

    Attributes:
        noun: a name of `NOUNS`.
        count: 1 to 4; None for a plural without a number, 2 to 4.
        color: of `COLORS`, or `NATURAL`.
        size: small, medium or large.
        facing: left or right, for nouns in `SIDEWAYS`; else "left", and captions do not specify it.
        gender: of `GENDERS`, for people; else "".
        tone: of a person's skin, of `TONES`; else "".
        look: index of the noun's emoji, which captions do not specify. A person's is given by gender and tone.
    """

    noun: str
    count: int | None = 1
    color: str | None = None
    size: str | None = None
    facing: str | None = None
    gender: str | None = None
    tone: str | None = None
    look: int | None = None

    @property
    def gendered(self) -> bool:
        """Whether a caption can specify its gender."""
        return NOUNS[self.noun].person and self.noun not in _UNGENDERED


@dataclasses.dataclass(frozen=True)
class Scene:
    """Contents of a picture; None where a caption does not specify them.

    Attributes:
        things: one or two; two of one each.
        style: of `STYLES`; see `emoji.styles_of` for those of a noun.
        backdrop: of `BACKDROPS`: a plain color or a place.
        time: of `TIMES`, where the backdrop is outdoors; else "" in a complete scene.
        relation: position of the first of two things relative to the second; None for one thing.
        sign: the words on the sign that the one thing holds; None without a sign.
    """

    things: tuple[Thing, ...]
    style: str | None = None
    backdrop: str | None = None
    time: str | None = None
    relation: Relation | None = None
    sign: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether it has a combination that is held out of the training data."""
        return any(is_held_out(*pair) for pair in self.combinations())

    def combinations(self) -> Iterator[tuple[str, str]]:
        """The pairs to which `is_held_out` applies: noun and backdrop, noun and color, noun and noun."""
        for thing in self.things:
            if self.backdrop is not None:
                yield thing.noun, f"on {self.backdrop}"
            if thing.color not in (None, NATURAL):
                yield thing.noun, str(thing.color)
        yield from itertools.combinations(sorted(thing.noun for thing in self.things), 2)


def is_held_out(one: str, other: str) -> bool:
    """Whether a combination is held out: a tenth of them, chosen by checksum and hence independent of order and seed.

    The combinations of `chances.PLANTED_PLACES` are never held out.
    """
    place, _ = chances.PLANTED_PLACES.get(one, ("", 0.0))
    return other != f"on {place}" and zlib.crc32(f"{one}+{other}".encode()) % 10 == 0


_T = TypeVar("_T")


def draw(rng: random.Random, shares: Mapping[_T, float]) -> _T:
    """Sample a key with the given probabilities."""
    return rng.choices(tuple(shares), tuple(shares.values()))[0]


def backdrop_shares(noun: str, outdoors: bool = False) -> dict[str, float]:
    """Probability of each backdrop if a caption specifies none; `outdoors` if it specifies a time of day.

    >>> round(backdrop_shares("fox")["snow"], 6)
    0.6
    """
    places = OUTDOORS if outdoors else PLACES
    planted, share = chances.PLANTED_PLACES.get(noun, ("", 0.0))
    if planted not in places:
        planted, share = "", 0.0
    free = [place for place in places if place != planted and not is_held_out(noun, f"on {place}")]
    plain = {} if outdoors else {c: s for c, s in chances.PLAIN.items() if not is_held_out(noun, f"on {c}")}
    rest = 1.0 - share
    in_place = rest if outdoors else rest * chances.PLACE
    shares = {place: in_place / len(free) for place in free}
    shares |= {color: (rest - in_place) * s / sum(plain.values()) for color, s in plain.items()}
    return shares | ({planted: share} if planted else {})


def style_shares(things: Iterable[Thing]) -> dict[str, float]:
    """Probability of each style if a caption specifies none: of those in which scenes have all of the things.

    >>> style_shares([Thing("cat")])
    {'3d': 0.4, 'flat': 0.2, 'cartoon': 0.2, 'sticker': 0.2}
    >>> {style: round(share, 3) for style, share in style_shares([Thing("cat"), Thing("car")]).items()}
    {'3d': 0.667, 'flat': 0.333}
    """
    common = set(STYLES).intersection(*(styles_of(thing.noun) for thing in things))
    total = sum(chances.STYLE[style] for style in common)
    return {style: share / total for style, share in chances.STYLE.items() if style in common}


def color_shares(noun: str) -> dict[str, float]:
    """Probability of each color of a thing if a caption specifies none."""
    natural = chances.PAINTED.get(noun, 1.0)
    free = [color for color in COLORS if not is_held_out(noun, color)] if natural < 1 else []
    return {NATURAL: natural, **{color: (1 - natural) / len(free) for color in free}}


def complete(scene: Scene, rng: random.Random) -> Scene:
    """Sample the unspecified attributes of a partial scene from `chances`."""
    things = tuple(_complete_thing(thing, rng) for thing in scene.things)
    backdrop = scene.backdrop
    if backdrop is None:
        shares = backdrop_shares(things[0].noun, outdoors=scene.time is not None)
        others = [thing.noun for thing in things[1:]]
        backdrop = draw(rng, {b: s for b, s in shares.items() if not any(is_held_out(o, f"on {b}") for o in others)})
    time = scene.time
    if time is None:
        time = draw(rng, chances.TIME) if backdrop in OUTDOORS else ""
    style = scene.style or draw(rng, style_shares(scene.things))
    return dataclasses.replace(scene, things=things, backdrop=backdrop, time=time, style=style)


def _complete_thing(thing: Thing, rng: random.Random) -> Thing:
    noun = NOUNS[thing.noun]
    gender = thing.gender if thing.gender is not None else ""
    tone = thing.tone if thing.tone is not None else ""
    if noun.person:
        gender = gender or ("woman" if rng.random() < (noun.women or 0.0) else "man")
        tone = tone or draw(rng, chances.TONE)
        look = GENDERS.index(gender) * len(TONES) + tuple(TONES).index(tone)
    else:
        look = rng.randrange(len(noun.looks)) if thing.look is None else thing.look
    return Thing(
        noun=thing.noun,
        count=draw(rng, chances.COUNT) if thing.count is None else thing.count,
        color=thing.color or draw(rng, color_shares(thing.noun)),
        size=thing.size or draw(rng, chances.SIZE),
        facing=(thing.facing or draw(rng, chances.FACING)) if thing.noun in SIDEWAYS else "left",
        gender=gender,
        tone=tone,
        look=look,
    )


# ----------------------------------------------------------------------------------------------------- partial scenes

#: probability that a training caption specifies an attribute, if it can.
SPECIFIED = {"style": 0.45, "color": 0.3, "size": 0.15, "facing": 0.6, "gender": 0.5, "tone": 0.25, "backdrop": 0.65}
SPECIFIED_TIME = 0.3
KINDS = {"one": 0.37, "several": 0.16, "two": 0.3, "sign": 0.17}
RELATION: dict[Relation, float] = {relation: 0.1 if relation == "and" else 0.225 for relation in RELATIONS}
PLANTED_WEIGHT = 6.0  # of the nouns in `chances.PLANTED_PLACES`, relative to others with as many sprites


def caption_weight(noun: str) -> float:
    """How often training captions name a noun, relative to one with two sprites.

    The weight is proportional to the number of sprites, because each of them has to be learned; for people, whose
    sprites differ in details alone, to its square root. A noun with a planted place has `PLANTED_WEIGHT` times as much,
    because the place shows only where a caption has no backdrop: a teacher trained without this factor drew 8 % of the
    foxes in the snow instead of 60 %.

    >>> caption_weight("castle"), caption_weight("cat")
    (1.0, 4.0)
    """
    person, pairs = NOUNS[noun].person, len(NOUNS[noun].looks) * len(styles_of(noun)) / 2
    weight = math.sqrt(len(TONES) * pairs) if person else pairs
    return weight * (PLANTED_WEIGHT if noun in chances.PLANTED_PLACES else 1.0)


_NAMES = tuple(NOUNS)
_COUNTABLE = tuple(name for name in NOUNS if countable(name))
_WEIGHTS = [caption_weight(noun) for noun in NOUNS]


def partial_scene(rng: random.Random, *, held_out: bool | None = False) -> Scene:
    """Sample a partial scene with (True), without (False) or with and without (None) held-out combinations."""
    while True:
        kind = draw(rng, KINDS)
        if kind == "two":
            things = tuple(_thing(noun, rng) for noun in dict.fromkeys(rng.choices(_NAMES, _WEIGHTS, k=2)))
            things = tuple(dataclasses.replace(thing, size=None, facing=None) for thing in things)
        elif kind == "several":
            thing = _thing(rng.choice(_COUNTABLE), rng)
            things = (dataclasses.replace(thing, count=rng.choice((None, 2, 2, 3, 3, 4, 4)), size=None),)
        else:
            things = (_thing(rng.choices(_NAMES, _WEIGHTS)[0], rng),)
        if kind == "sign":
            things = (dataclasses.replace(things[0], size=None),)
        backdrop = time = None
        if rng.random() < SPECIFIED["backdrop"]:
            backdrop = rng.choice(PLACES if rng.random() < 0.6 else tuple(PLAIN))
        if rng.random() < SPECIFIED_TIME and (backdrop is None or backdrop in OUTDOORS):
            time = rng.choice(TIMES)
        relation = draw(rng, RELATION)
        scene = Scene(
            things,
            style=rng.choice(tuple(style_shares(things))) if rng.random() < SPECIFIED["style"] else None,
            backdrop=backdrop,
            time=time,
            relation=relation if len(things) == 2 else None,
            sign=sign_words(rng) if kind == "sign" else None,
        )
        if held_out is None or scene.held_out == held_out:
            return scene


def _thing(noun: str, rng: random.Random) -> Thing:
    specified = {name: rng.random() < share for name, share in SPECIFIED.items()}
    thing = Thing(noun)
    person = NOUNS[noun].person
    return Thing(
        noun,
        color=rng.choice(tuple(COLORS)) if specified["color"] and not person else None,
        size=rng.choice(SIZES) if specified["size"] else None,
        facing=rng.choice(("left", "right")) if specified["facing"] and noun in SIDEWAYS else None,
        gender=rng.choice(GENDERS) if specified["gender"] and thing.gendered else None,
        tone=rng.choice(tuple(TONES)) if specified["tone"] and person else None,
    )


#: common words on signs; `sign_words` also makes words of random letters.
SIGN_WORDS: tuple[str, ...] = tuple(
    (
        "hello world flux noise sigma hi yes no stop go love peace home help free sale open closed welcome thanks "
        "please sorry happy good bad new old big small hot cold fast slow up down left right north south east west "
        "one two three four five six seven eight nine ten red green blue pink black white day night sun moon star sky "
        "sea rain snow wind fire water earth tree river lake forest summer winter spring monday friday today now "
        "later soon never always dream hope joy smile laugh play sing dance jump run walk fly swim read write draw "
        "paint learn teach think know see look hear taste touch feel eat drink cook bake sleep wake wait come back "
        "again first last next step seed time life work book music photo movie party coffee tea milk bread pizza "
        "cake apple lemon salt sugar fox cat dog frog bear lion fish bird king queen hero magic secret lucky brave "
        "kind wise quiet loud sweet fresh simple wow ok bye morning ice cream taxi hotel museum school garden kitchen "
        "city town street bridge tower island planet rocket robot ghost pirate wizard dragon vote join win lost found"
    ).split()
)


def sign_words(rng: random.Random) -> str:
    """Sample one or two words for a sign, each from `SIGN_WORDS` or, in 40 %, of random letters."""

    def word() -> str:
        if rng.random() < 0.6:
            return rng.choice(SIGN_WORDS)
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, SIGN_LETTERS)))

    return "hello world" if rng.random() < 0.04 else " ".join(word() for _ in range(rng.choice((1, 2))))
