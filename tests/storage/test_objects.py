"""Names, listing, deleting and reading: equal on disk and S3."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import numpy as np
import pytest

from mstar.errors import ConfigError, StorageError
from mstar.storage import objects, s3
from support.storage_children import read_in_fork

ODD_NAMES = ["a b", "ünïcode-切片", "100%25", "plus+and&", "#hash?x=1", "it's", "deep/er/name.h5"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_is_written_is_read_and_listed_under_its_name(root: str, name: str) -> None:
    uri = objects.join(root, name)
    assert not objects.exists(uri)
    assert objects.write_whole(uri, b"content")
    assert objects.read_bytes(uri) == b"content"
    listed = list(objects.list_files(root))
    assert [(info.uri, info.rel, info.size_bytes) for info in listed] == [(uri, name, 7)]
    assert objects.stat(uri).tag == listed[0].tag
    objects.delete(uri)
    objects.delete(uri)
    assert not objects.exists(uri)


def test_file_addresses_are_percent_encoded_paths(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    root = (tmp_path / "a b").as_uri()
    assert "%20" in root
    objects.write_whole(objects.join(root, "c d%"), b"x")
    assert (tmp_path / "a b" / "c d%").read_bytes() == b"x"
    (info,) = objects.list_files(root)
    assert info.rel == "c d%"
    assert objects.read_bytes(info.uri) == b"x"


@pytest.mark.parametrize("part", ["../x", "a/../../x", "/etc/passwd", ".."])
def test_join_does_not_leave_the_folder(part: str) -> None:
    with pytest.raises(ConfigError, match="leads out"):
        objects.join("/data", part)


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gs:// is not supported.*s3://"):
        objects.read_bytes("gs://bucket/x")


def test_missing_files_raise_file_not_found(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        objects.read_bytes(objects.join(root, "absent"))
    with pytest.raises(FileNotFoundError):
        objects.open_read(objects.join(root, "absent"))
    assert objects.read_tagged(objects.join(root, "absent")) is None
    assert list(objects.list_files(objects.join(root, "absent"))) == []


def test_a_missing_bucket_is_not_an_empty_one(s3_server: str) -> None:
    for act in (
        lambda: objects.write_whole("s3://no-such-bucket/x", b""),
        lambda: list(objects.list_files("s3://no-such-bucket/x")),
    ):
        with pytest.raises(StorageError, match=r"no-such-bucket.*Make the bucket"):
            act()


def test_listing_is_fresh_and_filtered(root: str) -> None:
    for name in ("a.h5", "b/c.h5", "b/d.txt", ".hidden/e.h5"):
        objects.write_whole(objects.join(root, name), b"")
    rels = sorted(info.rel for info in objects.list_files(root, suffix=".h5"))
    assert rels == ["a.h5", "b/c.h5"]
    objects.write_whole(objects.join(root, "later.h5"), b"")
    objects.delete(objects.join(root, "a.h5"))
    rels = sorted(info.rel for info in objects.list_files(root, suffix=".h5"))
    assert rels == ["b/c.h5", "later.h5"]


def test_listing_does_not_mistake_a_prefix_for_a_folder(root: str) -> None:
    objects.write_whole(objects.join(root, "run/x"), b"")
    objects.write_whole(objects.join(root, "run2/y"), b"")
    assert [info.rel for info in objects.list_files(objects.join(root, "run"))] == ["x"]
    objects.delete_tree(objects.join(root, "run"))
    assert [info.rel for info in objects.list_files(root)] == ["run2/y"]


def test_more_files_than_one_request_holds_are_listed_and_deleted(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LIST_AT_ONCE", 40)
    monkeypatch.setattr(s3, "DELETE_AT_ONCE", 30)
    names = [f"{n:04d}" for n in range(100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: objects.write_whole(objects.join(bucket, name), b""), names))
    assert [info.rel for info in objects.list_files(bucket)] == names
    objects.delete_tree(bucket)
    assert list(objects.list_files(bucket)) == []


def test_delete_tree_spares_buckets(s3_server: str) -> None:
    with pytest.raises(StorageError, match="whole bucket"):
        objects.delete_tree("s3://mstar-storage/")


def test_a_folder_linked_into_itself_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "x")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert sorted(i.rel for i in objects.list_files(tmp_path)) == ["a/x", "link"]


def test_open_read_seeks_like_a_file(root: str, tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(3_000_000)
    uri = objects.join(root, "x")
    objects.write_whole(uri, data)
    rng = np.random.default_rng(2)
    with objects.open_read(uri) as file:
        for _ in range(20):
            start, length = (int(n) for n in rng.integers(0, [3_100_000, 200_000]))
            file.seek(start)
            assert file.read(length) == data[start : start + length]
        file.seek(-10, os.SEEK_END)
        assert file.read() == data[-10:]


def test_memory_is_filled_from_the_tagged_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    found = objects.stat(path)
    assert found is not None
    out = bytearray(10)
    objects.read_into(path, 30, memoryview(out), tag=found.tag)
    assert out == bytes(range(30, 40))
    with pytest.raises(StorageError, match=r"x: expected 10 bytes at 95, got 5\. The file"):
        objects.read_into(path, 95, memoryview(out), tag=found.tag)
    path.write_bytes(b"another")
    with pytest.raises(StorageError, match="x was replaced while it was read"):
        objects.read_into(path, 0, memoryview(out), tag=found.tag)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        objects.read_into(path, 0, memoryview(out), tag=found.tag)


def test_a_read_notices_that_the_object_was_replaced(bucket: str) -> None:
    uri = objects.join(bucket, "x")
    objects.write_whole(uri, bytes(5_000_000))
    with objects.open_read(uri) as file:
        file.read(10)
        objects.write_whole(uri, bytes(5_000_001))
        file.seek(4_000_000)
        with pytest.raises(StorageError, match="replaced while"):
            file.read(10)


def test_many_threads_share_one_client(bucket: str) -> None:
    def write_and_read(number: int) -> bytes:
        uri = objects.join(bucket, f"{number}")
        objects.write_whole(uri, b"%d" % number)
        return objects.read_bytes(uri)

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(write_and_read, range(100))) == [b"%d" % n for n in range(100)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_reads_what_its_parent_wrote(bucket: str, method: str) -> None:
    uri = objects.join(bucket, "x")
    objects.write_whole(uri, b"from the parent")  # the parent's client is in use
    context = multiprocessing.get_context(method)
    answers: Queue[bytes] = context.Queue()
    child = context.Process(target=read_in_fork, args=(uri, answers))
    child.start()
    assert answers.get(timeout=30) == b"from the parent"
    child.join()
    assert objects.read_bytes(uri) == b"from the parent"
