"""Files by address, on a disk or in an object store, whole or absent.

Addresses: `/data/x`, `relative/x`, `file:///data/x` (percent-encoded, as a browser shows it) and
`s3://bucket/x` (taken literally). The store's endpoint and keys come from the environment
(`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_DEFAULT_REGION`).

What is not there raises FileNotFoundError; every other trouble is a StorageError that names the
address, raised after the retries that could help. Nothing is ever visible half-written, and
`if_absent` is atomic: of any number of writers of one name, one gets True.
"""

import io
import os
import stat as stat_bits
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from mstar.errors import ConfigError, StorageError
from mstar.storage import local, s3
from mstar.storage.troubles import named_errors

_S3 = "s3://"
_FILE = "file://"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """One listed file.

    rel: path relative to the listed root, with `/`.
    tag: changes whenever the content may have (ETag, or inode, time and size).
    """

    uri: str
    rel: str
    size_bytes: int
    tag: str


def is_local(uri: str | Path) -> bool:
    """Whether the address is on a disk of this machine, a mounted one included."""
    text = str(uri)
    if "://" in text and not text.startswith((_S3, _FILE)):
        scheme = text.partition("://")[0]
        raise ConfigError(f"{text}: {scheme}:// is not supported. Use a path, file:// or s3://.")
    return not text.startswith(_S3)


def local_path(uri: str | Path) -> Path:
    """The path of a local address."""
    text = str(uri)
    if not is_local(text):
        raise ConfigError(f"{text}: expected a path on a disk, got an object-store address.")
    return Path(unquote(urlsplit(text).path)) if text.startswith(_FILE) else Path(text)


def join(uri: str | Path, *parts: str) -> str:
    """The address of something below a folder; parts that lead out of it are refused."""
    text = str(uri)
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise ConfigError(f"{part!r} leads out of {uri}. Use a plain relative name.")
    steps = [quote(part) if text.startswith(_FILE) else part for part in parts]
    return "/".join([text.rstrip("/"), *(step.rstrip("/") for step in steps if step)])


def read_bytes(uri: str | Path) -> bytes:
    """The whole content."""
    with named_errors("reading", uri):
        if is_local(uri):
            return local_path(uri).read_bytes()
        return s3.read(str(uri))


def write_whole(uri: str | Path, data: bytes, *, if_absent: bool = False) -> bool:
    """Write a file, folders included; it appears complete or not at all.

    Returns:
        False when `if_absent` was asked for and the name was taken; nothing is changed then.
    """
    with named_errors("writing", uri):
        if is_local(uri):
            return local.write(local_path(uri), data, if_absent=if_absent)
        return s3.write(str(uri), data, if_absent=if_absent)


def put_file(source: str | Path, uri: str | Path, *, if_absent: bool = False) -> bool:
    """Copy a local file to an address, as `write_whole` does; large files are not held in memory.

    Returns:
        False when `if_absent` was asked for and the name was taken.
    """
    with named_errors("writing", uri):
        if is_local(uri):
            return local.copy(Path(source), local_path(uri), if_absent=if_absent)
        return s3.put_file(Path(source), str(uri), if_absent=if_absent)


def read_range(uri: str | Path, start: int, stop: int, *, tag: str) -> bytes:
    """The bytes [start, stop) of a file, if it still is the tagged one.

    Raises:
        StorageError: it was replaced meanwhile.
    """
    with named_errors("reading", uri):
        if not is_local(uri):
            return s3.read_range(str(uri), start, stop, tag)
        with _open_tagged(uri, tag) as file:
            file.seek(start)
            return file.read(stop - start)


def read_into(uri: str | Path, start: int, out: memoryview, *, tag: str) -> None:
    """Fill `out` with the bytes of a file on a disk from `start` on, if it still is the tagged one.

    Raises:
        StorageError: it was replaced meanwhile, or ends before.
    """
    with named_errors("reading", uri), _open_tagged(uri, tag) as file:
        file.seek(start)
        found = file.readinto(out)
        if found != len(out):
            raise StorageError(
                f"{uri}: expected {len(out)} bytes at {start}, got {found}. The file was cut."
            )


def read_tagged(uri: str | Path) -> tuple[bytes, str] | None:
    """Content and tag, for `replace_if` and `delete_if`; None when there is nothing."""
    with named_errors("reading", uri):
        try:
            if not is_local(uri):
                return s3.read_tagged(str(uri))
            return _read_tagged(local_path(uri))
        except (FileNotFoundError, NotADirectoryError):
            return None


def replace_if(uri: str | Path, data: bytes, tag: str) -> bool:
    """Write the file anew if it still is the tagged one; of several callers one gets True."""
    with named_errors("writing", uri):
        if is_local(uri):
            return local.replace_if(local_path(uri), data, tag)
        return s3.replace_if(str(uri), data, tag)


def delete_if(uri: str | Path, tag: str) -> bool:
    """Delete the file if it still is the tagged one."""
    with named_errors("deleting", uri):
        if is_local(uri):
            return local.delete_if(local_path(uri), tag)
        return s3.delete_if(str(uri), tag)


def stat(uri: str | Path) -> FileInfo | None:
    """What is known of one file without reading it; None when there is none (or a folder)."""
    text = str(uri)
    if text.endswith("/"):  # some stores answer for folders
        return None
    with named_errors("asking for", uri):
        found = _stat_local(local_path(text)) if is_local(text) else s3.head(text)
    if found is None:
        return None
    size_bytes, tag = found
    return FileInfo(uri=text, rel=text.rpartition("/")[2], size_bytes=size_bytes, tag=tag)


def exists(uri: str | Path) -> bool:
    """Whether there is a file (a folder is not one: object stores have none)."""
    return stat(uri) is not None


def delete(uri: str | Path) -> None:
    """Delete a file; it may be gone already."""
    with named_errors("deleting", uri):
        if is_local(uri):
            local.delete(local_path(uri))
        else:
            s3.delete(str(uri))


def delete_tree(root: str | Path) -> None:
    """Delete everything below a folder, and the folder; it may be gone already."""
    with named_errors("deleting", root):
        if is_local(root):
            local.delete_tree(local_path(root))
        else:
            _delete_objects(str(root))


def list_files(root: str | Path, *, suffix: str = "") -> Iterator[FileInfo]:
    """Files below a folder, as they are found; none when there is no such folder.

    Nothing is held in memory and nothing is cached. The order is the disk's own (unsorted), or
    sorted from an object store. Names that start with a dot, and what lies in folders that do, are
    left out: unfinished writes are among them.
    """
    with named_errors("listing", root):
        found = _list_local(str(root)) if is_local(root) else _list_objects(str(root))
        for info in found:
            if info.rel.endswith(suffix):
                yield info


def open_read(uri: str | Path) -> io.BufferedReader:
    """The file opened for reading, seekable."""
    with named_errors("opening", uri):
        if is_local(uri):
            return local_path(uri).open("rb")
        return s3.open_read(str(uri))


def collect_stale_temps(root: str | Path, older_than_s: float) -> int:
    """Delete what killed writers left below a local folder; returns how many files.

    Object stores have no such files. A part of an upload that was never completed stays invisible
    there until the bucket's lifecycle rule (AbortIncompleteMultipartUpload) removes it.
    """
    with named_errors("cleaning", root):
        return local.collect_stale_temps(local_path(root), older_than_s) if is_local(root) else 0


def _open_tagged(uri: str | Path, tag: str) -> io.BufferedReader:
    file = local_path(uri).open("rb")
    if local.tag_of(os.fstat(file.fileno())) == tag:
        return file
    file.close()
    raise StorageError(f"{uri} was replaced while it was read. Rerun.")


def _stat_local(path: Path) -> tuple[int, str] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat_bits.S_ISREG(found.st_mode):
        return None
    return found.st_size, local.tag_of(found)


def _read_tagged(path: Path) -> tuple[bytes, str]:
    with path.open("rb") as file:
        found = os.fstat(file.fileno())  # of the open file: the name may change hands meanwhile
        return file.read(), local.tag_of(found)


def _list_local(root: str) -> Iterator[FileInfo]:
    for rel, entry in local.walk(local_path(root)):
        try:
            found = entry.stat()
        except FileNotFoundError:  # deleted since it was listed, or a link to nothing
            continue
        yield FileInfo(
            uri=join(root, rel), rel=rel, size_bytes=found.st_size, tag=local.tag_of(found)
        )


def _list_objects(root: str) -> Iterator[FileInfo]:
    folder = root.rstrip("/") + "/"
    for rel, head in s3.walk(folder):
        steps = rel.split("/")
        if steps[-1] and not any(step.startswith(".") for step in steps):
            yield FileInfo(uri=folder + rel, rel=rel, size_bytes=head.size_bytes, tag=head.tag)


def _delete_objects(root: str) -> None:
    folder, keys = root.rstrip("/") + "/", []
    bucket, prefix = s3.split(folder)
    if not prefix.strip("/"):
        raise StorageError(f"{root}: refusing to delete a whole bucket. Name a folder in it.")
    for rel, _ in s3.walk(folder):
        keys.append(prefix + rel)
        if len(keys) == s3.DELETE_AT_ONCE:
            s3.delete_many(bucket, keys)
            keys = []
    if keys:
        s3.delete_many(bucket, keys)
    s3.delete(root.rstrip("/"))
