"""The packed file of a task's bags: where it lies, how it is written whole, and when it goes.

    x         float16 [row, dim], from the first byte, so that it is page-aligned
    offsets   int64 [bag + 1]
    facts     JSON: rows, dim, bags, ids, digest
    footer    8 bytes length of the facts, 8 bytes magic

A process that maps a file holds a shared lock on it. Files that nobody holds are what makes room,
the longest unused first; a process that dies lets go of its locks.
"""

import fcntl
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float16, Int64

from mstar.errors import FeatureError, StorageError
from mstar.storage.cache import default_cache_dir

SHARED_MEMORY = Path("/dev/shm")
SHARED_SHARE = 0.8  # of what is free there, at most
MEMORY_SHARE = 0.5  # of the node's available memory, which shared memory is part of
_FOOTER = struct.Struct("<Q8s")
_MAGIC = b"mstarbag"
_SUFFIX = ".bags"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BagFile:
    """A packed file, mapped.

    lock: the open file, whose shared lock keeps it from being evicted.
    """

    path: Path
    x: Float16[np.ndarray, "row dim"]
    offsets: Int64[np.ndarray, " bag_1"]
    facts: Mapping[str, Any]
    lock: BinaryIO


def choose_root(num_bytes: int, key: str) -> Path:
    """The folder for a packed file: shared memory where it fits, else the node's cache folder."""
    shared = shared_root()
    on_disk = Path(default_cache_dir()) / "bags"
    for root in (shared, on_disk):
        if (root / f"{key}{_SUFFIX}").exists():
            return root
    if shared.parent.is_dir() and (_fits(num_bytes) or (drop_unused(shared) and _fits(num_bytes))):
        return shared
    return on_disk


def shared_root() -> Path:
    """This user's folder in shared memory."""
    return SHARED_MEMORY / f"mstar-bags-{os.getuid()}"


def drop_unused(root: Path, *, needed_bytes: int | None = None) -> int:
    """Delete packed files that no process holds, the longest unused first; returns the bytes freed.

    Args:
        root: the folder.
        needed_bytes: stop when so much is free; all go when not given.
    """
    freed = 0
    files = [(path.stat().st_mtime_ns, path) for path in root.glob(f"*{_SUFFIX}")]
    for _, path in sorted(files):
        if needed_bytes is not None and freed >= needed_bytes:
            break
        freed += _drop(path)
    return freed


def has_files(root: Path) -> bool:
    """Whether packed files are left in a folder."""
    return next(root.glob(f"*{_SUFFIX}"), None) is not None


def map_bag_file(path: Path) -> BagFile | None:
    """Map a packed file and hold it; None when there is none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if not _is_at(file, path):  # evicted between the two steps
        file.close()
        return None
    with suppress(OSError):
        os.utime(path)
    return _read(path, file)


@contextmanager
def write_bag_file(
    path: Path, offsets: Int64[np.ndarray, " bag_1"], dim: int, facts: Mapping[str, Any]
) -> Iterator[Float16[np.ndarray, "row dim"]]:
    """Gives the array to fill; the file is there, whole, once the block ends without an error."""
    rows, bags = int(offsets[-1]), len(offsets) - 1
    text = json.dumps({**facts, "rows": rows, "dim": dim, "bags": bags}).encode()
    temp = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    _make_room(path.parent, rows * dim * 2 + offsets.nbytes + len(text) + _FOOTER.size)
    try:
        with temp.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, rows * dim * 2)  # a full disk is known here
            file.seek(rows * dim * 2)
            file.write(offsets.astype("<i8").tobytes() + text + _FOOTER.pack(len(text), _MAGIC))
        x = np.memmap(temp, np.float16, "r+", shape=(rows, dim))
        yield x
        del x
        os.replace(temp, path)
    except OSError as error:
        raise StorageError(
            f"writing {path}: {error}. Free some space, or set MSTAR_CACHE_DIR to a larger disk."
        ) from error
    finally:
        temp.unlink(missing_ok=True)


def _read(path: Path, file: BinaryIO) -> BagFile:
    file.seek(-_FOOTER.size, os.SEEK_END)
    length, magic = _FOOTER.unpack(file.read())
    if magic != _MAGIC:
        raise FeatureError(f"{path}: expected packed bags, got another file. Delete it.")
    file.seek(-_FOOTER.size - length, os.SEEK_END)
    facts = json.loads(file.read(length))
    rows, dim, bags = facts["rows"], facts["dim"], facts["bags"]
    # copy-on-write, since torch warns of read-only arrays; nothing is written, so pages are shared
    x = np.memmap(path, np.float16, "c", shape=(rows, dim))
    file.seek(rows * dim * 2)
    offsets = np.frombuffer(file.read(8 * (bags + 1)), "<i8").astype(np.int64)
    return BagFile(path=path, x=x, offsets=offsets, facts=facts, lock=file)


def _drop(path: Path) -> int:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size_bytes = os.fstat(file.fileno()).st_size
            path.unlink()
            return size_bytes
    except (BlockingIOError, FileNotFoundError):
        return 0


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _make_room(root: Path, num_bytes: int) -> None:
    free = _free(root)
    if free < num_bytes:
        drop_unused(root, needed_bytes=num_bytes - free)


def _fits(num_bytes: int) -> bool:
    return num_bytes <= min(SHARED_SHARE * _free(SHARED_MEMORY), MEMORY_SHARE * _available_memory())


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _available_memory() -> int:
    """Bytes to be had without swapping; without end where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 62
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values["MemAvailable"].split()[0]) * 1024
