"""The canvas: points in the plane that a reader draws, as the data of a two-dimensional flow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import traitlets
from PIL import Image, ImageDraw

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten
from fluxnb.html.front_end import script, style
from fluxnb.html.page import Still
from fluxnb.visuals.frames import webp
from fluxnb.widgets.shapes import HALF, SHAPES, Array, shape
from fluxnb.widgets.view import View

__all__ = ["MOST_POINTS", "Canvas", "canvas"]

MOST_POINTS = 2000  # of one drawing; a front end sends all of them after each stroke
SIDE = 420  # pixels of the saved picture
DOT = 2.2  # pixels, radius of a point in it
INK, FAINT = "#0072b2", "#d8d8d8"
REMEDY = 'try canvas.points = fnb.widgets.shape("two moons")'


class _Points(traitlets.TraitType):
    """An array (n, 2) of float32; a name of a shape, any other array, a tensor and lists are converted."""

    def validate(self, obj: Any, value: Any) -> Array:
        points = shape(value) if isinstance(value, str) else _as_array(value)
        points.flags.writeable = False  # a change in place would not reach the front end
        return points


def _as_array(value: Any) -> Array:
    try:
        points = np.asarray(value, dtype=np.float32).copy()
    except (TypeError, ValueError, RuntimeError) as problem:
        raise InputError(f"points={shorten(value)}", "they are an (n, 2) array of numbers", REMEDY) from problem
    if points.size == 0:
        return points.reshape(0, 2)
    given = f"points of the shape {points.shape}"
    if points.ndim != 2 or points.shape[1] != 2:
        raise InputError(given, "the shape is (n, 2), one row for each point", REMEDY)
    if len(points) > MOST_POINTS:
        raise InputError(given, f"at most {MOST_POINTS} points are possible", f"try points[:{MOST_POINTS}]")
    if not np.abs(points).max() <= HALF:  # also for nan
        reason = f"the canvas reaches from {-HALF} to {HALF} in both directions"
        raise InputError(f"{given} with coordinates outside the canvas", reason, REMEDY)
    return points


def _to_json(points: Array, _: Any = None) -> list[list[float]]:
    return [[round(float(x), 3), round(float(y), 3)] for x, y in points]


def _count(number: int) -> str:
    return f"{number} point{'s' * (number != 1)}"


class Canvas(View):
    """A plane in which points are drawn with a mouse, a finger, a pen or the keyboard.

    A brush scatters points along a stroke. A stroke, a clearing and a shape can be undone. Keys: arrows move the brush,
    Shift with arrows draws, space scatters points, u undoes, Delete clears, + and - change the width of the brush. The
    points reach Python at the end of each stroke. The saved output has the points at the time of display.

    Arguments:
        points: the first points, an (n, 2) array or the name of a shape.

    Attributes:
        points: a read-only array (n, 2) of float32, n at most 2000, in coordinates from -2.5 to 2.5. It can be set
            to an array, a tensor, lists or the name of a shape, and observed: `canvas.observe(function, "points")`.
    """

    _view = "canvas"
    _esm = script("canvas")
    _css = style("canvas")

    points = _Points().tag(sync=True, to_json=_to_json, from_json=lambda value, _: value)
    settings = traitlets.Dict().tag(sync=True)

    def __init__(self, points: Any = (), **traits: Any) -> None:
        shapes = {name: _to_json(shape(name)) for name in SHAPES}
        settings = {"half": HALF, "limit": MOST_POINTS, "shapes": shapes}
        super().__init__(points=points, settings=settings, **traits)

    def __repr__(self) -> str:
        return f"Canvas({_count(len(self.points))})"

    @property
    def _fallback(self) -> bytes:  # type: ignore[override]
        buffer = io.BytesIO()
        self._picture().save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    def _picture(self) -> Image.Image:
        """The points on white, with the axes and two circles of the noise, for readers that run no script."""
        picture = Image.new("RGB", (4 * SIDE, 4 * SIDE), "white")
        draw, scale = ImageDraw.Draw(picture), 2 * SIDE / HALF
        middle, end = 2 * SIDE, 4 * SIDE - 1
        draw.line((0, middle, end, middle), FAINT, 4)
        draw.line((middle, 0, middle, end), FAINT, 4)
        draw.rectangle((0, 0, end, end), outline=FAINT, width=4)
        for radius in (scale, 2 * scale):  # one and two standard deviations of the noise
            draw.circle((middle, middle), radius, outline=FAINT, width=4)
        for x, y in self.points:
            place = (middle + scale * float(x), middle - scale * float(y))
            draw.circle(place, 4 * DOT, INK)
        return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)

    def _content(self) -> tuple[dict[str, Any], list[bytes]]:
        return {"points": _to_json(self.points), "half": HALF}, [webp(self._picture(), quality=90, lossless=False)]

    def _stills(self, data: dict[str, Any]) -> list[Still]:
        return [Still(0, f"a drawing of {_count(len(data['points']))}")]


@entry_point()
def canvas(points: Any = ()) -> Canvas:
    """A canvas on which a distribution of points in the plane is drawn.

    Arguments:
        points: the first points: an (n, 2) array, tensor or list with coordinates from -2.5 to 2.5, or the name of a
            shape of `fluxnb.widgets.shape`. Without it the canvas is empty.

    Returns:
        The Canvas, a widget that displays itself as the last line of a cell; `.points` is the drawing.

    Raises:
        InputError: an unknown name, another shape of the array, more than 2000 points, or points outside the canvas.

    Example:
        >>> drawing = canvas("ring")
        >>> drawing, drawing.points.shape
        (Canvas(600 points), (600, 2))
    """
    return Canvas(points)
