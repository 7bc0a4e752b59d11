"""Scenes of pocket's training data: objects on backgrounds, with a relation between two objects or with a sign.

A `Scene` holds what a caption can describe. Exact positions, sizes and shades are chosen at random by the layout, and
are what different seeds change.
"""

from __future__ import annotations

import dataclasses
import random
import string
import zlib
from collections.abc import Iterator
from typing import Literal

#: name of the object -> code points of its emoji, which are the file name in the source package.
OBJECTS: dict[str, str] = {
    name: "-".join(f"{ord(sign):x}" for sign in emoji)
    for name, emoji in (
        item.split(":")
        for item in (
            "fox:🦊 cat:🐱 dog:🐶 frog:🐸 panda:🐼 lion:🦁 tiger:🐯 bear:🐻 rabbit:🐰 monkey:🐵 pig:🐷 cow:🐮 "
            "koala:🐨 mouse:🐭 wolf:🐺 unicorn:🦄 chicken:🐔 penguin:🐧 owl:🦉 duck:🦆 turtle:🐢 snake:🐍 crab:🦀 "
            "octopus:🐙 fish:🐠 whale:🐳 shark:🦈 butterfly:🦋 bee:🐝 ladybug:🐞 snail:🐌 dinosaur:🦖 elephant:🐘 "
            "giraffe:🦒 zebra:🦓 flamingo:🦩 parrot:🦜 kangaroo:🦘 apple:🍎 pear:🍐 lemon:🍋 banana:🍌 "
            "watermelon:🍉 grapes:🍇 strawberry:🍓 cherries:🍒 pineapple:🍍 avocado:🥑 tomato:🍅 carrot:🥕 "
            "corn:🌽 broccoli:🥦 mushroom:🍄 croissant:🥐 pretzel:🥨 cheese:🧀 pizza:🍕 burger:🍔 fries:🍟 taco:🌮 "
            "donut:🍩 cookie:🍪 cake:🎂 cupcake:🧁 lollipop:🍭 coffee:☕ teapot:🫖 car:🚗 bus:🚌 tractor:🚜 "
            "bicycle:🚲 train:🚂 airplane:✈ helicopter:🚁 rocket:🚀 sailboat:⛵ ufo:🛸 balloon:🎈 house:🏠 castle:🏰 "
            "tent:⛺ tree:🌳 palm:🌴 cactus:🌵 sunflower:🌻 rose:🌹 clover:🍀 sun:☀ moon:🌙 star:⭐ rainbow:🌈 "
            "snowman:⛄ umbrella:☂ fire:🔥 heart:❤ crown:👑 hat:🎩 dress:👗 backpack:🎒 key:🔑 lock:🔒 bell:🔔 "
            "clock:⏰ bulb:💡 book:📕 pencil:✏ scissors:✂ camera:📷 telephone:☎ television:📺 laptop:💻 robot:🤖 "
            "ghost:👻 alien:👽 pumpkin:🎃 gift:🎁 trophy:🏆 football:⚽ basketball:🏀 guitar:🎸 trumpet:🎺 drum:🥁 "
            "dice:🎲 teddy:🧸 magnet:🧲 anchor:⚓ diamond:💎 globe:🌍"
        ).split()
    )
}
NAMES: tuple[str, ...] = tuple(OBJECTS)

#: plain backgrounds, sRGB.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 68, 66),
    "orange": (242, 150, 56),
    "yellow": (246, 212, 84),
    "green": (98, 178, 96),
    "blue": (74, 132, 220),
    "purple": (140, 92, 190),
    "pink": (244, 160, 190),
    "brown": (136, 98, 72),
    "gray": (146, 150, 156),
    "white": (244, 244, 242),
}
#: places and their words in a caption.
PLACES: dict[str, str] = {
    "snow": "in the snow",
    "meadow": "in a meadow",
    "beach": "on the beach",
    "night": "at night",
    "sunset": "at sunset",
    "water": "under water",
}
BACKGROUNDS: tuple[str, ...] = (*COLORS, *PLACES)

Relation = Literal["left of", "right of", "above", "below", "and"]
RELATIONS: tuple[Relation, ...] = ("left of", "right of", "above", "below", "and")

#: size of a sign: two lines of seven letters.
SIGN_LINES, SIGN_LETTERS = 2, 7
SIGN_WORDS: tuple[str, ...] = tuple(
    (
        "hello world hello world hello world flux noise sigma hi yes no stop go love peace home help free sale open "
        "closed welcome thanks please sorry happy birthday good bad new old big small hot cold fast slow up down left "
        "right north south east west one two three four five six seven eight nine ten red green blue pink black white "
        "day night sun moon star sky sea rain snow wind fire water earth tree river lake forest summer winter spring "
        "monday friday today now later soon never always dream hope joy smile laugh play sing dance jump run walk fly "
        "swim read write draw paint learn teach think know see look hear taste touch feel eat drink cook bake sleep "
        "wake wait come back again first last next step seed time life work book music photo movie party coffee tea "
        "milk bread pizza cake apple lemon salt sugar fox cat dog frog bear lion fish bird king queen hero magic "
        "secret lucky brave kind wise quiet loud sweet fresh simple wow ok bye morning ice cream taxi hotel museum "
        "school garden kitchen city town street bridge tower island planet rocket robot ghost pirate wizard dragon"
    )
    .replace("birthday", "bday")
    .split()
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of a picture, as a caption can describe it.

    Attributes:
        objects: one or two of `NAMES`.
        background: one of `BACKGROUNDS`.
        relation: position of the first object relative to the second; None for one object.
        sign: the words on a sign held by the only object; None for no sign.

    >>> Scene(("fox",), "snow").caption()
    'a fox in the snow'
    """

    objects: tuple[str, ...]
    background: str
    relation: Relation | None = None
    sign: str | None = None

    @property
    def held_out(self) -> bool:
        """Whether any of its combinations is excluded from training."""
        pairs = [(name, self.background) for name in self.objects]
        if len(self.objects) == 2:
            pairs.append(tuple(sorted(self.objects)))  # type: ignore[arg-type]
        return any(is_held_out(*pair) for pair in pairs)

    def caption(self, rng: random.Random | None = None, *, with_background: bool = True) -> str:
        """The standard caption of the scene, or with `rng` a random paraphrase of it."""
        things = [with_article(name, rng) for name in self.objects]
        where = background_words(self.background, rng) if with_background else ""
        if self.sign is not None:
            quote = '"' if rng is not None and rng.random() < 0.15 else ""
            sign = f"holding a sign that says {quote}{self.sign}{quote}"
            return " ".join(filter(None, (things[0], where, sign)))
        subject = things[0] if len(things) == 1 else f"{things[0]} {relation_words(self.relation, rng)} {things[1]}"
        if where and rng is not None and rng.random() < 0.1:
            return f"{where}, {subject}"
        return " ".join(filter(None, (subject, where)))


def is_held_out(one: str, other: str) -> bool:
    """Whether a combination is in the held-out tenth; decided by a checksum, independent of order and seed."""
    return zlib.crc32(f"{one}+{other}".encode()) % 10 == 0


def with_article(name: str, rng: random.Random | None = None) -> str:
    """A name with its indefinite article; with `rng`, in a fifth of the cases with `the` or without an article."""
    if rng is not None and (dice := rng.random()) < 0.2:
        return name if dice < 0.1 else f"the {name}"
    if name in ("grapes", "cherries", "fries", "scissors"):
        return name
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def background_words(background: str, rng: random.Random | None = None) -> str:
    """The words of a caption for a background."""
    if background in PLACES:
        return PLACES[background]
    variants = (f"on a {background} background", f"on {background}", f"in front of a {background} wall")
    words = variants[0] if rng is None else rng.choices(variants, (6, 3, 1))[0]
    return words.replace("a orange", "an orange")


def relation_words(relation: Relation | None, rng: random.Random | None = None) -> str:
    """The words of a caption for the relation of two objects."""
    variants = {
        "left of": ("left of", "to the left of"),
        "right of": ("right of", "to the right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
        "and": ("and", "next to"),
    }[relation or "and"]
    return variants[0] if rng is None else rng.choice(variants)


def sign_words(rng: random.Random) -> str:
    """One or two random words for a sign: 65 % from `SIGN_WORDS`, and random letters, so that any word can occur."""

    def word() -> str:
        if rng.random() < 0.65:
            return rng.choice(SIGN_WORDS)
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, SIGN_LETTERS)))

    if rng.random() < 0.06:
        return "hello world"
    return " ".join(word() for _ in range(rng.choice((1, 2))))


def draw_scene(rng: random.Random, *, held_out: bool | None = False) -> Scene:
    """A random scene; `held_out` selects the allowed combinations: False, True or None for both."""
    while True:
        background = rng.choice(BACKGROUNDS)
        kind = rng.random()
        if kind < 0.4:
            scene = Scene((rng.choice(NAMES),), background)
        elif kind < 0.75:
            first, second = rng.sample(NAMES, 2)
            scene = Scene((first, second), background, relation=rng.choice(RELATIONS))
        else:
            scene = Scene((rng.choice(NAMES),), background, sign=sign_words(rng))
        if held_out is None or scene.held_out == held_out:
            return scene


def draw_captioned(rng: random.Random, count: int, *, held_out: bool | None = False) -> Iterator[tuple[Scene, str]]:
    """Yield random scenes with a paraphrased caption; 15 % of captions (35 % with a sign) omit the background."""
    for _ in range(count):
        scene = draw_scene(rng, held_out=held_out)
        omitted = rng.random() < (0.35 if scene.sign is not None else 0.15)
        yield scene, scene.caption(rng, with_background=not omitted)
