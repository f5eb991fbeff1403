"""What a disk or an object store says, as a StorageError that names the address and the way out."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mstar.errors import StorageError
from mstar.storage import retry

_CLIENT_LIBRARIES = frozenset({"aiobotocore", "aiohttp", "botocore", "fsspec", "s3fs"})
_WAYS_OUT = {
    "NoCredentialsError": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "ExpiredToken": "The keys have expired: set fresh ones, then rerun.",
    "NoSuchBucket": "Make the bucket first, or correct its name.",
    "PermissionError": "Check the permissions of the folder, or the keys of the store.",
    "ENOSPC": "The disk is full: free some space or choose another folder.",
    "EDQUOT": "The quota is used up: free some space or choose another folder.",
    "EROFS": "The disk is mounted read-only: choose another folder.",
    "ENAMETOOLONG": "The name is too long for this disk: choose a shorter one.",
    "ENOTSUP": "The disk cannot link files: choose a folder on another one.",
}


@contextmanager
def named_errors(doing: str, uri: str | Path) -> Iterator[None]:
    """Turns what the disk or the store said into a StorageError that names the address."""
    try:
        yield
    except Exception as error:
        names = _names(error)
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        if (absent and "NoSuchBucket" not in names) or not _is_storage_trouble(error):
            raise
        way_out = next((hint for name, hint in _WAYS_OUT.items() if name in names), "")
        text = f"{doing} {uri}: {retry.describe(error)}. {way_out}"
        raise StorageError(text.strip()) from error


def _is_storage_trouble(error: Exception) -> bool:
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | retry.ShortReadError) or library in _CLIENT_LIBRARIES


def _names(error: Exception) -> set[str]:
    """What an error is called: its classes, its errno, and the code in the store's answer."""
    names = {kind.__name__ for kind in type(error).__mro__} | {retry.code_of(error) or ""}
    if isinstance(error, OSError) and error.errno is not None:
        names.add(errno.errorcode.get(error.errno, ""))
    return names
