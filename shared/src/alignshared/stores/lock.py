"""One writer per output folder: a lock that does not outlive a killed run.

On disk it is the kernel's (`flock`) and ends with its process. In object stores it is a lease: a
file naming the writer, renewed while the run lives, and taken over once it expires or its
process, on this host, is gone. pyarrow offers no atomic creation in object stores, so the lease
is read again after a pause to tell apart runs that start within the same second.

The holder is a thread: a thread that acquires again has left its earlier run.
"""

import errno
import json
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from alignshared.errors import AlignError
from alignshared.stores.storage import Storage

LEASE_S = 120.0
"""Seconds without renewal after which a lease expires."""

_RENEW_S = 30.0
_SETTLE_S = 1.0
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Owner:
    """Writer of a folder: host, process, process start (clock ticks since boot, or None), time of
    the lock, and last renewal in seconds since the epoch.
    """

    host: str
    pid: int
    started: int | None
    since: str
    token: str
    seen: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


_held: dict[str, tuple["_FileLock | _Lease", threading.Thread]] = {}
_guard = threading.Lock()


def acquire(storage: Storage, name: str) -> None:
    """Make this thread the only writer of `storage`, using the lock file `name`.

    Raises:
        AlignError: another run is writing there; the message says which.
    """
    with _guard:
        if storage.location in _held:
            _, holder = _held[storage.location]
            if holder is not threading.current_thread() and holder.is_alive():
                raise _in_use(storage, _this_process())
            return
        _held[storage.location] = (_take(storage, name), threading.current_thread())


def release(storage: Storage) -> None:
    """Release the lock on `storage`, if any."""
    with _guard:
        held = _held.pop(storage.location, None)
    if held is not None:
        held[0].release()


def check_held(storage: Storage) -> None:
    """Check that this run still holds the lock.

    Raises:
        AlignError: this run was presumed dead and another one writes there now.
    """
    lock, _ = _held.get(storage.location, (None, None))
    if isinstance(lock, _Lease):  # the kernel keeps its own
        lock.check()


def _take(storage: Storage, name: str) -> "_FileLock | _Lease":
    if "://" not in storage.location:
        try:
            return _FileLock(storage, name)
        except ImportError:  # no flock on this system
            pass
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
    return _Lease(storage, name)


class _FileLock:
    """The kernel's lock on a file that names the holder."""

    def __init__(self, storage: Storage, name: str) -> None:
        import fcntl

        path = Path(storage.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._file)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise _in_use(storage, _read(storage, name)) from error
                raise
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file), path.stat()):
                    break
            os.close(self._file)  # deleted by its last holder on finishing
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(asdict(_this_process())).encode(), 0)

    def release(self) -> None:
        os.close(self._file)


class _Lease:
    """A lock file renewed by its holder."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self._owner = _this_process()
        self._taken_by: Owner | None = None
        owner = _read(storage, name)
        if owner is not None and _is_alive(owner):
            raise _in_use(storage, owner)
        self._write()
        time.sleep(_SETTLE_S)
        owner = _read(storage, name)
        if owner is None or owner.token != self._owner.token:
            raise _in_use(storage, owner)
        self._over = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self._renewal.start()

    def _write(self) -> None:
        self._storage.write_json(self._name, asdict(self._owner) | {"seen": time.time()})

    def _renew(self) -> None:
        while not self._over.wait(_RENEW_S):
            try:
                owner = _read(self._storage, self._name)
                if owner is not None and owner.token != self._owner.token:
                    self._taken_by = owner
                    return
                self._write()
            except (AlignError, OSError):  # may be transient
                continue

    def check(self) -> None:
        if self._taken_by is not None:
            raise AlignError(
                f"{self._storage.location} was taken over by {self._taken_by} while this run gave "
                "no sign of life; stop one of the two and run the other again."
            )

    def release(self) -> None:
        self._over.set()
        self._renewal.join(_SETTLE_S)
        if self._taken_by is None:
            with suppress(AlignError, OSError):  # the lease then expires
                self._storage.delete(self._name)


def _in_use(storage: Storage, owner: Owner | None) -> AlignError:
    who = "another run" if owner is None else str(owner)
    advice = "wait for it to end"
    if owner is not None and owner.host != socket.gethostname():
        advice += f", or, if it is dead, {LEASE_S:.0f} seconds after its last sign of life"
    return AlignError(
        f"{storage.location} is being written by {who}; {advice}, or name another --output."
    )


def _this_process() -> Owner:
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        token=secrets.token_hex(8),
        seen=time.time(),
    )


def _read(storage: Storage, name: str) -> Owner | None:
    """Return the owner named in the file; None if missing or unreadable."""
    if not storage.exists(name):
        return None
    try:
        return Owner(**json.loads(storage.read_bytes(name)))
    except (AlignError, ValueError, TypeError):
        return None


def _is_alive(owner: Owner) -> bool:
    if time.time() - owner.seen >= LEASE_S:
        return False
    if owner.host != socket.gethostname():
        return True
    if owner.pid == os.getpid():  # which no longer holds a lock that it did not release
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return owner.started in (None, _started(owner.pid))


def _started(pid: int) -> int | None:
    """Start of process `pid` in clock ticks since boot; None without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19])
