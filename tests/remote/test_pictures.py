"""Pictures of each provider, in every shape of its responses."""

from __future__ import annotations

import dataclasses
import io

import pytest
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import RunError
from tests.remote.double import one_color, picture

NAMES = ("schnell@fal-ai", "schnell@together", "schnell@replicate", "schnell@hf-inference", "klein@bfl")
LINKED = ("schnell@fal-ai", "schnell@replicate", "klein@bfl")
SIZE = (512, 512)  # one that replicate draws


def recipe(seed=3, **fields):
    return fnb.Recipe(prompt="a fox", seed=seed, width=SIZE[0], height=SIZE[1], **fields)


def pixels(data):
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", NAMES)
def test_a_picture_has_the_pixels_that_were_sent(double, name, kind):
    double.kind = kind
    drawing = fnb.Remote(name).draw(recipe())
    assert drawing.image.tobytes() == pixels(picture(3, *SIZE, kind))
    assert (drawing.recipe.model, drawing.recipe.dtype, drawing.flagged) == (name, "remote", "")
    assert len(double.paid) == 1


@pytest.mark.parametrize("name", ["schnell@replicate", "klein@bfl"])
def test_an_accepted_request_is_looked_up_until_its_picture_is_ready(double, name):
    double.late = 3
    assert fnb.Remote(name).draw(recipe()).image.size == SIZE
    assert (len(double.paid), max(double.looks.values())) == (1, 4)


@pytest.mark.parametrize("name", NAMES)
def test_fields_that_the_picture_does_not_need_may_be_missing(double, name):
    needed = ("images", "url", "data", "b64_json", "id", "polling_url", "status", "output", "result", "sample")

    def minimal(value):
        if isinstance(value, dict):
            return {key: minimal(item) for key, item in value.items() if key in needed}
        return [minimal(item) for item in value] if isinstance(value, list) else value

    double.change = minimal
    assert fnb.Remote(name).draw(recipe()).image.size == SIZE


def test_replicate_may_send_one_link_instead_of_a_list(double):
    double.change = lambda response: {**response, "output": response["output"][0]}
    assert fnb.Remote("schnell@replicate").draw(recipe()).image.size == SIZE


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_one_color_is_flagged(double, name):
    double.encode = lambda seed, width, height: one_color(width, height)
    assert fnb.Remote(name).draw(recipe()).flagged == "one color"


def test_a_picture_that_the_filter_of_fal_replaced_is_flagged(double):
    double.change = lambda response: {**response, "has_nsfw_concepts": [True]}
    assert fnb.Remote("schnell@fal-ai").draw(recipe()).flagged == "withheld by the filter"


def test_a_picture_of_another_seed_is_flagged(double):
    double.change = lambda response: {**response, "seed": 77}
    assert fnb.Remote("schnell@fal-ai").draw(recipe()).flagged == "drawn with another seed"


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_another_size_keeps_its_size(double, name):
    double.encode = lambda seed, width, height: picture(seed, 496, 512)
    drawing = fnb.Remote(name).draw(recipe())
    assert (drawing.image.size, drawing.recipe.width, drawing.recipe.height) == ((496, 512), 496, 512)


@pytest.mark.parametrize("size", [(1, 1), (4112, 4112), (65535, 8)])
def test_a_picture_of_an_impossible_size_is_an_error(double, size):
    buffer = io.BytesIO()
    Image.new("1", size).save(buffer, "PNG")
    double.encode = lambda seed, width, height: buffer.getvalue()
    with pytest.raises(RunError, match=f"{size[0]} x {size[1]}"):
        fnb.Remote("schnell@hf-inference").draw(recipe())


def test_formats_other_than_png_jpeg_and_webp_are_not_decoded(double):
    double.kind = "TIFF"
    with pytest.raises(RunError, match="another format"):
        fnb.Remote("schnell@together").draw(recipe())


def test_the_metadata_of_a_picture_is_dropped(double):
    from PIL.PngImagePlugin import PngInfo

    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("prompt", "{}")
    Image.open(io.BytesIO(picture(3, *SIZE))).save(buffer, "PNG", pnginfo=info, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    double.encode = lambda seed, width, height: buffer.getvalue()
    assert fnb.Remote("schnell@fal-ai").draw(recipe()).image.info == {}


def test_line_ends_of_a_prompt_stay_in_the_body(double):
    prompt = "a fox\r\nX-Injected: 1\r\n\r\nPOST /other HTTP/1.1"
    fnb.Remote("schnell@fal-ai").draw(recipe().replace(prompt=prompt))
    assert [request.body["prompt"] for request in double.paid] == [prompt]
    assert not any("x-injected" in request.headers for request in double.requests)


def test_the_drawn_recipe_is_the_requested_one(double):
    drawing = fnb.Remote("schnell@fal-ai").draw(recipe())
    assert drawing.recipe.replace(model=None, revision=None, dtype=None, max_sequence_length=None) == recipe()
    assert dataclasses.replace(drawing.recipe) == drawing.recipe
