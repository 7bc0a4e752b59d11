"""A process that has everything imported and the toy loaded, and forks one that fills a store whenever it is told.

    python -m tests.grid.killed_process MODEL_FOLDER STORE LOG

Each line on stdin starts a child; its process number is the answer. A child appends to LOG the key of every cell it
has made. Starting Python anew for twenty kills would take minutes; forking takes a moment.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import fluxnb as fnb

GRID = {"prompts": ["a fox", "a cat", "a dog"], "seeds": range(4), "steps": [1, 2, 3, 4], "height": 32, "width": 32}
PAUSE = 0.02  # seconds an evaluation is held up, so that a kill finds the grid unfinished


def main(folder: str, store: str, log: str) -> None:
    """Serve until stdin ends."""
    flux = fnb.load(folder)
    flux.pipe.transformer.register_forward_pre_hook(lambda *_: time.sleep(PAUSE))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the dead
    print("ready", flush=True)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            with open(log, "a") as made:
                for cell in fnb.stream(flux, **GRID, store=store):
                    if cell.made:
                        print(cell.key, file=made, flush=True)
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
