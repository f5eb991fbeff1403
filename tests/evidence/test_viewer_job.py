"""`mstar view`: what is served and to whom, what a folder holds, and which sentences are near."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import simplejpeg
from openslide.deepzoom import DeepZoomGenerator

from mstar.cli.main import main
from mstar.downstream.language.encoders import PatchSide, TextSide
from mstar.errors import ConfigError, FeatureError, SlideError, StoreMismatchError
from mstar.evidence.scores import read_scores, write_scores
from mstar.evidence.viewer import export as export_module
from mstar.evidence.viewer.config import ViewConfig
from mstar.evidence.viewer.gather import gather, scores_of
from mstar.evidence.viewer.job import run
from mstar.evidence.viewer.page import ASSETS, page_files
from mstar.evidence.viewer.sentences import drawn, split_sentences
from mstar.evidence.viewer.serve import HOST, ViewServer
from mstar.evidence.viewer.tiles import TileMaker
from mstar.features.store import FeatureStore
from mstar.schema import RESEARCH_ONLY
from mstar.slides.reader import open_slide
from mstar.training.exit_codes import ExitCode
from support.slides import SlideSpec, write_slide, write_undecodable_tile
from support.view_world import SENTENCES, SIDE, ViewWorld, write_texts, write_view_world

OPENSEADRAGON = "14d587cd3ee7c4861f1a41077ce642029364a21029956ba635bd8fb1202cf9ad"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ViewWorld:
    """Not written to."""
    made = write_view_world(tmp_path_factory.mktemp("view"))
    write_texts(made)
    return made


def config_of(world: ViewWorld, **fields: Any) -> ViewConfig:
    """The job on this world."""
    return ViewConfig(**({"scores": (str(world.scores),)} | fields))


@pytest.fixture(scope="module")
def server(world: ViewWorld) -> Iterator[ViewServer]:
    """A running server."""
    config = config_of(world)
    slide = open_slide(world.slide)
    content = gather(config, scores_of(config), slide)
    tiles = TileMaker(slide, content.zoom)
    with ViewServer(page_files(content), tiles) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()
    tiles.close()


def ask(
    server: ViewServer, path: str, *, method: str = "GET", host: str = ""
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of one request, its path sent as it is."""
    port = server.server_address[1]
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"{HOST}:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_the_server_gives_the_page_and_the_tiles(world: ViewWorld, server: ViewServer) -> None:
    root = f"/{server.token}/"
    status, page, headers = ask(server, root)
    assert status == 200
    assert RESEARCH_ONLY[1:] in page.decode()
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    for name in re.findall(r'(?:src|href)="([^"#:]+)"', page.decode()):
        assert ask(server, root + name)[0] == 200, name
    with openslide.OpenSlide(world.slide) as slide:
        expected = DeepZoomGenerator(slide, 254, 1)
        level = expected.level_count - 1
        for column, row in ((0, 0), (3, 2), (8, 5)):
            status, body, headers = ask(server, f"{root}slide_files/{level}/{column}_{row}.jpg")
            assert (status, headers["Content-Type"]) == (200, "image/jpeg")
            seen, theirs = simplejpeg.decode_jpeg(body), expected.get_tile(level, (column, row))
            assert seen.shape[:2] == theirs.size[::-1]
            assert np.abs(seen.astype(int) - np.asarray(theirs)).mean() < 8
    assert ask(server, root, method="HEAD")[:2] == (200, b"")


def test_the_server_answers_no_one_else_and_reads_no_paths(
    world: ViewWorld, server: ViewServer
) -> None:
    root = f"/{server.token}/"
    assert len(server.token) >= 20
    refused = [
        "/", "/index.html", "/wrong/", f"/{server.token}", f"/{server.token}x/",
        root + "slide_files/11/9_0.jpg", root + "slide_files/99/0_0.jpg",
        root + "slide_files/11/-1_0.jpg", root + "slide_files/11/0_0.png",
        root + "../../etc/passwd", root + "%2e%2e/%2e%2e/etc/passwd", root + "/etc/passwd",
        root + str(world.slide), root + "view.json", root + "..%2fa.svs",
    ]  # fmt: skip
    assert [ask(server, path)[0] for path in refused] == [404] * len(refused)
    assert ask(server, root, host="evil.example")[0] == 404
    assert ask(server, root, method="POST")[0] == 501
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", server.server_address[1]))  # bound to one address alone


def test_data_holds_every_number_of_the_scores(world: ViewWorld, server: ViewServer) -> None:
    told = data_of(server.files["data.js"])
    scores = read_scores(str(world.scores))
    assert [one["label"] for one in told["layers"]] == ["attention:yes", "gain"]
    for one, layer in zip(told["layers"], scores.layers, strict=True):
        np.testing.assert_array_equal(unpacked(one["values"], "<f4"), layer.values)
        np.testing.assert_array_equal(unpacked(one["percentile"], "<f4"), layer.percentile)
    places = [unpacked(told["patches"][axis], "<i4") for axis in "xy"]
    np.testing.assert_array_equal(np.stack(places, axis=1), world.coords)
    assert told["patches"]["size_l0"] == SIDE
    assert told["warning"] == RESEARCH_ONLY


def data_of(script: bytes) -> dict[str, Any]:
    """What `data.js` says."""
    told: dict[str, Any] = json.loads(script.decode().partition(" = ")[2].rstrip(";\n"))
    return told


def unpacked(text: str, kind: str) -> np.ndarray:
    """Numbers from base64."""
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_viewer_is_the_published_one_with_its_licence() -> None:
    found = hashlib.sha256((ASSETS / "openseadragon.min.js").read_bytes()).hexdigest()
    assert found == OPENSEADRAGON
    assert "Redistribution and use" in (ASSETS / "openseadragon-LICENSE.txt").read_text()
    assert OPENSEADRAGON in (ASSETS / "THIRD_PARTY.md").read_text()


def test_no_file_of_the_page_names_an_address_outside(server: ViewServer) -> None:
    for name, data in server.files.items():
        if not name.startswith("openseadragon"):  # its comments name its own site
            assert not re.search(rb"(https?:)?//[\w.-]+\.[a-z]{2,}", data), name


def test_a_folder_holds_every_tile_and_a_second_run_makes_none(
    world: ViewWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "V"
    arguments = ["view", "--scores", str(world.scores), "--export", str(out)]
    assert main(arguments) == ExitCode.COMPLETE
    assert RESEARCH_ONLY in capsys.readouterr().out
    with openslide.OpenSlide(world.slide) as slide:
        expected = DeepZoomGenerator(slide, 254, 1)
        names = {
            f"{level}/{column}_{row}.jpg"
            for level, (columns, rows) in enumerate(expected.level_tiles)
            for column in range(columns)
            for row in range(rows)
        }
        size = f'Width="{slide.dimensions[0]}" Height="{slide.dimensions[1]}"'
    found = {str(p.relative_to(out / "slide_files")) for p in out.rglob("*.jpg")}
    assert found == names
    assert size in (out / "slide.dzi").read_text()
    record = json.loads((out / "view.json").read_text())
    assert record["complete"] is True
    assert record["warning"] == RESEARCH_ONLY
    (out / "slide_files" / "3" / "0_0.jpg").unlink()
    assert main(arguments) == ExitCode.COMPLETE
    assert f"{len(names):,} (1 new)" in capsys.readouterr().out
    other = write_slide(tmp_path / "b.svs", SlideSpec(width=600, height=400))
    with pytest.raises(StoreMismatchError, match="width_l0"):
        run(ViewConfig(slide=str(other), export=str(out)))


def test_an_ended_export_goes_on_and_gives_up_on_no_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_undecodable_tile(tmp_path / "a.svs", SlideSpec(width=700, height=500), tile=5)
    config = ViewConfig(slide=str(path), export=str(tmp_path / "V"), threads=1)
    plain, calls = export_module._write_tile, []

    def failing(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 15:
            raise KeyboardInterrupt
        plain(*given)

    monkeypatch.setattr(export_module, "_write_tile", failing)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert not (tmp_path / "V" / "index.html").exists()
    monkeypatch.undo()
    assert run(config) == ExitCode.EXCLUSIONS
    assert "unreadable" in capsys.readouterr().out
    record = json.loads((tmp_path / "V" / "view.json").read_text())
    assert "10/2_1.jpg" in record["unreadable"]
    assert run(config) == ExitCode.EXCLUSIONS, "what is grey stays known"


def test_sentences_are_those_that_lie_nearest(world: ViewWorld) -> None:
    config = config_of(
        world,
        features=f"{world.root}/F",
        stage1=f"{world.root}/S1",
        stage2=f"{world.root}/S2",
        reports=f"{world.root}/reports.csv",
    )
    slide = open_slide(world.slide)
    found = gather(config, scores_of(config), slide).nearest
    texts = sorted({one for text in SENTENCES.values() for one in split_sentences(text)})
    assert len(texts) == 5 == found.num_sentences  # one is in two reports
    side = TextSide(config.stage1)
    said = side.vectors(side.token_ids(texts, texts))
    features = FeatureStore.open(config.features).read("case1-0").features
    cosines = PatchSide(config.stage1, config.stage2).vectors(features).numpy() @ said.T
    for row in range(0, len(cosines), 7):
        best = np.argsort(-cosines[row])[:3]
        assert [found.texts[at] for at in found.index[row]] == [texts[at] for at in best]
        np.testing.assert_allclose(found.similarity[row], cosines[row][best], atol=1e-5)
    assert found.cases[found.texts.index("Solid gland with dark nucleus.")] == "case1"
    scores = read_scores(str(world.scores))
    shuffled = np.random.default_rng(0).permutation(len(scores))[:30]
    fewer = [replace(one, values=one.values[shuffled], percentile=one.percentile[shuffled])
             for one in scores.layers]  # fmt: skip
    other = replace(scores, coords_l0=scores.coords_l0[shuffled], layers=tuple(fewer))
    again = gather(config, {"other": other}, slide).nearest
    np.testing.assert_array_equal(again.index, found.index[shuffled])
    elsewhere = scores.coords_l0.copy()
    elsewhere[[0, 7]] += 1
    part = gather(config, {"part": replace(scores, coords_l0=elsewhere)}, slide).nearest
    assert np.flatnonzero((part.index == -1).all(axis=1)).tolist() == [0, 7]
    np.testing.assert_array_equal(part.index[8:], found.index[8:])
    moved = replace(scores, coords_l0=scores.coords_l0 + np.array([0, 1]))
    with pytest.raises(FeatureError, match="none of its patches"):
        gather(config, {"moved": moved}, slide)
    slide.close()


def test_patches_without_scores_come_from_the_features(world: ViewWorld) -> None:
    config = ViewConfig(slide=str(world.slide), features=f"{world.root}/F", slide_id="case1-0")
    slide = open_slide(world.slide)
    content = gather(config, {}, slide)
    np.testing.assert_array_equal(content.coords_l0, world.coords)
    assert content.layers == ()
    with pytest.raises(FeatureError, match=r"'a'.*--slide-id"):
        gather(replace(config, slide_id=""), {}, slide)
    slide.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Solid gland seen. Margin is clear! Yes.", ["Solid gland seen.", "Margin is clear!"]),
        ("A. Left breast tissue 3.5 cm wide.", ["A. Left breast tissue 3.5 cm wide."]),
        ("Approx. 3 cm of fat, e.g. Fat lobules.", ["Approx. 3 cm of fat, e.g. Fat lobules."]),
        ("one two three\nfour five six", ["one two three", "four five six"]),
        ("1 2 3 4. 5 6 7 8.", []),
        ("too short", []),
        (" ".join(["word"] * 61), []),
        ("", []),
    ],
)
def test_sentences_of_a_report(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_a_draw_of_sentences_depends_on_each_alone() -> None:
    every = {f"sentence number {n} here": f"case{n}" for n in range(50)}
    some = drawn(every, 10)
    assert len(some) == 10
    assert drawn(dict(reversed(every.items())), 10) == some
    without = {text: case for text, case in every.items() if text != min(some)}
    assert set(some) - {min(some)} < set(drawn(without, 10))
    assert drawn(every, 100) == dict(sorted(every.items()))


def test_what_does_not_fit_is_refused(world: ViewWorld, tmp_path: Path) -> None:
    other = write_slide(tmp_path / "other.svs", SlideSpec(width=600, height=400))
    with pytest.raises(FeatureError, match="It is of another slide"):
        run(config_of(world, slide=str(other)))
    scores = read_scores(str(world.scores))
    write_scores(f"{tmp_path}/moved.parquet", replace(scores, coords_l0=scores.coords_l0 + 1))
    with pytest.raises(FeatureError, match="View them apart"):
        run(config_of(world, scores=(str(world.scores), f"{tmp_path}/moved.parquet")))
    write_scores(f"{tmp_path}/nameless.parquet", replace(scores, slide_uri=""))
    with pytest.raises(SlideError, match="Give --slide"):
        run(config_of(world, scores=(f"{tmp_path}/nameless.parquet",)))
    with pytest.raises(ConfigError, match="object-store"):
        run(ViewConfig(slide="s3://bucket/a.svs"))
    for fields in (
        {"scores": ()}, {"stage1": "S1"}, {"stage1": "S1", "reports": "r"}, {"quality": 0},
        {"export_downsample": 3}, {"threads": 0}, {"port": 70_000}, {"max_sentences": 0},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            config_of(world, **fields)


def test_the_job_serves_until_it_is_told_to_stop(
    world: ViewWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked_then_ended(self: ViewServer) -> None:
        assert self.server_address[0] == HOST
        raise KeyboardInterrupt

    monkeypatch.setattr(ViewServer, "serve_forever", asked_then_ended)
    assert run(config_of(world)) == ExitCode.COMPLETE
    said = capsys.readouterr().out
    assert re.search(r"open +http://127\.0\.0\.1:\d+/[\w-]{20,}/\n", said)
    assert RESEARCH_ONLY in said
    assert run(config_of(world, dry_run=True)) == ExitCode.COMPLETE
    assert "Nothing was written" in capsys.readouterr().out
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(ConfigError, match="--port"):
            run(config_of(world, port=taken.getsockname()[1]))
