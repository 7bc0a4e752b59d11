"""A server process with the toy model loaded, which forks a child that fills a store for each line on stdin.

    python -m tests.grid.killed_process MODEL_FOLDER STORE LOG

It prints the process ID of each child. A child appends the key of every cell that it samples to LOG. Forking is much
faster than starting Python for each of twenty kills.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import fluxnb as fnb

GRID = {"prompts": ["a fox", "a cat", "a dog"], "seeds": range(4), "steps": [1, 2, 3, 4], "height": 32, "width": 32}
PAUSE = 0.02  # seconds of delay per evaluation, so that a kill finds the grid unfinished


def main(folder: str, store: str, log: str) -> None:
    """Serve until stdin ends."""
    flux = fnb.load(folder)
    flux.pipe.transformer.register_forward_pre_hook(lambda *_: time.sleep(PAUSE))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reap children automatically
    print("ready", flush=True)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            with open(log, "a") as logfile:
                for cell in fnb.stream(flux, **GRID, store=store):
                    if cell.made:
                        print(cell.key, file=logfile, flush=True)
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
