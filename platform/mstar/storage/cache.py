"""Slides from an object store, as whole files on the node's own disk.

OpenSlide and libvips read files. Each object is fetched once per node, whatever the number of
processes, checked by size and version, and kept until room is needed for another; a slide in use is
never removed. Local slides are passed through. Why whole files: docs/adr/0005.
"""

import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from mstar.errors import SlideError, StorageError
from mstar.storage import objects
from mstar.storage.cache_folder import CacheFolder, disk_problem
from mstar.storage.objects import FileInfo

BLOCK_BYTES = 8 << 20
STREAMS = 4  # blocks in flight per object; times BLOCK_BYTES is the memory of one fetch
WAIT_FOR_ROOM_S = 600.0
_NEEDS_NEIGHBOURS = (".vms", ".vmu")  # name their other files inside, so they cannot be listed


def default_cache_dir() -> str:
    """`MSTAR_CACHE_DIR`, else a folder of this user below the system's temporary one."""
    chosen = os.environ.get("MSTAR_CACHE_DIR")
    return chosen or str(Path(tempfile.gettempdir()) / f"mstar-cache-{os.getuid()}")


class SlideCache:
    """Stages slides into a folder that all processes of a node share; safe to use from threads."""

    def __init__(
        self, folder: str | Path, *, max_bytes: int, wait_for_room_s: float = WAIT_FOR_ROOM_S
    ) -> None:
        """Keep at most `max_bytes` in `folder`, counting what is being fetched."""
        self._folder = CacheFolder(Path(folder), max_bytes)
        self._wait_for_room_s = wait_for_room_s
        self._lock = threading.Lock()
        self._bytes_fetched = 0
        self._hits = 0
        self._wait_s = 0.0

    @property
    def bytes_fetched(self) -> int:
        """Bytes of slides that this process fetched."""
        return self._bytes_fetched

    @property
    def hits(self) -> int:
        """How many times a slide was there already."""
        return self._hits

    @property
    def wait_s(self) -> float:
        """How long callers of this process waited for slides, all threads added up."""
        return self._wait_s

    @contextmanager
    def stage(self, uri: str) -> Iterator[Path]:
        """The local path of a slide, kept from eviction until the context ends.

        `x.mrxs` comes with its folder `x/`, `x.dcm` with the other .dcm files of its folder, and
        the address of a folder with all that is below it.

        Raises:
            SlideError: there is no such slide.
            StorageError: the store or the disk failed, or the slide does not fit.
        """
        if objects.is_local(uri):
            yield objects.local_path(uri)
            return
        name, parts = _describe(uri)
        lock = self._pin(name, parts)
        try:
            yield self._folder.entry(name) / _basename(uri)
        finally:
            os.close(lock)

    def _pin(self, name: str, parts: list[FileInfo]) -> int:
        """A shared lock on a complete entry; fetched first, by one process, when not there."""
        asked_s, fetched = time.monotonic(), False
        try:
            self._folder.make()
            while (lock := self._pin_complete(name)) is None:
                # A flock cannot turn from exclusive to shared without letting go, so that the
                # entry may be evicted in between; then it is fetched again.
                fetched = self._fetch_once(name, parts) or fetched
        except OSError as error:
            raise disk_problem(self._folder.root, error) from error
        self._book(hits=int(not fetched), wait_s=time.monotonic() - asked_s)
        return lock

    def _pin_complete(self, name: str) -> int | None:
        """A shared lock on the entry, None when it is not complete."""
        lock = self._folder.lock(name, shared=True)
        if self._folder.entry(name).exists():
            self._folder.touch(name)
            return lock
        os.close(lock)
        return None

    def _fetch_once(self, name: str, parts: list[FileInfo]) -> bool:
        """Fetch an entry, unless another process just did; says whether this call fetched."""
        lock = self._folder.lock(name, shared=False)
        try:
            if self._folder.entry(name).exists():
                return False
            self._folder.reserve(name, wait_s=self._wait_for_room_s)
            self._fetch_all(parts, self._folder.partial(name))
            self._folder.commit(name)
            return True
        finally:
            self._folder.discard(name)
            os.close(lock)

    def _fetch_all(self, parts: list[FileInfo], folder: Path) -> None:
        with ThreadPoolExecutor(STREAMS, thread_name_prefix="slide-fetch") as pool:
            for part in parts:
                self._fetch(part, folder / part.rel, pool)

    def _fetch(self, part: FileInfo, path: Path, pool: ThreadPoolExecutor) -> None:
        """Copy one object block by block; a block that fails is asked for again, alone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            copy = partial(self._fetch_block, part, file.fileno())
            fetched_bytes = sum(pool.map(copy, range(0, part.size_bytes, BLOCK_BYTES)))
            os.fsync(file.fileno())
        if path.stat().st_size != part.size_bytes or fetched_bytes != part.size_bytes:
            raise StorageError(
                f"{part.uri}: expected {part.size_bytes:,} bytes, got {fetched_bytes:,}. Rerun."
            )

    def _fetch_block(self, part: FileInfo, file: int, start: int) -> int:
        stop = min(start + BLOCK_BYTES, part.size_bytes)
        try:
            data = objects.read_range(part.uri, start, stop, tag=part.tag)
        except FileNotFoundError as error:
            raise StorageError(f"{part.uri} was deleted while it was fetched. Rerun.") from error
        written = os.pwrite(file, data, start)
        self._book(bytes_fetched=written)
        return written

    def _book(self, *, bytes_fetched: int = 0, hits: int = 0, wait_s: float = 0.0) -> None:
        with self._lock:
            self._bytes_fetched += bytes_fetched
            self._hits += hits
            self._wait_s += wait_s


def _describe(uri: str) -> tuple[str, list[FileInfo]]:
    """The entry's name, which changes with the slide's content, and the objects it is made of."""
    parts = _parts_of(uri)
    if not parts:
        raise SlideError(f"slide {uri}: there is no such object. Check the manifest.")
    digest = hashlib.sha256(uri.encode())
    for part in parts:
        if ".." in part.rel.split("/"):
            raise SlideError(f"slide {uri}: the name {part.rel!r} leads out of the cache.")
        digest.update(f"\n{part.rel} {part.tag} {part.size_bytes}".encode())
    return f"{digest.hexdigest()[:32]}.{sum(part.size_bytes for part in parts)}", parts


def _parts_of(uri: str) -> list[FileInfo]:
    """The objects of a slide, named relative to the folder it is staged in."""
    kind = Path(uri).suffix.lower()
    if kind in _NEEDS_NEIGHBOURS:
        raise SlideError(f"slide {uri}: {kind} names other files; copy it to a disk with them.")
    name = _basename(uri)
    found = objects.stat(uri)
    if found is None:
        return _below(uri, name)
    if kind == ".dcm":
        beside = objects.list_files(uri.rpartition("/")[0])
        return [i for i in beside if "/" not in i.rel and i.rel.lower().endswith(kind)]
    if kind == ".mrxs":
        return [replace(found, rel=name), *_below(uri[: -len(kind)], name[: -len(kind)])]
    return [replace(found, rel=name)]


def _below(folder: str, name: str) -> list[FileInfo]:
    return [replace(info, rel=f"{name}/{info.rel}") for info in objects.list_files(folder)]


def _basename(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
