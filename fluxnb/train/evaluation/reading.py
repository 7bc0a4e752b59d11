"""`judge`: what a picture of pocket shows, read by the network that measured pocket's accuracy."""

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
from fluxnb.train.data.render import LETTERS
from fluxnb.train.data.world import BACKGROUNDS, NAMES, SIGN_LETTERS
from fluxnb.train.networks.judge import ARRANGEMENTS, Attributes, Judge, load_judge

__all__ = ["Reading", "judge"]

WEIGHTS = Path(__file__).parents[2] / "pocket" / "judge.safetensors"
SIDE = 128  # of the pictures that the judge was trained on
NONE = "none"  # of `second`, for a picture of one thing
LABELS: Mapping[str, tuple[str, ...]] = {
    "object": NAMES,
    "second": (*NAMES, NONE),
    "place": BACKGROUNDS,
    "arrangement": ARRANGEMENTS,
}
BATCH = 64

Picture = Image.Image | Trajectory | Cell


@dataclass(frozen=True, eq=False)
class Reading:
    """What `fnb.judge` finds in one picture. The probabilities are those of a network and are not calibrated.

    Attributes:
        probabilities: for "object" (the thing, or the left or upper one of two), "second" (the other thing, or
            "none"), "place" (a place such as "snow" or the color of a plain background) and "arrangement" ("one",
            "side by side", "stacked", "sign"): the probability of each name, 0 to 1.
        sign: the text on a sign, "" where there is none.
        sign_probability: the probability that the picture has a sign, times that of each letter; 1 minus that of a sign
            where there is none.
        features: what the judge sees of the picture as a whole, (128,); the space of the Fréchet distance.

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
        return self._best("object")

    @property
    def second(self) -> str | None:
        """The most likely second thing; None for a picture of one."""
        name = self._best("second")
        return None if name == NONE else name

    @property
    def place(self) -> str:
        """The most likely place, such as "snow", or the color of a plain background, such as "gray"."""
        return self._best("place")

    @property
    def arrangement(self) -> str:
        """The most likely arrangement: "one", "side by side", "stacked" or "sign"."""
        return self._best("arrangement")

    def _best(self, attribute: str) -> str:
        of = self.probabilities[attribute]
        return max(of, key=of.__getitem__)

    def __repr__(self) -> str:
        names = {"object": self.object, "second": self.second, "place": self.place}
        parts = [
            f"{name} ({100 * self.probabilities[attribute][name]:.0f} %)" for attribute, name in names.items() if name
        ]
        parts += [f"sign {self.sign!r} ({100 * self.sign_probability:.0f} %)"] if self.sign else []
        return f"Reading({', '.join(parts)})"


@overload
def judge(pictures: Picture) -> Reading: ...
@overload
def judge(pictures: Sweep | Iterable[Picture]) -> tuple[Reading, ...]: ...
@entry_point()
def judge(pictures: Any) -> Any:
    """Read what pictures of pocket show: the thing, the place, the text on a sign, each with probabilities.

    The judge is the network behind the evaluation of pocket. It was trained on drawings of the training program alone
    and never on a picture of a model. For pocket and pocket-base only: it has names for their things and places, and
    gives one of them for any picture of 128 x 128 pixels.

    Arguments:
        pictures: an image, a trajectory or a cell; or several of them, such as a sweep.

    Returns:
        A Reading, or a tuple of them for several pictures.

    Raises:
        InputError: no picture, or a picture of another size.

    Example:
        >>> judge(fnb.run(flux, "a fox in the snow", seed=3))                       # doctest: +SKIP
        Reading(fox (98 %), snow (98 %))
        >>> places = [reading.place for reading in judge(sweep)]                    # doctest: +SKIP
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
    if image.size != (SIDE, SIDE):
        raise InputError(
            f"a picture of {image.width} x {image.height} pixels",
            f"the judge reads the pictures of pocket, which have {SIDE} x {SIDE}",
            f'sample with fnb.load("pocket"), at height={SIDE}, width={SIDE}',
        )
    return image


def _no_picture(given: object) -> InputError:
    return InputError(
        f"pictures={shorten(given)}", "it is an image, a trajectory, a cell or several", "type fnb.judge(trajectory)"
    )


@functools.cache
def _network() -> Judge:
    return load_judge(WEIGHTS)


@torch.no_grad()
def _read(images: Sequence[Image.Image]) -> tuple[Reading, ...]:
    readings: list[Reading] = []
    for start in range(0, len(images), BATCH):
        pictures = np.stack([np.asarray(image.convert("RGB")) for image in images[start : start + BATCH]])
        logits, features = _network()(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1)
        readings += [_reading(logits, features, item) for item in range(len(pictures))]
    return tuple(readings)


def _reading(logits: Attributes, features: Tensor, item: int) -> Reading:
    columns = {
        "object": logits.first,
        "second": logits.second,
        "place": logits.background,
        "arrangement": logits.arrangement,
    }
    probabilities = {
        name: dict(zip(LABELS[name], column[item].softmax(-1).tolist(), strict=True))
        for name, column in columns.items()
    }
    sign = probabilities["arrangement"]["sign"]
    if sign < max(probabilities["arrangement"].values()):
        return Reading(probabilities, "", 1 - sign, features[item].clone())
    chances, letters = logits.letters[item].softmax(-1).max(-1)
    text = "".join(LETTERS[letter] for letter in letters.tolist())
    lines = [text[first : first + SIGN_LETTERS].strip() for first in range(0, len(text), SIGN_LETTERS)]
    return Reading(probabilities, " ".join(filter(None, lines)), sign * float(chances.prod()), features[item].clone())
