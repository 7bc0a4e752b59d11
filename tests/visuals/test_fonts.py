"""Fonts for texts that the default font cannot draw."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
from matplotlib import get_data_path
from PIL import ImageFont

import fluxnb as fnb
from fluxnb.visuals import fonts
from fluxnb.visuals.fonts import DEFAULT, MISSING, drawable, font_for, shortened
from tests.scenes import trajectory

ONLY_STIX = "\u0359"  # a character of STIXGeneral and not of DejaVu Sans
NOWHERE = "\U000f1234"  # in a private area, which no font of matplotlib has


@pytest.fixture
def only_default(monkeypatch):
    monkeypatch.setattr(fonts, "_installed", list)


@pytest.fixture
def only_stix(monkeypatch):
    path = f"{get_data_path()}/fonts/ttf/STIXGeneral.ttf"
    font = SimpleNamespace(name="STIXGeneral", fname=path, style="normal", weight=400)
    monkeypatch.setattr(fonts, "_installed", lambda: [font])


def test_a_text_of_the_default_font_is_unchanged():
    assert drawable("a fox, σ → 0") == ("a fox, σ → 0", (DEFAULT,))


def test_a_character_of_another_font_names_its_family(only_stix):
    assert drawable(f"a{ONLY_STIX}") == (f"a{ONLY_STIX}", (DEFAULT, "STIXGeneral"))


def test_a_character_of_no_font_is_replaced_visibly_and_joiners_are_removed(only_default):
    assert drawable("a 狐\n🦊\U000e0067") == (f"a {MISSING}\n{MISSING}", (DEFAULT,))


def test_a_line_of_pillow_has_the_font_with_most_of_its_characters(only_stix):
    path, text = font_for(f"a{ONLY_STIX}")
    assert path.stem == "STIXGeneral" and text == f"a{ONLY_STIX}"
    path, text = font_for("a fox 狐")
    assert path.stem == "DejaVuSans" and text == f"a fox {MISSING}"


def test_a_shortened_line_fits():
    font = ImageFont.truetype(font_for("a")[0], 10)
    assert shortened("a fox", font, 100) == "a fox"
    short = shortened("a fox in the snow", font, 50)
    assert short.endswith("…") and font.getlength(short) <= 50


@pytest.mark.moderate
@pytest.mark.parametrize("prompt", ["狐狸在雪中 🦊", "лиса в снегу", "ثعلب في الثلج", f"a {NOWHERE}"])
def test_no_figure_warns_of_a_missing_glyph(prompt, only_default):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fnb.filmstrip(trajectory(prompt=prompt))._repr_png_()


@pytest.mark.moderate
def test_a_figure_in_the_axes_of_the_caller_warns_of_no_missing_glyph(only_default):
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fnb.plots.path([trajectory(prompt="狐"), trajectory(prompt="🦊", steps=2)], ax=ax)
        figure.canvas.draw()
    plt.close(figure)
