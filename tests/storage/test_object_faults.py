"""A full disk, wrong keys, and an S3 server in trouble: outlasted, or named as what it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mstar.errors import StorageError
from mstar.storage import local, objects, retry
from support.s3 import CountingProxy, Fault, s3_environment


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local, "_flush", full)
    with pytest.raises(StorageError, match=r"writing .*/x: .*disk is full") as caught:
        objects.write_whole(tmp_path / "x", b"data")
    assert caught.value.transient
    assert os.listdir(tmp_path) == []


def test_wrong_keys_are_not_retried(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = retry.retries_made()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone-else")
    with pytest.raises(StorageError, match=r"HTTP 403.*keys of the store"):
        objects.read_bytes(objects.join(bucket, "x"))
    assert retry.retries_made() == before


@pytest.mark.parametrize("kind", ["503", "500", "cut"])
def test_reads_outlast_passing_trouble(
    bucket: str, proxy: CountingProxy, no_waiting: list[int], kind: str
) -> None:
    uri, data = objects.join(bucket, "x"), os.urandom(200_000)
    objects.write_whole(uri, data)
    before = retry.retries_made()
    proxy.inject(Fault(kind=kind, times=2))
    assert objects.read_bytes(uri) == data
    assert retry.retries_made() == before + 2
    assert len(no_waiting) == 2
    proxy.inject(Fault(kind=kind))
    assert len(list(objects.list_files(bucket))) == 1
    proxy.inject(Fault(kind="503", method="HEAD"))
    assert objects.exists(uri)


def test_writes_outlast_passing_trouble(
    bucket: str, proxy: CountingProxy, no_waiting: list[int]
) -> None:
    uri = objects.join(bucket, "x")
    proxy.inject(Fault(kind="503", method="PUT", times=2))
    assert objects.write_whole(uri, b"data", if_absent=True)
    assert objects.read_bytes(uri) == b"data"


def test_a_lost_answer_does_not_make_the_writer_a_loser(
    bucket: str, proxy: CountingProxy, no_waiting: list[int]
) -> None:
    uri = objects.join(bucket, "x")
    for times in (1, 3):
        proxy.inject(Fault(kind="lost", method="PUT", times=times))
        assert objects.write_whole(uri, b"data", if_absent=True)
        assert not objects.write_whole(uri, b"data", if_absent=True)
        objects.delete(uri)


def test_lasting_trouble_ends_as_a_storage_error(
    bucket: str, proxy: CountingProxy, no_waiting: list[int]
) -> None:
    uri = objects.join(bucket, "x")
    proxy.inject(Fault(kind="503", times=1000))
    with pytest.raises(StorageError, match=rf"{uri} failed 13 times.*503 SlowDown") as caught:
        objects.read_bytes(uri)
    assert caught.value.__cause__ is not None
    assert len(no_waiting) == retry.DEFAULT_POLICY.tries - 1


def test_a_server_that_is_not_there_ends_as_a_storage_error(
    no_waiting: list[int], s3_server: str
) -> None:
    with (
        s3_environment("http://127.0.0.1:9"),
        pytest.raises(StorageError, match=r"s3://bucket/x failed 13 times.*mstar doctor"),
    ):
        objects.read_bytes("s3://bucket/x")
