"""Manifests and folders: every slide once, under a stable id; a bad row does not stop the rest."""

from __future__ import annotations

import csv
import math
import re
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mstar.errors import ConfigError, ManifestError
from mstar.schema import SlideRef
from mstar.storage import manifest as manifest_module
from mstar.storage import objects
from mstar.storage.manifest import BadRow, read_slides
from mstar.storage.slide_listing import SLIDE_EXTENSIONS, _to_regex

Rows = list[dict[str, object]]


def write_csv(path: Path, rows: Rows, encoding: str = "utf-8") -> str:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_parquet(path: Path, rows: Rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12345")


def good(entries: Sequence[SlideRef | BadRow]) -> list[SlideRef]:
    assert all(isinstance(entry, SlideRef) for entry in entries), entries
    return [entry for entry in entries if isinstance(entry, SlideRef)]


@pytest.fixture(params=["csv", "parquet"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Rows], str]:
    """Writes rows as a manifest of each kind."""
    if request.param == "csv":
        return lambda rows: write_csv(tmp_path / "m.csv", rows)
    return lambda rows: write_parquet(tmp_path / "m.parquet", rows)


def test_all_columns_are_read(write: Callable[[Rows], str]) -> None:
    full = {"path": "/d/a b.svs", "slide_id": "007", "mpp": "0.25", "case_id": "0012", "x": "?"}
    bare = {"path": "s3://b/ü/c.svs", "slide_id": "x/y", "mpp": None, "case_id": None, "x": None}
    assert list(read_slides(write([full, bare]))) == [
        SlideRef(slide_id="007", uri="/d/a b.svs", mpp=0.25, case_id="0012"),
        SlideRef(slide_id="x/y", uri="s3://b/ü/c.svs"),
    ]


def test_numbers_become_the_ids_that_were_meant(tmp_path: Path) -> None:
    table = {"path": ["a.svs", "b.svs"], "slide_id": [1.0, 22.0], "case_id": [3, 4]}
    table["mpp"] = [0.5, math.nan]
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    slides = good(list(read_slides(tmp_path / "m.parquet")))
    found = [(s.slide_id, s.case_id, s.mpp) for s in slides]
    assert found == [("1", "3", 0.5), ("22", "4", None)]


def test_paths_are_relative_to_the_manifest(write: Callable[[Rows], str], tmp_path: Path) -> None:
    uri = write([{"path": "sub/a.svs"}, {"path": "../b.svs"}, {"path": "/abs/c.svs"}])
    assert [slide.uri for slide in good(list(read_slides(uri)))] == [
        f"{tmp_path}/sub/a.svs",
        f"{tmp_path.parent}/b.svs",
        "/abs/c.svs",
    ]


def test_a_relative_manifest_gives_absolute_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "m.csv", [{"path": "a.svs"}])
    monkeypatch.chdir(tmp_path)
    (slide,) = good(list(read_slides("m.csv")))
    assert slide.uri == str(tmp_path / "a.svs"), "workers start in other folders"


def test_default_ids_are_relative_to_the_common_folder(write: Callable[[Rows], str]) -> None:
    uri = write([{"path": "/d/t/1/x.svs"}, {"path": "/d/t/2/x.svs"}, {"path": "/d/t/2/y.z.tif"}])
    ids = [slide.slide_id for slide in good(list(read_slides(uri)))]
    assert ids == ["1/x", "2/x", "2/y.z"]
    assert [s.slide_id for s in good(list(read_slides(write([{"path": "/d/t/1/x.svs"}]))))] == ["x"]


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "ab", "b", "c"]), min_size=1, max_size=4).map(tuple),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_default_ids_differ_and_rebuild_the_path(tmp_path: Path, paths: list[tuple[str]]) -> None:
    uris = ["/" + "/".join(steps) + ".svs" for steps in paths]
    uri = write_csv(tmp_path / "m.csv", [{"path": uri} for uri in uris])
    slides = good(list(read_slides(uri)))
    roots = {uri.removesuffix(f"{s.slide_id}.svs") for uri, s in zip(uris, slides, strict=True)}
    assert len(roots) == 1, "one common folder"
    assert len({slide.slide_id for slide in slides}) == len(uris)
    ids = [slide.slide_id for slide in slides]
    assert len({i.split("/")[0] for i in ids}) > 1 or any("/" not in i for i in ids), "deepest"


def test_bad_rows_do_not_stop_the_rest(write: Callable[[Rows], str]) -> None:
    bad = [
        ("../evil", "a.svs", "0.5", "'..' is not allowed"),
        ("/abs", "b.svs", "0.5", "absolute"),
        (None, "c.svs", "0.5", "empty"),
        ("back\\slash", "d.svs", "0.5", "backslash"),
        ("tab\there", "e.svs", "0.5", "control character"),
        ("comma", "f.svs", "0,5", "'0,5' is not a number. Write it like 0.25"),
        ("absurd", "g.svs", "250", "mpp 250.0 is outside 0.05–10"),
        ("infinite", "h.svs", "inf", "outside"),
        ("negative", "i.svs", "-1", "outside"),
        ("nowhere", None, "0.5", "path is empty"),
        ("elsewhere", "gs://b/x.svs", "0.5", "gs:// is not supported"),
        ("nul", "a\x01b.svs", "0.5", "control character"),
    ]
    rows: Rows = [{"slide_id": "first", "path": "1.svs", "mpp": "0.5"}]
    rows += [{"slide_id": i, "path": p, "mpp": m} for i, p, m, _ in bad]
    rows += [{"slide_id": "last", "path": "2.svs", "mpp": "0.5"}]
    entries = list(read_slides(write(rows)))
    assert [e.slide_id for e in entries if isinstance(e, SlideRef)] == ["first", "last"]
    assert len(entries) == len(rows)
    for number, ((slide_id, _, _, reason), entry) in enumerate(
        zip(bad, entries[1:-1], strict=True), start=2
    ):
        assert isinstance(entry, BadRow)
        assert reason in entry.reason
        assert entry.slide_id == slide_id or (slide_id is None and entry.slide_id)
        assert str(number) in entry.reason or str(number + 1) in entry.reason or "empty" in reason


def test_a_row_with_too_few_cells_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("case_id,path\nc1,a.svs\nc2\n\nc3,b.svs\n")
    entries = list(read_slides(tmp_path / "m.csv"))
    assert [isinstance(entry, BadRow) for entry in entries] == [False, True, False]
    assert "line 3 has 1 cells" in entries[1].reason


def test_duplicate_ids_name_both_rows(write: Callable[[Rows], str]) -> None:
    rows: Rows = [{"path": f"{n}.svs", "slide_id": i} for n, i in enumerate(["a", "b", "c", "b"])]
    expected = "slide_id 'b' comes twice, in (line 3 and in line 5|row 2 and in row 4)"
    with pytest.raises(ManifestError, match=expected):
        list(read_slides(write(rows)))


def test_duplicates_are_found_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_RECENT_IDS", 100)
    ids = [f"s{n}" for n in range(1234)]
    rows: Rows = [{"path": f"{n}.svs", "slide_id": i} for n, i in enumerate(ids)]
    assert len(good(list(read_slides(write_csv(tmp_path / "m.csv", rows))))) == len(ids)
    rows.append({"path": "again.svs", "slide_id": "s7"})
    with pytest.raises(ManifestError, match="'s7' comes twice, in line 9 and in line 1236"):
        list(read_slides(write_csv(tmp_path / "m.csv", rows)))


def test_equal_digests_of_different_ids_are_no_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OneDigest:
        def digest(self) -> bytes:
            return bytes(8)

    monkeypatch.setattr(manifest_module.hashlib, "blake2b", lambda *_, **__: OneDigest())
    uri = write_csv(tmp_path / "m.csv", [{"path": "a.svs"}, {"path": "b.svs"}])
    assert [s.slide_id for s in good(list(read_slides(uri)))] == ["a", "b"]


def test_the_callers_mpp_fills_what_the_manifest_lacks(write: Callable[[Rows], str]) -> None:
    uri = write([{"path": "a.svs", "mpp": "0.5"}, {"path": "b.svs", "mpp": None}])
    assert [s.mpp for s in good(list(read_slides(uri, slide_mpp=0.25)))] == [0.5, 0.25]
    with pytest.raises(ConfigError, match=r"--slide-mpp: mpp 40 is outside"):
        list(read_slides(uri, slide_mpp=40))


def csv_text(tmp_path: Path, content: bytes) -> str:
    (tmp_path / "m.csv").write_bytes(content)
    return str(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a column path, got none"),
        (b"path\n", "expected rows, got none"),
        (b"wsi,mpp\na.svs,1\n", "expected a column path, got 'wsi', 'mpp'"),
        (b"path;mpp\na.svs;1\n", "Separate the columns by commas"),
        (b"path,path\na.svs,b.svs\n", "column path comes twice"),
        ("path\nä.svs\n".encode("latin-1"), "expected UTF-8, got byte 0xe4 after line .*CSV UTF-8"),
        ("path\na.svs\n".encode("utf-16"), "expected UTF-8"),
        (b'path\n"' + b"a" * 200_000 + b'"\n', "line 2 is not CSV"),
    ],
)
def test_unusable_csv_is_explained(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        list(read_slides(csv_text(tmp_path, content)))
    assert "m.csv" in str(caught.value)


def test_csv_from_excel_is_read(tmp_path: Path) -> None:
    uri = csv_text(tmp_path, '\ufeffPath,Slide_ID\r\n"a, b.svs",ü\r\n\r\n'.encode())
    (slide,) = good(list(read_slides(uri)))
    assert (slide.uri, slide.slide_id) == (f"{tmp_path}/a, b.svs", "ü")


def test_unusable_parquet_is_explained(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"path\na.svs\n")
    with pytest.raises(ManifestError, match=r"m\.parquet: expected Parquet, got"):
        list(read_slides(tmp_path / "m.parquet"))
    pq.write_table(pa.table({"slide": ["a.svs"]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="expected a column path, got 'slide'"):
        list(read_slides(tmp_path / "m.parquet"))
    pq.write_table(pa.table({"path": pa.array([], pa.string())}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="expected rows, got none"):
        list(read_slides(tmp_path / "m.parquet"))


def test_a_missing_manifest_or_another_table_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no\.csv: there is no such manifest"):
        list(read_slides(tmp_path / "no.csv"))
    (tmp_path / "m.xlsx").touch()
    with pytest.raises(ConfigError, match=r"\.xlsx is not read\. Save the manifest as \.csv"):
        list(read_slides(tmp_path / "m.xlsx"))


TREE = ("b/x.svs", "a/x.svs", "a/y z.TIFF", "ü.ndpi", "notes.txt", "a/.hidden.svs", "s/1.dcm")
TREE += ("s/2.dcm", "m/k.mrxs", "m/k/Data1.dat", "m/k/Slidedat.ini")
IDS = ["a/x", "a/y z", "b/x", "m/k", "s", "ü"]


def test_folders_are_searched_on_every_storage(root: str) -> None:
    for name in TREE:
        objects.write_whole(objects.join(root, name), b"12345")
    for spec in (root, root + "/"):
        slides = good(list(read_slides(spec)))
        assert [slide.slide_id for slide in slides] == IDS, "sorted"
        sizes = {slide.slide_id: slide.size_bytes for slide in slides}
        assert sizes == dict(zip(IDS, [5, 5, 5, 15, 10, 5], strict=True))
        assert all(objects.exists(slide.uri) for slide in slides)
    assert {s.slide_id: s.uri for s in slides}["s"] == objects.join(root, "s/1.dcm")
    assert {s.mpp for s in good(list(read_slides(root, slide_mpp=0.3)))} == {0.3}


@pytest.mark.parametrize(
    ("pattern", "ids"),
    [
        ("*/*.svs", ["a/x", "b/x"]),
        ("a/*", ["x", "y z"]),
        ("**/*.svs", ["a/x", "b/x"]),
        ("**/x.*", ["a/x", "b/x"]),
        ("[a]/?.svs", ["a/x"]),
        ("[!a]/*.svs", ["b/x"]),
        ("m/*.mrxs", ["k"]),
        ("*/*.dcm", ["s"]),
        ("*.ndpi", ["ü"]),
    ],
)
def test_patterns_are_searched_on_every_storage(root: str, pattern: str, ids: list[str]) -> None:
    for name in TREE:
        objects.write_whole(objects.join(root, name), b"12345")
    slides = good(list(read_slides(objects.join(root, pattern))))
    assert [slide.slide_id for slide in slides] == ids
    assert slides[0].size_bytes == {"k": 15, "s": 10}.get(ids[0], 5)


def test_one_slide_is_a_cohort_too(root: str) -> None:
    for name in ("d/x [1].svs", "d/k.mrxs", "d/k/Data1.dat"):
        objects.write_whole(objects.join(root, name), b"12345")
    for name, size_bytes in (("x [1].svs", 5), ("k.mrxs", 10)):
        uri = objects.join(root, "d", name)
        expected = SlideRef(slide_id=name.rpartition(".")[0], uri=uri, size_bytes=size_bytes)
        assert list(read_slides(uri)) == [expected]


def test_nothing_found_is_explained(root: str) -> None:
    objects.write_whole(objects.join(root, "notes.txt"), b"")
    for spec in (root, objects.join(root, "*.svs"), objects.join(root, "absent")):
        with pytest.raises(ConfigError, match=r"no slides found among \d files.*\.mrxs"):
            list(read_slides(spec))


def test_two_formats_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.svs", "a/x.tif")
    with pytest.raises(ManifestError, match=r"'a/x' comes twice, in .*x\.svs and in .*x\.tif"):
        list(read_slides(tmp_path))


def test_a_file_whose_name_is_no_id_is_a_bad_row(tmp_path: Path) -> None:
    touch(tmp_path, "good.svs", "line\nbreak.svs")
    (tmp_path / "latin-\udce4.svs").touch()
    entries = list(read_slides(tmp_path))
    assert [e.slide_id for e in entries if isinstance(e, SlideRef)] == ["good"]
    reasons = [e.reason for e in entries if isinstance(e, BadRow)]
    assert any("control character" in reason for reason in reasons)
    assert any("not valid Unicode" in reason for reason in reasons)


def test_manifests_are_read_from_object_storage(bucket: str, tmp_path: Path) -> None:
    rows: Rows = [{"path": "slides/a.svs"}, {"path": "../b.svs"}, {"path": "s3://other/c.svs"}]
    rows.append({"path": "/local/d.svs"})
    for name, write_as in (("m.csv", write_csv), ("m.parquet", write_parquet)):
        uri = objects.join(bucket, "lists", name)
        objects.put_file(write_as(tmp_path / name, rows), uri)
        assert [slide.uri for slide in good(list(read_slides(uri)))] == [
            f"{bucket}/lists/slides/a.svs",
            f"{bucket}/b.svs",
            "s3://other/c.svs",
            "/local/d.svs",
        ]


def test_a_long_manifest_is_not_held_in_memory(tmp_path: Path) -> None:
    num_rows = 200_000
    paths = pa.array([f"/data/slides/{n:09d}-{'x' * 60}.svs" for n in range(num_rows)])
    ids = pa.array([f"{n:09d}-{'x' * 60}" for n in range(num_rows)])
    table = pa.table({"path": paths, "slide_id": ids})
    pq.write_table(table, tmp_path / "m.parquet", row_group_size=10_000)
    del paths, ids, table
    resident_bytes = []
    for number, _ in enumerate(read_slides(tmp_path / "m.parquet")):
        if number % (num_rows // 10) == num_rows // 10 - 1:
            resident_bytes.append(resident())
    assert len(resident_bytes) == 10
    assert max(resident_bytes) - resident_bytes[0] < 30e6, "200,000 refs held would be 100 MB"


def resident() -> int:
    """Resident memory of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("s3://b/*.svs", "s3://b/x.svs", True),
        ("s3://b/*.svs", "s3://b/d/x.svs", False),
        ("s3://b/**/*.svs", "s3://b/x.svs", True),
        ("s3://b/**/*.svs", "s3://b/d/e/x.svs", True),
        ("s3://b/a+(1).svs", "s3://b/a+(1).svs", True),
        ("s3://b/[^a].svs", "s3://b/^.svs", True),
    ],
)
def test_patterns_mean_what_shells_mean(pattern: str, name: str, fits: bool) -> None:
    assert bool(re.fullmatch(_to_regex(pattern), name)) == fits


def test_every_listed_extension_is_lower_case_and_dotted() -> None:
    assert all(e == e.lower() and e.startswith(".") for e in SLIDE_EXTENSIONS)
