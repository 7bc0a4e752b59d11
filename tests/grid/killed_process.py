"""A server process with the toy model loaded, which forks a child that fills a store for each line on stdin.

    python -m tests.grid.killed_process MODEL_FOLDER

A line holds options of `Options` as JSON. The server prints the process ID of each child. Forking is much faster than
starting Python for each of many kills.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from dataclasses import asdict, dataclass

import fluxnb as fnb
from fluxnb.grid import claims
from fluxnb.grid.store import Store
from fluxnb.planning.processes import Processes

GRID = {"prompts": ["a fox", "a cat", "a dog"], "seeds": range(4), "steps": [1, 2, 3, 4], "height": 32, "width": 32}
SMALL = {"prompts": "a fox", "seeds": range(3), "steps": [1, 2], "height": 32, "width": 32}
PAUSE = 0.02  # seconds of delay per evaluation, so that a kill finds the grid unfinished
NEW_PID_NAMESPACE = 0x20000000  # CLONE_NEWPID


@dataclass(kw_only=True)
class Options:
    """What a child does.

    Arguments:
        store: the folder, None for no store.
        log: file to which the key of each cell is appended when it is in the store.
        report: file for the result as JSON, written at the end.
        grid: True for GRID, False for SMALL.
        lease: of the store.
        background: True for `sweep`, False for `stream`.
        batch: images per call of `sweep`.
        machine: name of a simulated machine, None for this one.
        clock: seconds by which the clock of the process is ahead.
        stamps: True if the file system takes that clock for modification times.
        flock: False for a file system without `flock`.
        namespace: True for a PID namespace of its own, in which the child has the process ID 1.
        axes: the grid, None for that of `grid`.
        rank: number of the child among `count` launched processes.
        count: number of launched processes; 1 for none.
        evaluated: file to which a byte is appended for each evaluation of the transformer.
    """

    store: str | None = None
    log: str | None = None
    report: str | None = None
    grid: bool = False
    lease: float = 30.0
    background: bool = False
    batch: int = 1
    machine: str | None = None
    clock: float = 0.0
    stamps: bool = False
    flock: bool = True
    namespace: bool = False
    axes: dict | None = None
    rank: int = 0
    count: int = 1
    evaluated: str | None = None


def simulate(options: Options) -> None:
    """Let this process see the machine, clock and file system of its options, and log the cells it writes."""
    if options.machine is not None:
        claims._machine = lambda: options.machine
    if not options.flock:
        claims._flock = lambda descriptor: None
    if options.clock:
        now, utime, write = time.time, os.utime, claims._Candidate._write
        time.time = lambda: now() + options.clock

        def stamp(path):
            utime(path, (now() + options.clock,) * 2)

        def written(candidate, path):
            holder = write(candidate, path)
            stamp(candidate._descriptor)
            return holder

        if options.stamps:
            os.utime = stamp
            os.supports_fd.add(stamp)
            claims._Candidate._write = written
    put = Store.put

    def logged(store, key, *args, **kwargs):
        path = put(store, key, *args, **kwargs)
        with open(options.log, "ab", buffering=0) as log:
            log.write(f"{key}\n".encode())
        return path

    if options.log is not None:
        Store.put = logged


def fill(flux: fnb.Flux, options: Options) -> dict:
    """Sample the grid; returns what happened."""
    cells, error, started, longest = [], None, time.monotonic(), 0.0
    last, grid = started, options.axes or (GRID if options.grid else SMALL)
    sampled = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            store = None if options.store is None else Store(options.store, lease=options.lease)
            if options.background:
                swept = fnb.sweep(flux, **grid, store=store, batch=options.batch)
                cells = list(swept)
                sampled.append(swept.evaluations)
            else:
                for cell in fnb.stream(flux, **grid, store=store):
                    cells.append(cell)
                    longest, last = max(longest, time.monotonic() - last), time.monotonic()
        except fnb.StorageError as problem:
            error = str(problem)
        except KeyboardInterrupt:
            error = "interrupt"
    return {
        "pictures": {
            f"{cell.recipe.seed} {cell.recipe.steps} {cell.recipe.prompt}": hashlib.sha256(
                cell.image.tobytes()
            ).hexdigest()
            for cell in cells
        },
        "made": sum(cell.made for cell in cells),
        "evaluations": sum(sampled),
        "pid": os.getpid(),
        "error": error,
        "seconds": time.monotonic() - started,
        "longest": longest,
        "warnings": [str(each.message) for each in caught],
    }


def child(flux: fnb.Flux, options: Options) -> None:
    """Fill the store, write the report and end the process."""
    code = 1
    try:
        simulate(options)
        if options.count > 1:
            place = Processes(
                rank=options.rank, count=options.count, local_rank=options.rank, local_count=options.count
            )
            os.environ.update(place.environment)
        if options.evaluated is not None:
            log = os.open(options.evaluated, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            flux.pipe.transformer.register_forward_hook(lambda *_: os.write(log, b".") and None)
        report = fill(flux, options)
        if options.report is not None:
            with open(f"{options.report}.part", "w") as stream:
                json.dump({**report, "options": asdict(options)}, stream)
            os.replace(f"{options.report}.part", options.report)
        code = 0
    except KeyboardInterrupt:
        code = 130  # before or after the sampling
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def fork_into_namespace(flux: fnb.Flux, options: Options) -> int:
    """Fork a child with a PID namespace of its own; returns its process ID in this namespace."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if ctypes.CDLL(None).unshare(NEW_PID_NAMESPACE):
            os.write(writing, b"0\n")
            os._exit(1)
        pid = os.fork()
        if pid == 0:
            child(flux, options)
        os.write(writing, f"{pid}\n".encode())
        os.waitpid(pid, 0)
        os._exit(0)
    os.close(writing)
    with open(reading) as stream:
        return int(stream.readline())


def main(folder: str) -> None:
    """Serve until stdin ends."""
    flux = fnb.load(folder)
    flux.pipe.transformer.register_forward_pre_hook(lambda *_: time.sleep(PAUSE))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # reap children automatically
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in background jobs
    print("ready", flush=True)
    for line in sys.stdin:
        options = Options(**json.loads(line))
        if options.namespace:
            print(fork_into_namespace(flux, options), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            child(flux, options)
        print(pid, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
