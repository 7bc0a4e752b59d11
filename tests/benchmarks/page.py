"""The HTML page of a sweep: its size, the time to write it, and the frame rate of its slider in a browser.

    python -m tests.benchmarks.page                       # 64 cells of four steps with pocket, about three minutes
    python -m tests.benchmarks.page --cells 16 --save .   # fewer, and the pages are saved
    python -m tests.benchmarks.page --tiny                # four cells of one step, to test the script

One slider move is made per animation frame, and the idle frame rate is reported for comparison. On a busy machine
frames are dropped, so the processor time of a move is measured too, over all processes of the browser: 60 moves a
second require less than 16.7 ms. Prints one line of JSON.
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
MOVES = 240

SCRUB = """async (range, moves) => {
  const quantile = (times, share) => times.slice().sort((a, b) => a - b)[Math.floor(share * times.length)];
  const frames = [], work = [], idle = [];
  let last = await new Promise(requestAnimationFrame);
  const next = async (into) => {
    const now = await new Promise(requestAnimationFrame);
    into.push(now - last);
    last = now;
  };
  for (let i = 0; i < 60; i += 1) await next(idle);
  for (let i = 0; i < moves; i += 1) {
    const began = performance.now();
    range.value = String(i % (Number(range.max) + 1));
    range.dispatchEvent(new Event("input", { bubbles: true }));
    document.body.getBoundingClientRect();
    work.push(performance.now() - began);
    await next(frames);
  }
  const rate = (times) => (1000 * times.length) / times.reduce((a, b) => a + b, 0);
  return { per_second: rate(frames), idle_per_second: rate(idle), median_frame_ms: quantile(frames, 0.5),
           median_work_ms: quantile(work, 0.5), work_95_ms: quantile(work, 0.95) };
}"""


def processor_seconds() -> float:
    """Processor time of the browser processes that this process started."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return sum(sum(each.cpu_times()[:2]) for each in children if "chrom" in each.name())


def scrubs(path: Path, moves: int) -> dict[str, Any]:
    """Measure slider moves in Chromium with all cells visible."""
    chromium = os.environ.get("FLUXNB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        return {"skipped": "no Chromium"}
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.goto(path.resolve().as_uri())
        page.locator(".fluxnb-explore[data-cells]").wait_for()
        page.wait_for_timeout(1000)
        visible = page.locator(".fluxnb-tile img").count()
        before = processor_seconds()
        measured = page.get_by_label("noise level").evaluate(SCRUB, moves)
        measured["processor_ms"] = 1000 * (processor_seconds() - before) / moves
        browser.close()
    return {"visible_cells": visible, **{name: round(value, 2) for name, value in measured.items()}}


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=64, help="a multiple of four (default 64)")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write the pages to this folder")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    cells, steps, moves = (4, 1, 8) if options.tiny else (options.cells, options.steps, MOVES)
    import fluxnb as fnb

    flux = fnb.load("pocket")
    seeds = range(cells // len(PROMPTS))
    grid = fnb.sweep(flux, prompts=PROMPTS, seeds=seeds, steps=steps, keep=fnb.Keep())
    result: dict[str, Any] = {"cells": len(grid), "steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        target = options.save or Path(folder)
        pages = {"linear preview": None, "decoded": flux.decode}
        for name, decode in pages.items():
            began = time.perf_counter()
            path = grid.to_html(target / f"grid-{name.split()[0]}.html", decode=decode)
            size, seconds = path.stat().st_size, time.perf_counter() - began
            result[name] = {"megabytes": round(size / 1e6, 2), "seconds": round(seconds, 1), **scrubs(path, moves)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
