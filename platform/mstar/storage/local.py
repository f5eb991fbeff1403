"""Files on a local or shared disk: whole or absent, never half there.

A file is written under a temporary name in its own folder, flushed to the disk, and given its final
name in one step. Temporary names start with a dot, and nothing that starts with a dot is listed.
"""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mstar.storage.folder_locks import alone_in
from mstar.storage.processes import is_known_dead_mark, process_mark

TEMP_PREFIX = ".mstar-"
TEMP_SUFFIX = ".tmp"
COPY_BYTES = 8 << 20


def write(path: Path, data: bytes, *, if_absent: bool) -> bool:
    """Write a file whole; with `if_absent` False is returned when the name is taken."""
    with _temp_beside(path) as temp:
        with temp.open("xb") as file:
            file.write(data)
            _flush(file.fileno())
        return _publish(temp, path, if_absent=if_absent)


def copy(source: Path, path: Path, *, if_absent: bool) -> bool:
    """Copy a file whole, as `write` does."""
    with _temp_beside(path) as temp:
        with source.open("rb") as read, temp.open("xb") as file:
            shutil.copyfileobj(read, file, COPY_BYTES)
            _flush(file.fileno())
        return _publish(temp, path, if_absent=if_absent)


def tag(path: Path) -> str | None:
    """What tells this file from any other that had or will have its name; None when absent."""
    try:
        return tag_of(path.stat())
    except (FileNotFoundError, NotADirectoryError):
        return None


def tag_of(found: os.stat_result) -> str:
    """The tag of a file by what the disk says about it."""
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


def replace_if(path: Path, data: bytes, wanted: str) -> bool:
    """Write the file anew if it is still the one tagged `wanted`.

    The file is moved aside, looked at, and only then replaced, alone in its folder: no other call
    of this kind sees the name free meanwhile. Two callers never both get True, but on disks
    without locks (some network ones), where that takes three callers within some microseconds.
    """
    with _temp_beside(path) as temp:
        with temp.open("xb") as file:
            file.write(data)
        with alone_in(path.parent):
            done = _take_away(path, wanted) and _link(temp, path)
    if done:
        _flush_folder(path.parent)
    return done


def delete_if(path: Path, wanted: str) -> bool:
    """Delete the file if it is still the one tagged `wanted`."""
    try:
        with alone_in(path.parent):
            return _take_away(path, wanted)
    except (FileNotFoundError, NotADirectoryError):  # no such folder
        return False


def delete(path: Path) -> None:
    """Delete a file; it may be gone already."""
    with suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()


def delete_tree(path: Path) -> None:
    """Delete a folder with all that is in it; it may be gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_ignore_missing)
    else:
        delete(path)


def walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files below a folder with their relative names, as the disk lists them (unsorted).

    Links are followed; a folder that contains itself through a link is entered once.
    """
    yield from _walk(os.fspath(root), "", frozenset())


def collect_stale_temps(root: Path, older_than_s: float) -> int:
    """Delete what writers that died left behind; returns how many files.

    A writer of this host that is known to be gone will not come back: its files need no age.
    """
    oldest_unix = time.time() - older_than_s
    count = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if _is_temp(name) and (_writer_is_dead(name) or _modified_unix(path) < oldest_unix):
                delete(path)
                count += 1
    return count


def _is_temp(name: str) -> bool:
    return name.startswith(TEMP_PREFIX) and name.endswith(TEMP_SUFFIX)


def _temp_name() -> str:
    return f"{TEMP_PREFIX}{process_mark()}-{secrets.token_hex(6)}{TEMP_SUFFIX}"


def _writer_is_dead(name: str) -> bool:
    mark, _, _ = name.removeprefix(TEMP_PREFIX).rpartition("-")
    return is_known_dead_mark(mark)


def _modified_unix(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:  # its writer finished meanwhile
        return float("inf")


@contextmanager
def _temp_beside(path: Path) -> Iterator[Path]:
    """A free name in the folder of `path`, which is made; nothing is left under it afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(_temp_name())
    try:
        yield temp
    finally:
        delete(temp)


def _publish(temp: Path, path: Path, *, if_absent: bool) -> bool:
    """Give a written file its final name."""
    if if_absent:
        with alone_in(path.parent):
            is_done = _link(temp, path)
        if not is_done:
            return False
    else:
        os.replace(temp, path)
    _flush_folder(path.parent)
    return True


def _link(temp: Path, path: Path) -> bool:
    """Give a file a free name; a rename would replace what has it."""
    try:
        os.link(temp, path)
    except FileExistsError:
        return False
    return True


def _take_away(path: Path, wanted: str) -> bool:
    """Remove the file if it is the one tagged `wanted`; another one is put back."""
    if tag(path) != wanted:
        return False
    aside = path.with_name(_temp_name())
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    try:
        mine = tag(aside) == wanted
        if not mine:
            with suppress(FileExistsError):
                os.link(aside, path)
        return mine
    finally:
        delete(aside)


def _flush(file_number: int) -> None:
    os.fsync(file_number)


def _flush_folder(folder: Path) -> None:
    """Make a new name survive a power cut, where the file system can flush folders."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def _walk(folder: str, rel: str, above: frozenset[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{rel}{entry.name}"
            if entry.is_dir():
                yield from _walk(entry.path, f"{name}/", above | {real})
            else:
                yield name, entry


def _ignore_missing(act: Callable[..., object], path: str, info: tuple[object, ...]) -> None:
    error = info[1]
    if not isinstance(error, FileNotFoundError):
        assert isinstance(error, BaseException)
        raise error
