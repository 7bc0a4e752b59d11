"""Claims of cells: which process has one, and when it is void."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings

import pytest

import fluxnb as fnb
from fluxnb.errors import InputError, StorageError
from fluxnb.grid import claims as module
from fluxnb.grid import runner
from fluxnb.grid.claims import Claims, Holder, this_process
from fluxnb.grid.store import Store, StoreWarning
from fluxnb.progress import Progress
from tests.trajectories import resolved

KEY = resolved().key()
ELSEWHERE = dataclasses.replace(this_process(), machine="elsewhere", token="abc", flock=False)
HERE = dataclasses.replace(this_process(), token="abc", flock=False)


def write_lock(store: Store, holder: Holder | bytes, age: float = 0.0):
    """Put a lock in place that was last renewed `age` seconds ago."""
    lock = store.path(KEY, ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_bytes(holder if isinstance(holder, bytes) else json.dumps(dataclasses.asdict(holder)).encode())
    os.utime(lock, (time.time() - age,) * 2)
    return lock


def claimed(store: Store) -> bool:
    with store.claim(KEY) as result:
        return result


def claiming_process(folder, then: str) -> subprocess.Popen:
    """A process that claims a cell, prints a line and runs the code `then`."""
    code = (
        "import os, signal, time; from fluxnb.grid.store import Store; "
        f"claim = Store({str(folder)!r}).claim({KEY!r}); assert claim.__enter__(); print(os.getpid(), flush=True)\n"
        f"{then}"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    return process


def test_of_two_claims_one_succeeds_until_the_end_of_its_block(tmp_path):
    store = Store(tmp_path)
    with store.claim(KEY) as first, store.claim(KEY) as second, Store(tmp_path).claim(KEY) as third:
        assert (first, second, third) == (True, False, False)
        assert store.path(KEY, ".lock").exists()
    assert claimed(store)
    assert not store.path(KEY, ".lock").exists()


def test_of_many_threads_one_claims(tmp_path):
    stores, barrier, results = [Store(tmp_path) for _ in range(8)], threading.Barrier(8), []

    def work(store):
        for _ in range(20):
            barrier.wait()
            with store.claim(KEY) as result:
                results.append(result)
                barrier.wait()

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count(True) == 20 and not list(tmp_path.rglob("*.part"))


@pytest.mark.moderate
def test_the_claim_of_a_dead_process_is_taken_over_at_once(tmp_path):
    process = claiming_process(tmp_path, "os._exit(9)")
    process.wait()
    assert Store.path(Store(tmp_path), KEY, ".lock").exists() is False  # opening a store removes void locks
    store, process = Store(tmp_path), claiming_process(tmp_path, "time.sleep(60)")
    assert store.path(KEY, ".lock").exists() and not claimed(store)
    process.kill()
    process.wait()
    started = time.monotonic()
    assert store.path(KEY, ".lock").exists() and claimed(store)
    assert time.monotonic() - started < 1


@pytest.mark.moderate
def test_a_child_of_a_dead_process_does_not_have_its_claim(tmp_path):
    store = Store(tmp_path)
    process = claiming_process(
        tmp_path, "if os.fork():\n    os._exit(9)\nelse:\n    print(os.getpid(), flush=True); time.sleep(60)"
    )
    process.wait()
    child = int(process.stdout.readline())  # the child has given the claim up by then
    try:
        assert claimed(store)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.moderate
def test_the_child_of_a_process_does_not_release_its_claim(tmp_path):
    store = Store(tmp_path)
    process = claiming_process(
        tmp_path,
        "if os.fork():\n    os.wait(); print('x', flush=True); time.sleep(60)\nelse:\n"
        "    claim.__exit__(None, None, None); os._exit(0)",
    )
    process.stdout.readline()
    assert not claimed(store) and store.path(KEY, ".lock").exists()
    process.kill()
    process.wait()


@pytest.mark.moderate
def test_the_claim_of_a_stopped_process_of_this_machine_is_valid(tmp_path):
    store, process = Store(tmp_path, lease=0.1), claiming_process(tmp_path, "time.sleep(60)")
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    assert not claimed(store)
    process.kill()
    process.wait()
    assert claimed(store)


def test_the_claim_of_another_pid_namespace_is_void_once_its_flock_is_free(tmp_path):
    store = Store(tmp_path, lease=30)
    write_lock(store, dataclasses.replace(HERE, namespace=1, flock=True))
    assert claimed(store)


# ---------------------------------------------------------------------------------------------------- other machines
def test_a_claim_of_another_machine_is_valid_until_its_lease_ends(tmp_path):
    store = Store(tmp_path, lease=30)
    lock = write_lock(store, ELSEWHERE)
    assert not claimed(store)
    os.utime(lock, (time.time() - 200,) * 2)
    assert not claimed(store) and not claimed(Store(tmp_path, lease=30)), "clocks may differ by that much"
    os.utime(lock, (time.time() - 301,) * 2)
    assert claimed(Store(tmp_path, lease=30))


@pytest.mark.moderate
def test_a_claim_of_another_machine_is_void_once_no_heartbeat_was_seen_for_a_lease(tmp_path):
    store = Store(tmp_path, lease=0.3)
    lock = write_lock(store, ELSEWHERE)
    for age in (90, -90, 0):  # heartbeats of a machine whose clock changes
        assert not claimed(store)
        time.sleep(0.2)
        os.utime(lock, (time.time() - age,) * 2)
    assert not claimed(store)
    time.sleep(0.4)
    assert claimed(store)


def test_heartbeats_renew_a_claim(tmp_path, monkeypatch):
    lock = tmp_path / "a.lock"
    with monkeypatch.context() as patch:
        patch.setattr(module, "this_process", lambda: ELSEWHERE)
        claim = Claims(lease=0.3).acquire(lock)
    observer, end = Claims(lease=0.3), time.monotonic() + 1.5
    while time.monotonic() < end:
        assert observer.acquire(lock) is None
        time.sleep(0.05)
    claim.release()
    assert observer.acquire(lock) is not None


def test_a_claim_without_heartbeats_is_void_although_its_machine_holds_an_flock(tmp_path, monkeypatch):
    lock = tmp_path / "a.lock"
    with monkeypatch.context() as patch:
        patch.setattr(module, "this_process", lambda: ELSEWHERE)
        patch.setattr(module.Claims, "_send_heartbeats", lambda *_: None)
        claim = Claims(lease=0.2).acquire(lock)
    observer = Claims(lease=0.2)
    assert observer.acquire(lock) is None
    time.sleep(0.5)
    taken = observer.acquire(lock)
    assert taken is not None and taken.is_valid() and not claim.is_valid()
    claim.release()
    assert taken.is_valid(), "the process that lost its claim removed the lock of another one"


def test_a_clock_that_is_ahead_does_not_end_a_claim(tmp_path, monkeypatch):
    store = Store(tmp_path, lease=30)
    write_lock(store, ELSEWHERE)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 90)
    assert not claimed(store)


def test_a_modification_time_in_the_future_does_not_prolong_a_claim(tmp_path):
    store = Store(tmp_path, lease=0.3)
    write_lock(store, ELSEWHERE, age=-90)
    assert not claimed(store)
    time.sleep(0.4)
    assert claimed(store)


# ------------------------------------------------------------------------------------------- file systems without flock
@pytest.fixture
def no_flock(monkeypatch):
    monkeypatch.setattr(module, "_flock", lambda descriptor: None)


def test_without_flock_the_claim_of_a_live_process_is_valid(tmp_path, no_flock):
    store = Store(tmp_path, lease=0.1)
    write_lock(store, HERE, age=1000)
    assert not claimed(store)


@pytest.mark.parametrize("change", [{"started": HERE.started - 1}, {"pid": 2**22 + 1}], ids=["start time", "PID"])
def test_without_flock_the_claim_of_a_process_that_ended_is_void(tmp_path, no_flock, change):
    store = Store(tmp_path, lease=30)
    write_lock(store, dataclasses.replace(HERE, **change))
    assert claimed(store)


def test_without_flock_the_claim_of_another_pid_namespace_has_a_lease(tmp_path, no_flock):
    store = Store(tmp_path, lease=30)
    write_lock(store, dataclasses.replace(HERE, namespace=1, pid=2**22 + 1))
    assert not claimed(store)
    store = Store(tmp_path, lease=0.2)
    assert not claimed(store)
    time.sleep(0.3)
    assert claimed(store)


# ---------------------------------------------------------------------------------------------------------- lock files
BAD = [
    b"",
    b"elsewhere 1 abc",
    b"{}",
    b"[" * 4000,
    b"\xff" * 100,
    os.urandom(100_000),
    json.dumps({**dataclasses.asdict(ELSEWHERE), "pid": "1"}).encode(),
    json.dumps({**dataclasses.asdict(ELSEWHERE), "pid": 2**70}).encode(),
    json.dumps({**dataclasses.asdict(HERE), "pid": -1}).encode(),
    json.dumps({**dataclasses.asdict(HERE), "more": 1}).encode(),
]


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_an_empty_or_foreign_lock_is_void_at_once(tmp_path, monkeypatch, data, flock):
    if not flock:
        monkeypatch.setattr(module, "_flock", lambda descriptor: None)
    store = Store(tmp_path)
    write_lock(store, data)
    started = time.monotonic()
    assert claimed(store) and time.monotonic() - started < 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs, see QUARANTINES.md")
def test_a_fifo_or_a_link_in_place_of_a_lock_is_replaced(tmp_path):
    store = Store(tmp_path)
    lock = write_lock(store, b"")
    lock.unlink()
    os.mkfifo(lock)
    assert claimed(store)
    (tmp_path / "precious").write_text("x")
    lock.symlink_to(tmp_path / "precious")
    assert claimed(store) and (tmp_path / "precious").read_text() == "x"


def test_a_folder_in_place_of_a_lock_is_a_storage_error(tmp_path):
    store = Store(tmp_path)
    store.path(KEY, ".lock").mkdir(parents=True)
    with pytest.raises(StorageError):
        claimed(store)


def test_a_lock_is_complete_when_it_appears(tmp_path, monkeypatch):
    link, sources = os.link, []

    def recorded(source, target):
        sources.append(Holder.parse(source.read_bytes()))
        link(source, target)

    monkeypatch.setattr(os, "link", recorded)
    assert claimed(Store(tmp_path))
    assert dataclasses.replace(sources[0], token="", flock=False) == this_process()


def test_a_file_system_without_hard_links_has_claims_too(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path)
    with store.claim(KEY) as first, store.claim(KEY) as second:
        assert (first, second) == (True, False)
    assert claimed(store) and not list(tmp_path.rglob("*.lock")) and not list(tmp_path.rglob("*.part"))


def test_a_lock_that_another_process_replaced_in_the_meantime_is_not_replaced(tmp_path):
    lock = tmp_path / "a.lock"
    lock.write_bytes(b"")
    with module._opened(lock) as void:
        lock.unlink()
        claim = Claims().acquire(lock)
        with module._Candidate(lock) as candidate:
            assert candidate.replace(void) is None
    assert claim.is_valid() and not list(tmp_path.glob("*.part"))


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    store = Store(tmp_path)

    def refuse(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        with pytest.raises(StorageError, match="is full"):
            claimed(store)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()] and claimed(store)


def test_a_lock_contains_no_host_name(tmp_path):
    store = Store(tmp_path)
    with store.claim(KEY):
        assert socket.gethostname() not in store.path(KEY, ".lock").read_text()


def test_a_claim_that_is_deleted_is_released(tmp_path):
    lock = tmp_path / "a.lock"
    claim = Claims().acquire(lock)
    assert claim.is_valid()
    del claim
    assert not lock.exists()


# -------------------------------------------------------------------------------------------------------------- stores
def test_a_store_can_be_pickled(tmp_path):
    store = Store(tmp_path, lease=7)
    with store.claim(KEY):
        other = pickle.loads(pickle.dumps(store))
        assert other == store and not claimed(other)
    assert claimed(other)


@pytest.mark.parametrize("lease", [0, -1, "30", True, float("nan"), float("inf")])
def test_a_lease_that_is_no_positive_number_is_refused(tmp_path, lease):
    with pytest.raises(InputError, match="lease"):
        Store(tmp_path, lease=lease)


def test_temporary_files_of_a_live_process_are_not_removed(tmp_path):
    store = Store(tmp_path)
    part = store.path(KEY, ".png.0123456789ab.part")
    with store.claim(KEY):
        part.write_bytes(b"x")
        os.utime(part, (time.time() - 100_000,) * 2)
        Store(tmp_path)
        assert part.exists()
    Store(tmp_path)
    assert not part.exists()


def test_temporary_files_of_other_programs_are_not_removed(tmp_path):
    download = tmp_path / "films" / "film.mp4.part"
    download.parent.mkdir()
    download.write_bytes(b"x")
    os.utime(download, (0, 0))
    Store(tmp_path)
    assert download.exists()


def test_opening_a_store_removes_void_locks_only(tmp_path):
    lock = write_lock(Store(tmp_path), ELSEWHERE)
    Store(tmp_path)
    assert lock.exists()
    os.utime(lock, (time.time() - 301,) * 2)
    Store(tmp_path)
    assert not lock.exists()


# -------------------------------------------------------------------------------------------------------------- sweeps
ONE = {"prompts": "a fox", "steps": 1, "height": 32, "width": 32}


def claim_key(flux):
    """The key of the claim of the group that ONE has a cell of."""
    return runner.GridRunner(flux=flux).claim_key(fnb.sweep(flux, **ONE)[0].recipe)


@pytest.mark.moderate
def test_a_sweep_reports_what_it_waits_for(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "REPORT_AFTER", 0.2)
    store, key = Store(tmp_path), claim_key(toy)
    with store.claim(key):
        timer = threading.Timer(1.0, lambda: store.path(key, ".lock").unlink())
        timer.start()
        with pytest.warns(StoreWarning, match="waiting for a cell claimed by this process") as caught:
            grid = fnb.sweep(toy, **ONE, store=tmp_path)
    assert grid.finished and grid[0].made and len(caught) == 1


@pytest.mark.moderate
@pytest.mark.parametrize("entry", ["sweep", "explore", "lab"])
def test_a_display_shows_what_a_sweep_waits_for_while_it_waits(toy, tmp_path, monkeypatch, entry):
    monkeypatch.setattr(runner, "DISPLAY_AFTER", 0.1)
    shown, store, key = [], Store(tmp_path), claim_key(toy)

    def show(text):
        shown.append(text)
        if "waiting" in text:
            store.path(key, ".lock").unlink(missing_ok=True)

    monkeypatch.setattr(Progress, "note", lambda bar, text: show(text))
    with store.claim(key), warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        if entry == "sweep":
            fnb.sweep(toy, **ONE, store=tmp_path, progress=True)
        elif entry == "explore":
            widget = fnb.explore(fnb.stream(toy, **ONE, store=tmp_path))
            widget.observe(lambda change: show(change.new["message"]), "data")
            widget.wait(20)
        else:
            widget = fnb.lab(toy, prompt="a fox", store=tmp_path, keep=fnb.Keep())
            widget.observe(lambda change: show("".join(change.new["notices"])), "state")
            widget.generate(prompt="a fox", seeds="0", steps="1", width=32, height=32).wait(20)
    sentences = [text for text in shown if "waiting" in text]
    assert sentences and all("waiting for a cell claimed by this process" in text for text in sentences)
    assert "sign of life is" in sentences[0] and "waiting" not in shown[-1], shown


@pytest.mark.moderate
def test_a_sweep_that_waits_shortly_does_not_warn(toy, tmp_path):
    store, key = Store(tmp_path), claim_key(toy)
    with store.claim(key), warnings.catch_warnings():
        warnings.simplefilter("error")
        threading.Timer(0.3, lambda: store.path(key, ".lock").unlink()).start()
        assert fnb.sweep(toy, **ONE, store=tmp_path).finished


@pytest.mark.moderate
def test_a_stream_has_no_claims_between_its_cells(toy, tmp_path):
    for cell in fnb.stream(toy, prompts="a fox", seeds=range(3), steps=[1, 2], height=32, width=32, store=tmp_path):
        assert cell.made and not list(tmp_path.rglob("*.lock"))


def test_reports_may_come_at_most_five_seconds_after_the_last_cell():
    assert runner.REPORT_AFTER + runner.POLL_INTERVALS[1] < 5
