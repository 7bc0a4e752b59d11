"""`judge`: what a picture of pocket shows, read by the network that measures pocket's accuracy."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten
from fluxnb.records import Cell, Sweep, Trajectory
from fluxnb.records.frozen_dict import FrozenDict
from fluxnb.train.config import POCKET
from fluxnb.train.data import emoji
from fluxnb.train.data.layouts import LETTERS
from fluxnb.train.data.scenes import BACKDROPS, COLORS, NATURAL, SIGN_LETTERS
from fluxnb.train.networks.judge import (
    ARRANGEMENTS,
    DAYTIMES,
    FACINGS,
    GENDERS,
    NAMES,
    TONES,
    Attributes,
    Judge,
    load_judge,
)

__all__ = ["LABELS", "Reading", "judge"]

WEIGHTS = Path(__file__).parents[2] / "pocket" / "judge.safetensors"
NONE = "none"  # of an attribute that the picture does not have
#: names of the classes of each attribute, in the order of the judge's.
LABELS: Mapping[str, tuple[str, ...]] = {
    "arrangement": ARRANGEMENTS,
    "count": ("1", "2", "3", "4"),
    "object": NAMES,
    "second": (*NAMES, NONE),
    "color": (*COLORS, NATURAL),
    "second_color": (*COLORS, NATURAL),
    "style": emoji.STYLES,
    "place": BACKDROPS,
    "time": DAYTIMES,
    "facing": FACINGS,
    "gender": GENDERS,
    "tone": TONES,
}
#: attributes that the judge calls otherwise.
_COLUMNS = {"object": "first", "color": "first_color", "place": "backdrop"}
LARGEST_RATIO = 1.5  # of the sides of a picture, as in the training of pocket
BATCH = 64

Picture = Image.Image | Trajectory | Cell


@dataclass(frozen=True, eq=False)
class Reading:
    """What `fnb.judge` finds in one picture. The probabilities are those of a network and are not calibrated.

    Attributes:
        probabilities: for each attribute of `LABELS` the probability of each of its names, 0 to 1. "object" is the
            thing, or the left or upper one of two, and "second" the other one. "color" and "second_color" are theirs;
            "count", "facing", "gender" and "tone" are those of the object. "place" is a place such as "snow", or the
            color of a plain backdrop.
        sign: the text on a sign, "" where there is none.
        sign_probability: the probability that the picture has a sign, times that of each letter; 1 minus that of a sign
            where there is none.
        features: what the judge sees of the picture as a whole, (256,); the space of the Fréchet distance.

    Example:
        >>> judge(fnb.run(flux, "a fox in the snow")).object                        # doctest: +SKIP
        'fox'
    """

    probabilities: Mapping[str, Mapping[str, float]] = field(repr=False)
    sign: str
    sign_probability: float
    features: Float[Tensor, "numbers"] = field(repr=False)  # noqa: F821, UP037

    def __post_init__(self) -> None:
        frozen = {name: FrozenDict(of) for name, of in self.probabilities.items()}
        object.__setattr__(self, "probabilities", FrozenDict(frozen))

    @property
    def object(self) -> str:
        """The most likely thing, the left or upper one of two, such as "fox"."""
        return self.likeliest("object")

    @property
    def second(self) -> str | None:
        """The most likely second thing; None for a picture of one kind of thing."""
        return self._or_none("second")

    @property
    def arrangement(self) -> str:
        """The most likely arrangement: "one", "several" of one kind, "side by side", "stacked" or "sign"."""
        return self.likeliest("arrangement")

    @property
    def count(self) -> int:
        """How many there are of the object, 1 to 4."""
        return int(self.likeliest("count"))

    @property
    def color(self) -> str:
        """The color of the object, such as "red", or "natural"."""
        return self.likeliest("color")

    @property
    def second_color(self) -> str | None:
        """The color of the second thing, or "natural"; None without a second thing."""
        return None if self.second is None else self.likeliest("second_color")

    @property
    def style(self) -> str:
        """The art style: "3d", "flat", "cartoon" or "sticker"."""
        return self.likeliest("style")

    @property
    def place(self) -> str:
        """The most likely place, such as "snow", or the color of a plain backdrop, such as "gray"."""
        return self.likeliest("place")

    @property
    def time(self) -> str | None:
        """The time of day: "day", "sunset" or "night"; None indoors and on plain backdrops."""
        return self._or_none("time")

    @property
    def facing(self) -> str | None:
        """Where the object faces, "left" or "right"; None for one that looks the same from both sides."""
        return self._or_none("facing")

    @property
    def gender(self) -> str | None:
        """The gender of a person, "woman" or "man"; None for another object."""
        return self._or_none("gender")

    @property
    def tone(self) -> str | None:
        """The skin tone of a person, "light", "medium" or "dark"; None for another object."""
        return self._or_none("tone")

    def likeliest(self, attribute: str) -> str:
        """The name with the largest probability of an attribute of `LABELS`."""
        of = self.probabilities[attribute]
        return max(of, key=of.__getitem__)

    def _or_none(self, attribute: str) -> str | None:
        name = self.likeliest(attribute)
        return None if name == NONE else name

    def __repr__(self) -> str:
        names = {name: value for name in ("object", "second", "place") if (value := getattr(self, name)) is not None}
        parts = [f"{value} ({100 * self.probabilities[name][value]:.0f} %)" for name, value in names.items()]
        parts += [f"sign {self.sign!r} ({100 * self.sign_probability:.0f} %)"] if self.sign else []
        return f"Reading({', '.join(parts)})"


@overload
def judge(pictures: Picture) -> Reading: ...
@overload
def judge(pictures: Sweep | Iterable[Picture]) -> tuple[Reading, ...]: ...
@entry_point()
def judge(pictures: Any) -> Any:
    """Read what pictures of pocket show: the things, their look and place, the text on a sign, with probabilities.

    The judge is the network behind the evaluation of pocket. It was trained on drawings of the training program alone
    and never on a picture of a model. For pocket and pocket-base only: it has names for their things and places, and
    gives one of them for any picture. It reads pictures at 192 x 192 pixels.

    Arguments:
        pictures: an image, a trajectory or a cell; or several of them, such as a sweep.

    Returns:
        A Reading, or a tuple of them for several pictures.

    Raises:
        InputError: no picture, or one whose sides differ by more than a factor of 1.5.

    Example:
        >>> judge(fnb.run(flux, "a fox in the snow", seed=3))                       # doctest: +SKIP
        Reading(fox (98 %), snow (98 %))
        >>> styles = [reading.style for reading in judge(sweep)]                    # doctest: +SKIP
    """
    if isinstance(pictures, Picture):
        return _read([_image(pictures)])[0]
    if isinstance(pictures, str | bytes) or not isinstance(pictures, Iterable):
        raise _no_picture(pictures)
    return _read([_image(each) for each in pictures])


def _image(picture: Any) -> Image.Image:
    image = picture.image if isinstance(picture, Trajectory | Cell) else picture
    if not isinstance(image, Image.Image):
        raise _no_picture(picture)
    if max(image.size) > LARGEST_RATIO * min(image.size):
        raise InputError(
            f"a picture of {image.width} x {image.height} pixels",
            f"the judge reads pictures whose sides differ by at most a factor of {LARGEST_RATIO}",
            'sample with fnb.load("pocket"), at height=192, width=192',
        )
    return image


def _no_picture(given: object) -> InputError:
    return InputError(
        f"pictures={shorten(given)}", "it is an image, a trajectory, a cell or several", "type fnb.judge(trajectory)"
    )


@functools.cache
def _network() -> Judge:
    return load_judge(WEIGHTS, POCKET)


@torch.no_grad()
def _read(images: Sequence[Image.Image]) -> tuple[Reading, ...]:
    network, readings = _network(), []
    pictures = [torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) for image in images]
    scaled = [network.scaled(picture[None].float() / 127.5 - 1) for picture in pictures]
    for part in (scaled[start : start + BATCH] for start in range(0, len(scaled), BATCH)):
        logits, features = network(torch.cat(part))
        readings += [_reading(logits, features, item) for item in range(len(part))]
    return tuple(readings)


def _reading(logits: Attributes, features: Tensor, item: int) -> Reading:
    columns = {name: getattr(logits, _COLUMNS.get(name, name))[item] for name in LABELS}
    probabilities = {
        name: dict(zip(LABELS[name], column.softmax(-1).tolist(), strict=True)) for name, column in columns.items()
    }
    sign = probabilities["arrangement"]["sign"]
    if sign < max(probabilities["arrangement"].values()):
        return Reading(probabilities, "", 1 - sign, features[item].clone())
    chances, letters = logits.letters[item].softmax(-1).max(-1)
    text = "".join(LETTERS[letter] for letter in letters.tolist())
    lines = [text[first : first + SIGN_LETTERS].strip() for first in range(0, len(text), SIGN_LETTERS)]
    return Reading(probabilities, " ".join(filter(None, lines)), sign * float(chances.prod()), features[item].clone())
