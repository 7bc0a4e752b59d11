"""The page of a grid: how large it is, how long it takes to write, and how many scrubs a second a browser makes.

    python -m tests.benchmarks.page                       # 64 cells of four steps with pocket, about three minutes
    python -m tests.benchmarks.page --cells 16 --keep .   # fewer, and the page kept

A scrub is one move of the slider with the drawing it causes, one for each frame that the browser offers; beside it
stands how many frames it offers when nothing moves. On a machine that is busy with other things frames go missing, so
the processor time of a scrub is counted too, of all the browser's processes together: 60 a second need less than 16.7
milliseconds. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS = ["a red fox in the snow", "a cat on a table", "two dogs under a tree", "a sign that says hello"]
FLAGS = ["--no-sandbox", "--disable-gpu"]
SCRUBS = 240

SCRUB = """async (range) => {
  const sorted = (times) => times.slice().sort((a, b) => a - b);
  const frames = [], work = [], idle = [];
  let last = await new Promise(requestAnimationFrame);
  const next = async (into) => {
    const now = await new Promise(requestAnimationFrame);
    into.push(now - last);
    last = now;
  };
  for (let i = 0; i < 60; i += 1) await next(idle);
  for (let i = 0; i < SCRUBS; i += 1) {
    const begin = performance.now();
    range.value = String(i % (Number(range.max) + 1));
    range.dispatchEvent(new Event("input", { bubbles: true }));
    document.body.getBoundingClientRect();
    work.push(performance.now() - begin);
    await next(frames);
  }
  const rate = (times) => (1000 * times.length) / times.reduce((a, b) => a + b, 0);
  return { per_second: rate(frames), idle_per_second: rate(idle), median_frame_ms: sorted(frames)[120],
           median_work_ms: sorted(work)[120], work_95_ms: sorted(work)[228] };
}""".replace("SCRUBS", str(SCRUBS))


def spent() -> float:
    """Processor seconds of the browser that this process started."""
    import psutil

    family = psutil.Process().children(recursive=True)
    return sum(sum(each.cpu_times()[:2]) for each in family if "chrom" in each.name())


def scrubs(path: Path) -> dict[str, Any]:
    """Scrubs a second in Chromium, all cells in sight."""
    found = os.environ.get("FLUXNB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        return {"skipped": "no Chromium"}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(path.resolve().as_uri())
        page.locator(".fluxnb-explore[data-cells]").wait_for()
        page.wait_for_timeout(1000)
        seen = page.locator(".fluxnb-tile img").count()
        before = spent()
        measured = page.get_by_label("noise level").evaluate(SCRUB)
        measured["processor_ms"] = 1000 * (spent() - before) / SCRUBS
        browser.close()
    return {"cells_in_sight": seen, **{name: round(value, 2) for name, value in measured.items()}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=64, help="a multiple of four (default 64)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="a folder for the pages")
    asked = parser.parse_args()
    import fluxnb as fnb

    flux = fnb.load("pocket")
    seeds = range(asked.cells // len(PROMPTS))
    grid = fnb.sweep(flux, prompts=PROMPTS, seeds=seeds, steps=asked.steps, keep=fnb.Keep())
    said: dict[str, Any] = {"cells": len(grid), "steps": asked.steps}
    with tempfile.TemporaryDirectory() as folder:
        where = asked.keep or Path(folder)
        pages = {"linear preview": None, "decoded": flux.decode}
        for name, decode in pages.items():
            begin = time.perf_counter()
            path = grid.to_html(where / f"grid-{name.split()[0]}.html", decode=decode)
            size, seconds = path.stat().st_size, time.perf_counter() - begin
            said[name] = {"megabytes": round(size / 1e6, 2), "seconds": round(seconds, 1), **scrubs(path)}
    print(json.dumps(said))


if __name__ == "__main__":
    main()
