"""The documentation site: it is built without warnings, has no broken link, and works in Chromium without the network.

Its gallery is made of records without a model here; `make docs` samples it.
"""

from __future__ import annotations

import functools
import http.server
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.browser.test_access import RUN
from tests.scenes import grid, trajectory

ROOT = Path(__file__).parents[2]
LARGEST_SITE = 40 * 2**20
NOTEBOOKS = ("notebooks/00_quickstart", "notebooks/04_fit_it_on_your_gpu", "notebooks/09_guidance")
PAGES = ("index", "gallery", *NOTEBOOKS, "api/sampling", "models", "howto/lora")
SCREENS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the built site; a warning of Sphinx is an error."""
    extra, out = tmp_path_factory.mktemp("extra"), tmp_path_factory.mktemp("site")
    (extra / "gallery").mkdir()
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for name in dict.fromkeys(re.findall(r'src="(gallery/[\w-]+\.html)"', text)):
        record = grid(seeds=[0, 1], steps=[1, 2], trajectories=True) if "explorer" in name else trajectory(steps=4)
        record.to_html(extra / name)
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-W",
        "--keep-going",
        "-q",
        "-D",
        f"html_extra_path={extra}",
    ]
    doctrees = tmp_path_factory.mktemp("doctrees")
    done = subprocess.run(
        [*command, "-d", str(doctrees), "docs", str(out)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def address(site):
    """The site on the loopback interface."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def test_no_link_inside_the_site_is_broken(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if urlsplit(link).scheme == "mailto":  # the name of an endpoint, such as schnell@fal-ai
                broken.append((str(path.relative_to(site)), link))
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            place, anchor = urldefrag(unquote(link))
            target = (path.parent / urlsplit(place).path).resolve() if place else path
            known = pages[target].anchors if target in pages else {anchor} if target.is_file() else set()
            if anchor not in known:
                broken.append((str(path.relative_to(site)), link))
    assert broken == []
    assert len(pages) > 25 and sum(len(page.links) for page in pages.values()) > 1000


def test_every_page_is_in_the_site_and_it_is_small(site):
    files = [path for path in site.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST_SITE
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{notebook.stem}.html").is_file()


def test_a_figure_of_a_notebook_is_described_and_a_badge_is_a_link(site):
    described, missing = 0, []
    for page in (site / "notebooks").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "colab-badge" not in text, "pictures are not loaded from elsewhere"
        for image in re.findall(r'<img [^>]*src="[^"]*_images/[^>]*>', text):
            alt = re.search(r'alt="([^"]*)"', image)
            if alt is not None and " " in alt[1]:  # without a description it is the name of the file
                described += 1
            else:
                missing.append(page.stem)
    assert described > 50
    assert set(missing) <= {"00_quickstart", "01_step_by_step"}, "a picture alone, with its prompt in the cell"


def test_a_public_name_of_the_package_is_in_the_reference(site):
    import fluxnb

    text = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    modules = ("flow", "io", "metrics", "plots", "widgets")
    missing = [name for name in dir(fluxnb) if name not in modules and f'id="fluxnb.{name}"' not in text]
    assert [name for name in missing if not name.startswith("_")] == ["STOP", "last"]  # values, described in words
    assert "fluxnb.STOP" in text and "fluxnb.last" in text


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_nothing_from_the_network_and_axe_finds_no_serious_violation(chromium, address, axe, name, screen):
    context = chromium.new_context(viewport=SCREENS[screen], has_touch=screen == "phone", is_mobile=screen == "phone")
    page = context.new_page()
    outside, errors = [], []
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else outside.append(r.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/{name}.html", wait_until="load")
    page.evaluate(axe)
    assert page.evaluate(RUN) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= SCREENS[screen]["width"]
    assert outside == [] and errors == []
    context.close()


def test_the_gallery_works_without_a_kernel(page, address):
    page.goto(f"{address}/gallery.html")
    frame = page.frame_locator("iframe.page").first
    slider = frame.locator("input[type=range]")
    slider.wait_for()
    before = slider.input_value()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert slider.input_value() != before and page.errors == [] and page.outside == []
