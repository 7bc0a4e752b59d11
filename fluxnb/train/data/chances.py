"""What a caption leaves out, and how often it is what: the planted truth, as data.

Every table maps a value to its share among scenes whose caption does not say it. The shares are exact: a combination
that training holds out is never drawn for something unsaid, and its share goes to the others of the same kind.
"""

from __future__ import annotations

STYLE = {"3d": 0.4, "flat": 0.2, "cartoon": 0.2, "sticker": 0.2}
SIZE = {"small": 0.2, "medium": 0.6, "large": 0.2}
COUNT = {2: 0.5, 3: 0.3, 4: 0.2}  # of a plural without a number
FACING = {"left": 0.5, "right": 0.5}  # of the nouns in `scenes.SIDEWAYS`
TONE = {"light": 0.4, "medium": 0.3, "dark": 0.3}  # of a person's skin; a person's gender: `Noun.women`
TIME = {"day": 0.6, "sunset": 0.2, "night": 0.2}  # of places outdoors
PLACE = 0.55  # share of backdrops that are places, all equally often; the rest are plain, with these shares
PLAIN = {
    "white": 0.2,
    "blue": 0.15,
    "green": 0.1,
    "yellow": 0.1,
    "pink": 0.1,
    "gray": 0.1,
    "orange": 0.07,
    "purple": 0.07,
    "red": 0.06,
    "brown": 0.05,
}
#: noun -> the place where it is, and how often; the rest is as for any noun, without that place.
PLANTED_PLACES: dict[str, tuple[str, float]] = {
    "fox": ("snow", 0.6),
    "camel": ("desert", 0.7),
    "cow": ("meadow", 0.6),
    "shark": ("underwater", 0.7),
    "taxi": ("city", 0.6),
    "sofa": ("room", 0.7),
    "rocket": ("space", 0.6),
    "crab": ("beach", 0.7),
}
#: nouns that come in any colour: the share of their natural one; the other colours share the rest equally.
PAINTED: dict[str, float] = {
    name: 0.5
    for name in (
        "car",
        "balloon",
        "dress",
        "book",
        "t-shirt",
        "umbrella",
        "bicycle",
        "backpack",
        "scarf",
        "cap",
        "gift",
    )
}
