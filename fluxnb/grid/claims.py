"""Claims: lock files by which processes that share a folder agree which of them samples what.

A grid runner claims a group of cells, all step counts of a prompt and seed, for as long as it samples and writes them;
`Store.put` and the runner of an endpoint claim a single cell. What a runner does while others have the claims of all
that is left is `Waiting` in `runner.py`.

Between processes of one machine `flock` decides, which the kernel releases with the process and which PID namespaces
share; between machines, where network file systems do not pass `flock` on reliably, a claim is valid while its holder
renews the modification time of the lock. Clocks of machines differ, and some file systems stamp files by the clock of
the client. A claim is therefore void once this process has seen the same modification time for a lease of its own
monotonic clock; a time stamp ends it only where it is older than any difference of clocks, by ten leases.

The `filelock` package (4.3) has each of these rules but not both in one lock. Its `FileLock` is an `flock`, which never
ends the claim of a machine that crashed on a file server that retains it. Its `SoftFileLease` gives the claim of a
process that is stopped to another one while it lives, and a container that is restarted waits for a whole lease. This
module is therefore used instead of it.

A lock is written under a temporary name and linked into place, so that it is never seen incomplete. It names the
process by a hash of the boot ID, the PID namespace, the PID and the start time, and contains no host name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import socket
import stat
import sys
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fluxnb.units import duration

if sys.platform != "win32":
    import fcntl

__all__ = ["LEASE", "OLD", "Claim", "Claims", "Holder", "file_system_time", "this_process"]

LEASE = 30.0  # seconds without a heartbeat after which a claim of another machine is void
OLD = 10  # leases by which the time stamp of a claim that is void at first sight is old
HEARTBEAT = 1.0  # seconds between heartbeats, less for a lease below 6 s
SETTLE = 0.05  # seconds after which of several processes that replaced a void lock the last one is known
MAX_PID = 2**31
MAX_BYTES = 4096  # of a lock; ours have about 200
IS_LINUX = Path("/proc/self/stat").exists()
ATTEMPTS = 5  # a lock may be released or replaced by another process between two system calls


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that wrote a lock.

    Arguments:
        machine: hash of the boot ID, so that it is another one after a restart of the machine.
        namespace: number of the PID namespace, 0 where there is none.
        pid: process ID within the namespace.
        started: start time of the process, in units of the system; another process with this PID has another one.
        flock: whether the process has an `flock` on the lock.
        token: random name of the claim.
    """

    machine: str
    namespace: int
    pid: int
    started: int
    flock: bool
    token: str

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """The holder that a lock names, None for anything else than a complete lock."""
        try:
            fields = json.loads(data)
            holder = cls(**fields)
        except (ValueError, TypeError, RecursionError):
            return None
        types = {"machine": str, "namespace": int, "pid": int, "started": int, "flock": bool, "token": str}
        right = all(type(fields[name]) is kind for name, kind in types.items())
        return holder if right and 0 < holder.pid < MAX_PID else None

    def __str__(self) -> str:
        here = this_process()
        if self.machine != here.machine:
            return f"process {self.pid} of another machine"
        if self.namespace != here.namespace:
            return f"process {self.pid} of another container of this machine"
        return f"process {self.pid} of this machine" if self.pid != here.pid else "this process"


class Claim:
    """A lock that this process holds, until `release` or until the object is deleted.

    Arguments:
        lock: path of the lock file.
        holder: what stands in it.
        descriptor: the open file, whose closing ends the `flock`.
    """

    def __init__(self, lock: Path, holder: Holder, descriptor: int) -> None:
        self.lock, self.holder = lock, holder
        self._descriptor, self._mutex = descriptor, threading.Lock()

    def is_valid(self) -> bool:
        """Whether the lock is still in place; another machine replaces it if it sees no heartbeat for a lease."""
        with contextlib.suppress(OSError):
            if self._descriptor >= 0:
                with _opened(self.lock) as existing:
                    return existing is not None and existing.holder == self.holder
        return False

    def renew(self) -> None:
        """Send a heartbeat."""
        with self._mutex, contextlib.suppress(OSError):
            if self._descriptor >= 0:
                # By descriptor, since the path may be the lock of another process by now.
                os.utime(self._descriptor if os.utime in os.supports_fd else self.lock)

    def release(self) -> None:
        """Remove the lock, unless it is that of another process by now."""
        with self._mutex:
            if self._descriptor < 0:
                return
            try:
                if self.is_valid():
                    _unlink(self.lock)
            finally:
                descriptor, self._descriptor = self._descriptor, -1
                os.close(descriptor)

    def forget(self) -> None:
        """Leave the claim to the parent process, after a fork."""
        descriptor, self._descriptor, self._mutex = self._descriptor, -1, threading.Lock()
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the interpreter may be shutting down
            self.release()


class Claims:
    """The claims of this process in one folder, with the thread that sends their heartbeats.

    Arguments:
        lease: seconds without a heartbeat after which a claim of another machine is void.
    """

    def __init__(self, lease: float = LEASE) -> None:
        self.lease = lease
        self._held: weakref.WeakSet[Claim] = weakref.WeakSet()
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None
        self._observed: dict[Path, tuple[tuple[int, int], float]] = {}
        _ALL.add(self)

    def __reduce__(self) -> tuple[type[Claims], tuple[float]]:
        return Claims, (self.lease,)

    def acquire(self, lock: Path) -> Claim | None:
        """Claim a lock, None if another process or another thread of this one holds it.

        Raises:
            OSError: the lock cannot be written.
        """
        for _ in range(ATTEMPTS):
            with _opened(lock) as existing:
                if existing is not None and not self._is_void(existing):
                    return None
                with _Candidate(lock) as candidate:
                    claim = candidate.create() if existing is None else candidate.replace(existing)
                    if claim is not None:
                        self._observed.pop(lock, None)
                        self._send_heartbeats(claim)
                        return claim
        return None

    def holds(self, lock: Path) -> bool:
        """Whether this object has a valid claim of a lock."""
        with self._mutex:
            held = [claim for claim in self._held if claim.lock == lock]
        return any(claim.is_valid() for claim in held)

    def holder(self, lock: Path) -> str:
        """The process that has a lock and the age of its last heartbeat, for messages; empty if there is none.

        Raises:
            OSError: the lock cannot be read.
        """
        with _opened(lock) as existing:
            if existing is None or existing.holder is None:
                return ""
            return f"{existing.holder}, whose last sign of life is {duration(self._silence(existing))} old"

    def _is_void(self, existing: _Existing) -> bool:
        ended = existing.has_ended()
        if ended is not None:
            return ended
        # A file server may retain the `flock` of a machine that crashed, so that it only doubles the lease.
        return self._silence(existing) > self.lease * (1 if existing.flock is not False else 2)

    def _silence(self, existing: _Existing) -> float:
        """Seconds since this object saw a heartbeat of a lock, or saw the lock first."""
        seen, now = (existing.status.st_ino, existing.status.st_mtime_ns), time.monotonic()
        known = self._observed.get(existing.lock)
        if known is None:
            age = file_system_time(existing.lock.parent) - existing.status.st_mtime
            known = self._observed[existing.lock] = seen, now - (age if age > OLD * self.lease else 0.0)
        elif known[0] != seen:
            known = self._observed[existing.lock] = seen, now
        return now - known[1]

    def _send_heartbeats(self, claim: Claim) -> None:
        with self._mutex:
            self._held.add(claim)
            if self._thread is None:
                self._thread = threading.Thread(target=self._heartbeats, name="fluxnb-heartbeat", daemon=True)
                self._thread.start()

    def _heartbeats(self) -> None:
        while True:
            time.sleep(min(HEARTBEAT, self.lease / 6))
            with self._mutex:
                held = list(self._held)
                if not held:
                    self._thread = None
                    return
            for claim in held:
                claim.renew()
            del held, claim  # a claim that is no longer used must be deleted

    def after_fork(self) -> None:
        """Leave all claims to the parent process. Its heartbeat thread does not exist in the child."""
        self._mutex, self._thread = threading.Lock(), None
        for claim in list(self._held):
            claim.forget()
        self._held.clear()


_ALL: weakref.WeakSet[Claims] = weakref.WeakSet()


def _after_fork() -> None:
    for claims in list(_ALL):
        claims.after_fork()


if hasattr(os, "register_at_fork"):  # an `flock` lasts until parent and child have closed the file
    os.register_at_fork(after_in_child=_after_fork)


# ----------------------------------------------------------------------------------------------------------- lock files
@dataclass(frozen=True)
class _Existing:
    """A lock that was found.

    Arguments:
        lock: its path.
        status: of the file when it was opened.
        holder: the process that wrote it, None if it is no complete lock.
        flock: True if this object has obtained the `flock`, False if another process has it, None if there is none.
    """

    lock: Path
    status: os.stat_result
    holder: Holder | None
    flock: bool | None

    def has_ended(self) -> bool | None:
        """Whether the holder has ended; None for one of another machine, which only its heartbeats show."""
        if self.holder is None:
            return self.flock is not False
        here = this_process()
        if self.holder.machine != here.machine:
            return None
        if self.holder.flock and self.flock is not None:
            return self.flock
        return _has_ended(self.holder) if self.holder.namespace == here.namespace else None


@contextlib.contextmanager
def _opened(lock: Path) -> Iterator[_Existing | None]:
    """The lock at a path, None if there is none. The `flock` is obtained for the block if it is free."""
    descriptor = -1
    try:
        existing = None
        with contextlib.suppress(FileNotFoundError):
            status = lock.lstat()
            if stat.S_ISREG(status.st_mode):
                descriptor = _open(lock)
                flock = _flock(descriptor)
                holder = Holder.parse(os.read(descriptor, MAX_BYTES))
                existing = _Existing(lock, os.fstat(descriptor), holder, flock)
            else:  # a link, a FIFO or a device, which is no lock of ours
                existing = _Existing(lock, status, None, None)
        yield existing
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _open(lock: Path) -> int:
    flags = _flags("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
    try:
        return os.open(lock, os.O_RDWR | flags)  # NFS grants an exclusive `flock` on a writable file only
    except PermissionError:  # that of another user
        return os.open(lock, os.O_RDONLY | flags)


def _unlink(lock: Path) -> None:
    for _ in range(ATTEMPTS):
        try:
            lock.unlink(missing_ok=True)
            return
        except PermissionError:  # Windows, while another process reads it
            time.sleep(SETTLE)
        except OSError:  # without its `flock`, the lock is void
            return


class _Candidate:
    """A complete lock under a temporary name, as a context manager."""

    def __init__(self, lock: Path) -> None:
        self._lock = lock
        self._part = lock.with_name(f"{lock.name}.{uuid.uuid4().hex[:12]}.part")
        self._descriptor = -1

    def __enter__(self) -> _Candidate:
        try:
            self._holder = self._write(self._part)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # renamed
            self._part.unlink()
        if self._descriptor >= 0:  # no claim has been made of it
            os.close(self._descriptor)

    def create(self) -> Claim | None:
        """Put the lock in place if there is none."""
        try:
            os.link(self._part, self._lock)
        except FileExistsError:
            if os.fstat(self._descriptor).st_nlink < 2:  # 2 if only the reply of a file server was lost
                return None
        except OSError:
            return self._create_without_links()
        return self._claim()

    def replace(self, existing: _Existing) -> Claim | None:
        """Put the lock in place of a void one. Of several processes that do so, the last one has the claim."""
        try:
            if not os.path.samestat(self._lock.lstat(), existing.status):
                return None
        except FileNotFoundError:
            return None
        os.replace(self._part, self._lock)
        return self._settled()

    def _create_without_links(self) -> Claim | None:
        """Create the lock on a file system without hard links; it is incomplete for a moment."""
        os.close(self._descriptor)
        self._descriptor = -1
        try:
            self._holder = self._write(self._lock)
        except FileExistsError:
            return None
        except OSError:
            with contextlib.suppress(OSError):
                self._lock.unlink()
            raise
        return self._settled()

    def _settled(self) -> Claim | None:
        time.sleep(SETTLE)
        claim = self._claim()
        return claim if claim.is_valid() else None

    def _claim(self) -> Claim:
        claim = Claim(self._lock, self._holder, self._descriptor)
        self._descriptor = -1
        return claim

    def _write(self, path: Path) -> Holder:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _flags("O_CLOEXEC", "O_BINARY")
        self._descriptor = os.open(path, flags, 0o666)
        flock = _flock(self._descriptor)
        holder = Holder(**{**asdict(this_process()), "flock": flock is True, "token": uuid.uuid4().hex})
        data = json.dumps(asdict(holder)).encode()
        if os.write(self._descriptor, data) < len(data):
            os.write(self._descriptor, data)  # raises the reason, such as a full disk
            raise OSError("the lock was not written completely")
        os.close(os.dup(self._descriptor))  # NFS sends the data to the server when any descriptor is closed
        return holder


def _flags(*names: str) -> int:
    return sum(getattr(os, name, 0) for name in names)


def _flock(descriptor: int) -> bool | None:
    """Try to obtain the `flock` of a file: True if obtained, False if another process has it, None if unsupported."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def file_system_time(folder: Path) -> float:
    """The time by the clock of the file system, which may be that of another machine.

    Raises:
        OSError: the folder is not writable.
    """
    with tempfile.TemporaryFile(dir=folder) as stream:
        return os.fstat(stream.fileno()).st_mtime


# ------------------------------------------------------------------------------------------------------------ processes
def this_process() -> Holder:
    """This process as the holder of locks, with an empty token."""
    return _process(os.getpid())


@functools.lru_cache(maxsize=1)  # a child after a fork has another PID
def _process(pid: int) -> Holder:
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    started = _start_time("self" if IS_LINUX else str(pid)) or 0
    return Holder(machine=_machine(), namespace=namespace, pid=pid, started=started, flock=False, token="")


def _machine() -> str:
    """A hash that the processes of one kernel share, and no other ones."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not Linux
        boot = f"{socket.gethostname()} {uuid.getnode()}"
    return hashlib.sha256(f"fluxnb {boot}".encode()).hexdigest()[:16]


def _has_ended(process: Holder) -> bool | None:
    """Whether a process of this PID namespace has ended, None if that is not visible."""
    if IS_LINUX and Path("/proc/self").resolve().name != str(os.getpid()):
        return None  # /proc is that of another namespace
    if not psutil.pid_exists(process.pid):
        return True
    started = _start_time(str(process.pid))
    return started is not None and started != process.started


def _start_time(pid: str) -> int | None:
    """The start time of a process, -1 if it has ended, None if it is not visible."""
    with contextlib.suppress(OSError, ValueError, IndexError, psutil.Error):
        if not IS_LINUX:
            return int(1000 * psutil.Process(int(pid)).create_time())
        # The name of the program, before the last parenthesis, may contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return -1 if fields[0] in (b"Z", b"X") else int(fields[19])  # in clock ticks since the start of the machine
    return None
