"""Objects of an S3-compatible store, through s3fs (`s3_client.py`)."""

import io
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from mstar.errors import StorageError
from mstar.storage import retry
from mstar.storage.s3_client import client, run_async
from mstar.storage.seekable import SeekableReader

PART_BYTES = 32 << 20  # objects of two parts and more go up in parts
PARTS_AT_ONCE = 3  # times PART_BYTES is the memory of one upload
LIST_AT_ONCE = 1000  # the most that one answer may hold
DELETE_AT_ONCE = 1000  # the most that one request may name
READ_AHEAD_BYTES = 1 << 20
UPLOAD_MARK = "mstar-upload"  # user metadata: which upload made the object


class Head(NamedTuple):
    """What a store says about an object without sending it."""

    size_bytes: int
    tag: str  # its ETag: another one means other content


def read(uri: str) -> bytes:
    """The whole object, in one request."""

    async def get(fs: Any) -> bytes:
        answer = await fs._call_s3("get_object", **_name(uri))
        async with answer["Body"] as body:
            return _checked(await body.read(), int(answer["ContentLength"]))

    return run_async(uri, "reading", get)


def read_tagged(uri: str) -> tuple[bytes, str]:
    """The whole object and its ETag."""

    async def get(fs: Any) -> tuple[bytes, str]:
        answer = await fs._call_s3("get_object", **_name(uri))
        async with answer["Body"] as body:
            return _checked(await body.read(), int(answer["ContentLength"])), answer["ETag"]

    return run_async(uri, "reading", get)


def read_range(uri: str, start: int, stop: int, tag: str) -> bytes:
    """The bytes [start, stop) of the object, if it still is the one with this ETag."""

    async def get(fs: Any) -> bytes:
        where = f"bytes={start}-{stop - 1}"
        answer = await fs._call_s3("get_object", Range=where, IfMatch=tag, **_name(uri))
        async with answer["Body"] as body:
            return _checked(await body.read(), stop - start)

    try:
        return run_async(uri, "reading", get)
    except Exception as error:
        if retry.status_of(error) == 412:
            raise StorageError(f"{uri} was replaced while it was read. Rerun.") from error
        raise


def head(uri: str) -> Head | None:
    """Size and ETag, None when there is no such object."""
    try:
        answer = run_async(uri, "asking for", lambda fs: fs._call_s3("head_object", **_name(uri)))
    except FileNotFoundError:
        return None
    return Head(int(answer["ContentLength"]), answer["ETag"])


def write(uri: str, data: bytes, *, if_absent: bool) -> bool:
    """Put the object whole; with `if_absent` False is returned when the name is taken."""
    return _put(uri, lambda **options: client().pipe_file(_path(uri), data, **options), if_absent)


def put_file(local: Path, uri: str, *, if_absent: bool) -> bool:
    """Put a file's content as `write` does; a large one goes up in parts and appears at the end."""
    path = str(local)
    return _put(uri, lambda **options: client().put_file(path, _path(uri), **options), if_absent)


def replace_if(uri: str, data: bytes, wanted: str) -> bool:
    """Put the object if the one there still has the ETag `wanted`.

    False may also mean that the first answer was lost and the repeated request met our own object;
    callers that must know read it.
    """
    return _conditional(uri, "replacing", "put_object", Body=data, IfMatch=wanted)


def delete_if(uri: str, wanted: str) -> bool:
    """Delete the object if it still has the ETag `wanted`."""
    return _conditional(uri, "deleting", "delete_object", IfMatch=wanted)


def delete(uri: str) -> None:
    """Delete an object; it may be gone already."""
    run_async(uri, "deleting", lambda fs: fs._call_s3("delete_object", **_name(uri)))


def delete_many(bucket: str, keys: list[str]) -> None:
    """Delete up to `DELETE_AT_ONCE` objects of a bucket."""
    names = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
    uri = f"s3://{bucket}/{keys[0]}"
    answer = run_async(
        uri, "deleting", lambda fs: fs._call_s3("delete_objects", Bucket=bucket, Delete=names)
    )
    if answer.get("Errors"):
        first = answer["Errors"][0]
        raise StorageError(f"deleting s3://{bucket}/{first['Key']}: {first.get('Message')}")


def walk(uri: str) -> Iterator[tuple[str, Head]]:
    """Keys that start with the address, relative to it, a page at a time and sorted."""
    bucket, prefix = split(uri)
    more: dict[str, str] = {}
    while True:
        page = run_async(
            uri,
            "listing",
            partial(_list_page, bucket=bucket, prefix=prefix, more=more),
        )
        for found in page.get("Contents", ()):
            yield found["Key"][len(prefix) :], Head(int(found["Size"]), found["ETag"])
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


async def _list_page(fs: Any, bucket: str, prefix: str, more: dict[str, str]) -> Any:
    return await fs._call_s3(
        "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=LIST_AT_ONCE, **more
    )


def split(uri: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise StorageError(f"{uri!r}: expected s3://bucket/key")
    return bucket, key


class S3Reader(SeekableReader):
    """An object as a seekable file; every read is one ranged request with its own retries."""

    def __init__(self, uri: str) -> None:
        """Open the object that is there now; reads fail if it is replaced."""
        found = head(uri)
        if found is None:
            raise FileNotFoundError(f"no such object: {uri}")
        super().__init__(found.size_bytes)
        self._uri, self._tag = uri, found.tag

    def readinto(self, target: Any) -> int:  # Buffer is in the library from 3.12 on
        """Fill a buffer from the position on."""
        view = memoryview(target).cast("B")
        stop = min(self.at + len(view), self.size_bytes)
        if stop <= self.at:
            return 0
        data = read_range(self._uri, self.at, stop, self._tag)
        view[: len(data)] = data
        self.at = stop
        return len(data)


def open_read(uri: str) -> io.BufferedReader:
    """The object as a buffered, seekable file."""
    return io.BufferedReader(S3Reader(uri), READ_AHEAD_BYTES)


def _put(uri: str, put: Callable[..., object], if_absent: bool) -> bool:
    """Run an upload with retries; False when another writer's object has the name.

    When the answer to a PUT is lost, the HTTP library or `retry.call` sends it again and meets our
    own object. A mark that each upload carries tells ours from another's with equal bytes.
    """
    mark = secrets.token_hex(8)
    options = _upload_options(mark, if_absent)
    try:
        retry.call(lambda: put(**options), uri=uri, doing="writing")
    except Exception as error:
        if if_absent and retry.status_of(error) == 412:
            return _mark_of(uri) == mark
        raise
    return True


def _mark_of(uri: str) -> str | None:
    """The mark of the upload that made the object, None when it has none or is gone."""
    try:
        answer = run_async(uri, "asking for", lambda fs: fs._call_s3("head_object", **_name(uri)))
    except FileNotFoundError:
        return None
    return cast("str | None", answer.get("Metadata", {}).get(UPLOAD_MARK))


def _conditional(uri: str, doing: str, method: str, **options: object) -> bool:
    """A request with If-Match; False when the object is another one, or gone."""
    try:
        run_async(uri, doing, lambda fs: fs._call_s3(method, **_name(uri), **options))
    except Exception as error:
        if retry.status_of(error) in (404, 412):
            return False
        raise
    return True


def _upload_options(mark: str, if_absent: bool) -> dict[str, Any]:
    return {
        "chunksize": PART_BYTES,
        "max_concurrency": PARTS_AT_ONCE,
        "mode": "create" if if_absent else "overwrite",  # create: If-None-Match: *
        "Metadata": {UPLOAD_MARK: mark},
        "ContentType": "application/octet-stream",  # not guessed from the name
    }


def _name(uri: str) -> dict[str, str]:
    bucket, key = split(uri)
    return {"Bucket": bucket, "Key": key}


def _path(uri: str) -> str:
    return "/".join(split(uri))


def _checked(data: bytes, expected_bytes: int) -> bytes:
    """The data, if all of it came."""
    if len(data) != expected_bytes:
        raise retry.ShortReadError(f"expected {expected_bytes} bytes, got {len(data)}")
    return data
