"""The scrubber by its traits, without a front end."""

import re

import pytest

from fluxnb.errors import InputError
from fluxnb.html.front_end import script
from fluxnb.widgets import scrub
from tests.scenes import grid, trajectory


def test_frames_are_webp_bytes_and_the_description_is_json():
    import json

    widget = scrub(trajectory())
    assert all(isinstance(frame, bytes) and frame[8:12] == b"WEBP" for frame in widget.frames)
    assert json.loads(json.dumps(widget.data))["trajectories"][0]["sigmas"] == [1.0, 0.75, 0.5, 0.25]


def test_repr_contains_no_memory_address():
    assert repr(scrub(trajectory(steps=2))) == "Scrubber(1 trajectory, 8 frames)"
    assert not re.search("0x[0-9a-f]+", repr(scrub([trajectory(), trajectory(seed=4)])))


def test_the_mime_bundle_has_the_widget_and_a_fallback_image():
    bundle, _ = scrub([trajectory(), trajectory(seed=4)])._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["image/png"].startswith("iVBOR") and len(bundle["image/png"]) < 120_000


def source() -> str:
    return script("scrubber")


def test_the_slider_sends_its_level_to_the_kernel_and_nothing_else():
    assert ".send(" not in source() and len(re.findall(r"\.save_changes\(", source())) == 1


def test_the_front_end_neither_parses_text_as_markup_nor_uses_the_network():
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source())
    assert not re.search(r"https?://|import\s*\(|fetch\(|XMLHttpRequest", source())


def test_the_last_axis_of_a_sweep_is_its_columns():
    assert scrub(grid(seeds=[0, 1], steps=[1, 2, 4])).data["columns"] == 3


def test_the_title_of_several_trajectories_is_their_common_prompt():
    assert scrub([trajectory(steps=1), trajectory(steps=4)]).data["title"] == "a house on a hill"


def test_sigma_is_bounded():
    import traitlets

    widget = scrub(trajectory())
    widget.sigma = 0.5
    with pytest.raises(traitlets.TraitError):
        widget.sigma = 2.0


def test_to_html_writes_the_same_frames(tmp_path):
    import base64

    widget = scrub(trajectory())
    text = widget.to_html(tmp_path / "trajectory.html").read_text()
    assert all(base64.b64encode(frame).decode() in text for frame in widget.frames)


def test_an_empty_list_is_refused():
    with pytest.raises(InputError):
        scrub([])
