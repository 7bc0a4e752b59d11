"""Record the animations of the README: `python docs/animations.py` writes docs/scrubber.gif and docs/explorer.gif.

Both are pages that the package exports, sampled with pocket and its teacher, and operated in Chromium.
Needs Chromium and the package playwright, which `make env` installs.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

import fluxnb as fnb
from fluxnb.html import page as html

DOCS = Path(__file__).parent
SIGN = "a cat holding a sign that says hello world"
SCREENS = {"scrubber": (704, 440), "explorer": (704, 590)}  # pixels
UNCHANGED = 255  # the index of transparent pixels, which remain those of the frame before
MOST_BYTES = 1_000_000  # of each file
# The pointer, which screenshots do not hold.
POINTER = """() => {
  const dot = document.createElement("div");
  dot.style.cssText = "position:fixed;z-index:99;width:16px;height:16px;margin:-8px;border-radius:50%;" +
    "background:rgba(0,0,0,.45);border:1px solid white;pointer-events:none";
  document.body.append(dot);
  document.body.style.margin = "14px";
  const move = (e) => { dot.style.left = e.clientX + "px"; dot.style.top = e.clientY + "px"; };
  document.addEventListener("mousemove", move, true);
}"""


class Film:
    """Screenshots of a page and how long each is displayed."""

    def __init__(self, page: Any) -> None:
        self.page, self.frames, self.milliseconds = page, [], []  # type: ignore[var-annotated]

    def take(self, milliseconds: int) -> None:
        """Add the page as it is."""
        self.page.wait_for_timeout(120)
        self.frames.append(Image.open(BytesIO(self.page.screenshot())).convert("RGB"))
        self.milliseconds.append(milliseconds)

    def click(self, target: Any, milliseconds: int = 700) -> None:
        """Click an element with the pointer on it."""
        target.hover()
        target.click()
        self.take(milliseconds)

    def drag(self, slider: Any, start: float, stop: float, count: int, *, milliseconds: int = 160) -> None:
        """Move a slider from one share of its length to another."""
        box = slider.bounding_box()
        mouse, y = self.page.mouse, box["y"] + box["height"] / 2
        for number in range(count):
            share = start + (stop - start) * number / (count - 1)
            mouse.move(box["x"] + 8 + (box["width"] - 16) * share, y)
            if number == 0:
                mouse.down()
            self.take(milliseconds)
        mouse.up()
        self.milliseconds[-1] = 1200

    def save(self, path: Path) -> None:
        """Write the animation: each frame has a palette of its own, and only the pixels that change."""
        frames = [_with_palette(self.frames[0], None)]
        frames += [_with_palette(frame, before) for before, frame in itertools.pairwise(self.frames)]
        frames[0].save(
            path, save_all=True, append_images=frames[1:], duration=self.milliseconds, loop=0, disposal=1,
            transparency=UNCHANGED, optimize=False,
        )  # fmt: skip
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise SystemExit(f"{path} has {size:,} bytes, more than {MOST_BYTES:,}: use fewer frames")
        print(f"{path}: {len(frames)} frames, {sum(self.milliseconds) / 1000:.0f} s, {size:,} bytes")


def _with_palette(frame: Image.Image, before: Image.Image | None) -> Image.Image:
    """A frame with at most 255 colors; pixels that are those of the frame before are transparent."""
    if before is None:
        return frame.quantize(UNCHANGED, dither=Image.Dither.NONE)
    changed = np.any(np.asarray(frame) != np.asarray(before), axis=-1)
    if not changed.any():
        changed[0, 0] = True
    colors = Image.fromarray(np.asarray(frame)[changed][None]).quantize(UNCHANGED, dither=Image.Dither.NONE)
    indices = np.full(changed.shape, UNCHANGED, np.uint8)
    indices[changed] = np.asarray(colors)[0]
    result = Image.fromarray(indices, mode="P")
    result.putpalette(colors.getpalette()[: 3 * UNCHANGED])
    return result


def scrubber(film: Film) -> None:
    """The steps of the teacher and of the student, from noise to picture; then what the models were given."""
    slider = film.page.locator("input[type=range]").first
    film.drag(slider, 0.0, 1.0, 13)
    film.click(film.page.get_by_role("button", name="x", exact=True))
    film.drag(slider, 0.0, 1.0, 9)


def explorer(film: Film) -> None:
    """A grid of seeds and steps, from noise to pictures; another prompt; two pictures compared with a divider."""
    page = film.page
    film.take(800)
    film.click(page.get_by_role("button", name="x", exact=True))
    film.drag(page.locator("input[type=range]").first, 0.0, 1.0, 9)
    film.click(page.get_by_role("button", name="next prompt"), 1200)
    badges = page.locator(".fluxnb-badge")
    film.click(badges.nth(0))
    film.click(badges.nth(2))
    film.click(page.get_by_role("button", name="compare", exact=True), 900)
    film.click(page.get_by_role("button", name="slider", exact=True), 700)
    box = page.locator(".fluxnb-divider").locator("..").bounding_box()
    middle = box["y"] + box["height"] / 2
    for number, share in enumerate((0.5, 0.4, 0.3, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.7, 0.6, 0.5)):
        page.mouse.move(box["x"] + box["width"] * share, middle)
        if number == 0:
            page.mouse.down()
        film.take(150)
    page.mouse.up()
    film.take(900)


RECORDINGS: dict[str, Callable[[Film], None]] = {"scrubber": scrubber, "explorer": explorer}


def write_pages(folder: Path) -> None:
    """Sample, and write the two pages that are recorded."""
    pair = fnb.load_pair("pocket")
    runs = [
        fnb.run(pair.teacher, SIGN, seed=0, steps=12),
        *(fnb.run(pair.student, SIGN, seed=0, steps=n) for n in (4, 1)),
    ]
    html.write(runs, folder / "scrubber.html", decode=pair.student.decode, shows=["clean", "x"])
    prompts = ["a fox in the snow", "a castle at sunset"]
    grid = fnb.sweep(pair.student, prompts=prompts, seeds=range(2), steps=[1, 2, 4], keep=fnb.Keep())
    grid.to_html(folder / "explorer.html", decode=pair.student.decode)


def main(names: list[str]) -> None:
    """Record all animations, or those that are named."""
    found = os.environ.get("FLUXNB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise SystemExit(
            "no Chromium: install it (on Debian: apt-get install chromium) or set FLUXNB_CHROMIUM to its path"
        )
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        write_pages(folder)
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        for name in names or RECORDINGS:
            width, height = SCREENS[name]
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto((folder / f"{name}.html").as_uri())
            page.locator("input[type=range]").first.wait_for()
            page.evaluate(POINTER)
            film = Film(page)
            RECORDINGS[name](film)
            film.save(DOCS / f"{name}.gif")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
