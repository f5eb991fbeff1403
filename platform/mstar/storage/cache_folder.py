"""The folder of a node's slide cache: locks, room and eviction, shared by all its processes.

    <folder>/room.lock              held while room is counted and made
    <folder>/locks/<name>           shared: entry in use; exclusive: being fetched or removed
    <folder>/entries/<name>/        complete entries; the folder's time is that of the last use
    <folder>/partial/<name>/        entries being fetched, which already take up their room

`<name>` is `<digest of address and version>.<size in bytes>`, so that counting room is a listing.
Locks are flock's: the kernel drops them when a process dies, however it dies.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mstar.errors import StorageError

POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """The folder and its bound."""

    root: Path
    max_bytes: int

    def make(self) -> None:
        """Make the folders, for this user only: slides are patients' data."""
        for name in ("locks", "entries", "partial"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def entry(self, name: str) -> Path:
        """Where a complete entry is."""
        return self.root / "entries" / name

    def partial(self, name: str) -> Path:
        """Where an entry is fetched to."""
        return self.root / "partial" / name

    def touch(self, name: str) -> None:
        """Note that an entry was used now."""
        with suppress(FileNotFoundError):
            os.utime(self.entry(name))

    def lock(self, name: str, *, shared: bool) -> int:
        """Lock an entry, waiting for it; closing the returned file number unlocks it."""
        number = self._lock(name, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        assert number is not None
        return number

    def reserve(self, name: str, *, wait_s: float) -> None:
        """Make room for an entry and take it; the caller holds the entry's exclusive lock.

        Raises:
            StorageError: the entry is larger than the cache, or everything stayed in use.
        """
        need_bytes = size_of(name)
        if need_bytes > self.max_bytes:
            raise StorageError(
                f"slide cache {self.root}: an object of {need_bytes:,} bytes does not fit into "
                f"{self.max_bytes:,}. Allow the cache more (--cache-gb), or copy the slide to disk."
            )
        deadline_s = time.monotonic() + wait_s
        while not self._try_reserve(name, need_bytes):
            if time.monotonic() > deadline_s:
                raise StorageError(
                    f"slide cache {self.root}: no room for {need_bytes:,} bytes within "
                    f"{wait_s:.0f} s, all of its {self.max_bytes:,} are in use. Allow it more "
                    "(--cache-gb) or work on fewer slides at once."
                )
            time.sleep(POLL_S)

    def commit(self, name: str) -> None:
        """Give a fetched entry its final name."""
        os.utime(self.partial(name))  # renaming keeps the time, and this counts as a use
        os.rename(self.partial(name), self.entry(name))

    def discard(self, name: str) -> None:
        """Remove what was fetched of an entry."""
        shutil.rmtree(self.partial(name), ignore_errors=True)

    def _try_reserve(self, name: str, need_bytes: int) -> bool:
        with self._room_lock():
            self.discard(name)  # a dead process's
            self._drop_dead_partials()
            if not self._evict_down_to(self.max_bytes - need_bytes):
                return False
            self.partial(name).mkdir()
            return True

    def _evict_down_to(self, allowed_bytes: int) -> bool:
        """Evict the longest unused entries until no more than that is taken."""
        fetching = os.listdir(self.root / "partial")  # first: one that moves on is counted twice
        entries = self._by_last_use()
        taken_bytes = sum(size_of(name) for name in (*fetching, *entries))
        for name in entries:
            if taken_bytes <= allowed_bytes:
                break
            if self._remove_unused(name):
                taken_bytes -= size_of(name)
        return taken_bytes <= allowed_bytes

    def _drop_dead_partials(self) -> None:
        for name in os.listdir(self.root / "partial"):
            if not self.entry(name).exists():
                self._remove_unused(name)

    def _by_last_use(self) -> list[str]:
        """Names of complete entries, the longest unused first."""
        with os.scandir(self.root / "entries") as found:
            return [entry.name for entry in sorted(found, key=lambda e: e.stat().st_mtime_ns)]

    def _remove_unused(self, name: str) -> bool:
        """Remove an entry, complete or partial, that nobody has locked."""
        number = self._lock(name, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if number is None:
            return False
        try:
            if self.entry(name).exists():  # in one step, so that a kill leaves no half entry
                self.discard(name)
                os.rename(self.entry(name), self.partial(name))
            self.discard(name)
            (self.root / "locks" / name).unlink()
        finally:
            os.close(number)
        return True

    def _lock(self, name: str, mode: int) -> int | None:
        """An open, locked file; None when a lock that must not wait cannot be had.

        Lock files are removed with their entries, so one that was locked too late is a stray.
        """
        path = self.root / "locks" / name
        while True:
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(number, mode)
                if _is_still(path, number):
                    return number
            except BlockingIOError:
                os.close(number)
                return None
            except BaseException:
                os.close(number)
                raise
            os.close(number)

    @contextmanager
    def _room_lock(self) -> Iterator[None]:
        """One process at a time counts and makes room; briefly."""
        number = os.open(self.root / "room.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)


def size_of(name: str) -> int:
    """The size that an entry's name states."""
    return int(name.rpartition(".")[2])


def disk_problem(folder: Path, error: OSError) -> StorageError:
    """The error of a cache that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk is full" if full else str(error)
    return StorageError(
        f"slide cache {folder}: {what}. Free some space, or choose another folder (--cache-dir, "
        "MSTAR_CACHE_DIR)."
    )


def _is_still(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except FileNotFoundError:
        return False
