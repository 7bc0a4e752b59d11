"""Planted distributions of the attributes that a caption leaves unspecified.

A caption such as "a fox" leaves the style, the backdrop, the time of day and the size open. `scenes.complete` samples
each of them from a table of this module, which maps a value to its probability. The distribution of pictures given a
caption is therefore known, and the samples of a model can be compared with it.

The following is planted:

- Common defaults: some values are more frequent for every noun. 40 % of the pictures of animals and people are in style
  "3d", and 67 % of the others, which have two styles (`emoji.styles_of`). 60 % of the things have medium size, 60 % of
  the outdoor places are by day, and 20 % of the plain backdrops are white.
- `PLANTED_PLACES`: eight nouns have a typical place; 60 % of the foxes are in the snow. For any other noun, 55 % of the
  backdrops are places, with equal probabilities (`PLACE`). If the caption specifies a time of day, all are outdoors.
- `PAINTED`: eleven nouns have their natural color half of the time and any other color otherwise. All other nouns have
  their natural color.
- `nouns.Noun.women`: the share of women depends on the noun; 70 % of the teachers are women.

Combinations that are held out of the training (`scenes.is_held_out`) have probability 0; their share is distributed
among the other values of the same kind. The combinations of `PLANTED_PLACES` are never held out.
`scenes.backdrop_shares` and `scenes.color_shares` return the resulting probabilities. For two things, the first one
determines the distribution of the backdrop.
"""

from __future__ import annotations

STYLE = {"3d": 0.4, "flat": 0.2, "cartoon": 0.2, "sticker": 0.2}
SIZE = {"small": 0.2, "medium": 0.6, "large": 0.2}
COUNT = {2: 0.5, 3: 0.3, 4: 0.2}  # for a plural without a number
FACING = {"left": 0.5, "right": 0.5}  # for nouns of `scenes.SIDEWAYS`
TONE = {"light": 0.4, "medium": 0.3, "dark": 0.3}  # a person's skin tone
TIME = {"day": 0.6, "sunset": 0.2, "night": 0.2}  # for outdoor places
PLACE = 0.55  # probability of a place, each with the same share; otherwise the backdrop is plain
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
#: noun -> its typical place and the probability of it; other backdrops are distributed as for any noun.
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
#: noun -> probability of its natural color; the other colors have equal shares of the rest.
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
