"""The slide cache: each object once per node, bounded, never evicted in use, whole or absent."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import openslide
import pytest

from mstar.errors import SlideError, StorageError
from mstar.storage import cache as cache_module
from mstar.storage import objects, retry
from mstar.storage.cache import SlideCache, default_cache_dir
from mstar.storage.cache_folder import CacheFolder
from support.s3 import CountingProxy, Fault
from support.storage_children import stage_and_hang, stage_slide

SPAWN = multiprocessing.get_context("spawn")
BLOCK = 1 << 16


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "BLOCK_BYTES", BLOCK)


def put(bucket: str, name: str, size_bytes: int) -> tuple[str, bytes]:
    uri, data = objects.join(bucket, name), os.urandom(size_bytes)
    objects.write_whole(uri, data)
    return uri, data


def entry_bytes(folder: Path) -> int:
    """What the cache really takes up."""
    total = 0
    for path in [Path(at, name) for at, _, names in os.walk(folder) for name in names]:
        with suppress(FileNotFoundError):  # evicted meanwhile
            total += path.stat().st_size
    return total


def test_local_slides_are_passed_through(tmp_path: Path) -> None:
    slide = tmp_path / "a b.svs"
    slide.write_bytes(b"pixels")
    cache = SlideCache(tmp_path / "cache", max_bytes=1)
    for uri in (str(slide), slide.as_uri()):
        with cache.stage(uri) as path:
            assert path == slide
    assert cache.bytes_fetched == 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("size_bytes", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_a_staged_slide_has_the_objects_bytes_and_name(
    bucket: str, tmp_path: Path, size_bytes: int
) -> None:
    uri, data = put(bucket, "ü folder/slide 1.svs", size_bytes)
    cache = SlideCache(tmp_path, max_bytes=10 * BLOCK)
    for _ in range(2):
        with cache.stage(uri) as path:
            assert path.name == "slide 1.svs"
            assert path.read_bytes() == data
    assert (cache.bytes_fetched, cache.hits) == (size_bytes, 1)
    assert cache.wait_s > 0


def test_a_real_slide_opens_from_the_cache(bucket: str, tmp_path: Path, real_slide: Path) -> None:
    uri = objects.join(bucket, "real.svs")
    objects.put_file(real_slide, uri)
    with (
        SlideCache(tmp_path, max_bytes=1 << 30).stage(uri) as path,
        openslide.OpenSlide(path) as staged,
        openslide.OpenSlide(real_slide) as original,
    ):
        window = ((500, 600), 0, (256, 256))
        assert staged.read_region(*window).tobytes() == original.read_region(*window).tobytes()


def test_processes_of_a_node_fetch_an_object_once(
    bucket: str, tmp_path: Path, proxy: CountingProxy
) -> None:
    uri, data = put(bucket, "x.svs", 3_000_000)
    barrier, results = SPAWN.Barrier(3), SPAWN.Queue()
    arguments = (tmp_path, uri, 10_000_000, barrier, results)
    children = [SPAWN.Process(target=stage_slide, args=arguments) for _ in range(3)]
    for child in children:
        child.start()
    answers = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert all(content == data for content, _ in answers)
    assert sorted(fetched for _, fetched in answers) == [0, 0, len(data)]
    assert proxy.bytes_served == len(data)


def test_threads_fetch_an_object_once(bucket: str, tmp_path: Path) -> None:
    uri, data = put(bucket, "x.svs", 10 * BLOCK)
    cache = SlideCache(tmp_path, max_bytes=20 * BLOCK)

    def stage(_: int) -> bytes:
        with cache.stage(uri) as path:
            return path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(stage, range(16))) == {data}
    assert (cache.bytes_fetched, cache.hits) == (len(data), 15)


def test_the_longest_unused_goes_first_and_the_bound_holds(bucket: str, tmp_path: Path) -> None:
    uris = [put(bucket, f"{n}.svs", 100_000)[0] for n in range(4)]
    cache = SlideCache(tmp_path, max_bytes=300_000)
    for number in (0, 1, 2, 0, 3):  # 1 is the longest unused when 3 needs room
        with cache.stage(uris[number]):
            assert entry_bytes(tmp_path) <= 300_000
        time.sleep(0.01)
    before = cache.bytes_fetched
    for number in (0, 2, 3):
        with cache.stage(uris[number]):
            pass
    assert cache.bytes_fetched == before
    with cache.stage(uris[1]):
        pass
    assert cache.bytes_fetched == before + 100_000


def test_a_slide_in_use_is_not_evicted(bucket: str, tmp_path: Path) -> None:
    (used, data), (other, _) = put(bucket, "a.svs", 100_000), put(bucket, "b.svs", 100_000)
    cache = SlideCache(tmp_path, max_bytes=150_000, wait_for_room_s=0.3)
    with cache.stage(used) as path:
        with pytest.raises(StorageError, match="all of its 150,000 are in use"), cache.stage(other):
            pass
        assert path.read_bytes() == data
    with cache.stage(other):
        assert not path.exists()


def test_staging_waits_for_room(bucket: str, tmp_path: Path) -> None:
    (used, _), (other, data) = put(bucket, "a.svs", 100_000), put(bucket, "b.svs", 100_000)
    cache = SlideCache(tmp_path, max_bytes=150_000, wait_for_room_s=60)
    with ExitStack() as stack:
        stack.enter_context(cache.stage(used))
        threading.Timer(0.5, stack.pop_all().close).start()
        with cache.stage(other) as path:
            assert path.read_bytes() == data
    assert cache.wait_s > 0.4


def test_many_threads_in_a_small_cache_never_exceed_it(bucket: str, tmp_path: Path) -> None:
    slides = dict(put(bucket, f"{n}.svs", 50_000) for n in range(6))
    cache = SlideCache(tmp_path, max_bytes=160_000, wait_for_room_s=60)
    largest = []

    def stage(number: int) -> None:
        uri = list(slides)[number % len(slides)]
        with cache.stage(uri) as path:
            assert path.read_bytes() == slides[uri]
            largest.append(entry_bytes(tmp_path))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(stage, range(24)))
    assert max(largest) <= 160_000


def test_an_object_larger_than_the_cache_is_refused_with_a_way_out(
    bucket: str, tmp_path: Path
) -> None:
    uri, _ = put(bucket, "x.svs", 2000)
    with (
        pytest.raises(StorageError, match=r"2,000 bytes does not fit into 1,999.*--cache-gb"),
        SlideCache(tmp_path, max_bytes=1999).stage(uri),
    ):
        pass


def test_a_new_version_is_fetched_anew(bucket: str, tmp_path: Path) -> None:
    uri, old = put(bucket, "x.svs", 5000)
    cache = SlideCache(tmp_path, max_bytes=100_000)
    with cache.stage(uri) as path:
        new = os.urandom(5000)
        objects.write_whole(uri, new)
        with cache.stage(uri) as newer:
            assert newer.read_bytes() == new
        assert path.read_bytes() == old, "the reader of the old one keeps it"


def test_a_cut_connection_costs_one_block(
    bucket: str, tmp_path: Path, proxy: CountingProxy, no_waiting: list[int]
) -> None:
    uri, data = put(bucket, "x.svs", 20 * BLOCK)
    before = retry.retries_made()
    proxy.inject(Fault(kind="cut", times=2, after_bytes=BLOCK // 2))
    proxy.inject(Fault(kind="503", times=2))
    with SlideCache(tmp_path, max_bytes=30 * BLOCK).stage(uri) as path:
        assert path.read_bytes() == data
    assert retry.retries_made() == before + 4
    assert len(data) < proxy.bytes_served <= len(data) + 2 * BLOCK


def test_a_store_that_stays_away_leaves_nothing_behind(
    bucket: str, tmp_path: Path, proxy: CountingProxy, no_waiting: list[int]
) -> None:
    uri, data = put(bucket, "x.svs", 20 * BLOCK)
    cache = SlideCache(tmp_path, max_bytes=20 * BLOCK)
    proxy.inject(Fault(kind="503", times=10_000))
    with pytest.raises(StorageError, match=r"failed 13 times"), cache.stage(uri):
        pass
    assert entry_bytes(tmp_path) == 0
    proxy.reset()
    with cache.stage(uri) as path:
        assert path.read_bytes() == data


def test_an_object_replaced_while_fetched_is_not_mixed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, _ = put(bucket, "x.svs", 10 * BLOCK)
    read_range = objects.read_range

    def replace_first(*args: object, **options: object) -> bytes:
        objects.write_whole(uri, os.urandom(10 * BLOCK))
        return read_range(*args, **options)

    monkeypatch.setattr(objects, "read_range", replace_first)
    with (
        pytest.raises(StorageError, match="was replaced while it was read"),
        SlideCache(tmp_path, max_bytes=20 * BLOCK).stage(uri),
    ):
        pass
    assert entry_bytes(tmp_path) == 0


def test_a_killed_fetch_is_never_visible_and_its_room_comes_back(
    bucket: str, tmp_path: Path, proxy: CountingProxy
) -> None:
    uri, data = put(bucket, "x.svs", 9 << 20)  # more than one block of a child's
    other, _ = put(bucket, "y.svs", 9 << 20)
    proxy.inject(Fault(kind="delay", delay_s=30, times=1))
    child = SPAWN.Process(target=stage_and_hang, args=(tmp_path, uri, 10 << 20))
    child.start()
    deadline_s = time.monotonic() + 30
    while not any((tmp_path / "partial").glob("*/*")):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert list((tmp_path / "entries").iterdir()) == []
    child.kill()
    child.join()
    proxy.reset()
    cache = SlideCache(tmp_path, max_bytes=10 << 20, wait_for_room_s=5)
    with cache.stage(other):
        assert list((tmp_path / "partial").iterdir()) == []
    with cache.stage(uri) as path:
        assert path.read_bytes() == data


def test_a_lock_waited_for_on_a_removed_file_counts_for_nothing(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, max_bytes=100)
    folder.make()
    evictor = folder.lock("entry.1", shared=False)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(folder.lock, "entry.1", shared=False)
        time.sleep(0.1)
        (tmp_path / "locks" / "entry.1").unlink()  # as eviction does
        newcomer = folder.lock("entry.1", shared=False)
        os.close(evictor)
        time.sleep(0.1)
        assert not waiting.done(), "two would hold the lock"
        os.close(newcomer)
        os.close(waiting.result(timeout=10))


def test_a_pin_ends_with_its_process(bucket: str, tmp_path: Path) -> None:
    (used, _), (other, _) = put(bucket, "a.svs", 100_000), put(bucket, "b.svs", 100_000)
    child = SPAWN.Process(target=stage_and_hang, args=(tmp_path, used, 150_000))
    child.start()
    deadline_s = time.monotonic() + 30
    while not any(tmp_path.glob("entries/*")):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    child.kill()
    child.join()
    with SlideCache(tmp_path, max_bytes=150_000, wait_for_room_s=5).stage(other):
        pass


def test_a_full_disk_names_the_folder(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, _ = put(bucket, "x.svs", 1000)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module.os, "pwrite", full)
    with (
        pytest.raises(StorageError, match=rf"{tmp_path}.*disk is full.*--cache-dir"),
        SlideCache(tmp_path, max_bytes=10_000).stage(uri),
    ):
        pass
    monkeypatch.undo()
    assert entry_bytes(tmp_path) == 0


def test_errors_of_the_reader_are_not_taken_for_the_caches(bucket: str, tmp_path: Path) -> None:
    uri, _ = put(bucket, "x.svs", 1000)
    cache = SlideCache(tmp_path, max_bytes=10_000)
    with pytest.raises(OSError, match="the reader's own"), cache.stage(uri):
        raise OSError("the reader's own")
    with cache.stage(put(bucket, "y.svs", 9_500)[0]):  # and the pin is gone
        pass


def test_a_missing_slide_is_the_slides_error(bucket: str, tmp_path: Path) -> None:
    uri = objects.join(bucket, "absent.svs")
    with (
        pytest.raises(SlideError, match=r"absent\.svs: there is no such object") as caught,
        SlideCache(tmp_path, max_bytes=1000).stage(uri),
    ):
        pass
    assert not caught.value.transient


def test_mrxs_comes_with_its_folder(bucket: str, tmp_path: Path) -> None:
    uri, index = put(bucket, "scans/x.MRXS", 10)
    _, data = put(bucket, "scans/x/Data0001.dat", 1000)
    _, ini = put(bucket, "scans/x/Slidedat.ini", 100)
    put(bucket, "scans/xy/Data0001.dat", 5000)
    cache = SlideCache(tmp_path, max_bytes=10_000)
    with cache.stage(uri) as path:
        assert path.name == "x.MRXS"
        assert path.read_bytes() == index
        assert (path.parent / "x" / "Data0001.dat").read_bytes() == data
        assert (path.parent / "x" / "Slidedat.ini").read_bytes() == ini
    assert cache.bytes_fetched == 1110


def test_dicom_comes_with_the_rest_of_its_folder(bucket: str, tmp_path: Path) -> None:
    instances = dict(put(bucket, f"series/{n}.dcm", 100) for n in range(3))
    put(bucket, "series/notes.txt", 5000)
    put(bucket, "series/other/9.dcm", 5000)
    cache = SlideCache(tmp_path, max_bytes=1000)
    with cache.stage(next(iter(instances))) as path:
        staged = sorted(file.read_bytes() for file in path.parent.iterdir())
        assert staged == sorted(instances.values())
    assert cache.bytes_fetched == 300


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_folder_comes_whole(bucket: str, tmp_path: Path, ending: str) -> None:
    put(bucket, "series/a.dcm", 100)
    put(bucket, "series/deep/b.dcm", 100)
    with SlideCache(tmp_path, max_bytes=1000).stage(f"{bucket}/series{ending}") as path:
        assert path.name == "series"
        assert sorted(p.name for p in path.rglob("*.dcm")) == ["a.dcm", "b.dcm"]


def test_formats_whose_files_cannot_be_told_are_refused(bucket: str, tmp_path: Path) -> None:
    uri, _ = put(bucket, "x.vms", 10)
    with pytest.raises(SlideError, match="copy it to a disk"):
        with SlideCache(tmp_path, max_bytes=1000).stage(uri):
            pass


def test_the_folder_is_for_its_user_only(bucket: str, tmp_path: Path) -> None:
    uri, _ = put(bucket, "x.svs", 10)
    with SlideCache(tmp_path / "new", max_bytes=1000).stage(uri):
        for path in (tmp_path / "new").iterdir():
            assert path.stat().st_mode & 0o077 == 0


def test_the_default_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTAR_CACHE_DIR", "/scratch/slides")
    assert default_cache_dir() == "/scratch/slides"
    monkeypatch.delenv("MSTAR_CACHE_DIR")
    assert default_cache_dir().endswith(f"mstar-cache-{os.getuid()}")
