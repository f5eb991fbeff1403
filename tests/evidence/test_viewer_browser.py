"""The viewer in a headless Chromium: from a disk and from the server, by mouse and by keyboard."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from mstar.evidence.palette import palette
from mstar.evidence.scores import read_scores
from mstar.evidence.viewer.config import ViewConfig
from mstar.evidence.viewer.gather import gather, scores_of
from mstar.evidence.viewer.job import run
from mstar.evidence.viewer.page import page_files
from mstar.evidence.viewer.serve import ViewServer
from mstar.evidence.viewer.tiles import TileMaker
from mstar.schema import RESEARCH_ONLY
from mstar.slides.reader import open_slide
from mstar.training.exit_codes import ExitCode
from support.chromium import Page, Pipe, chromium, find_chromium
from support.view_world import SIDE, ViewWorld, patch_colour, write_texts, write_view_world

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(
    PROGRAM is None,
    reason="no Chromium on the PATH, nor Playwright's or Puppeteer's; name one in MSTAR_CHROMIUM",
)
LOADED = (
    "!!window.mstarView && mstarView.viewer.world.getItemCount() === 1"
    " && mstarView.viewer.world.getItemAt(0).getFullyLoaded()"
)
STILL = (
    "(() => { const v = mstarView.viewer.viewport, [a, b] = [v.getBounds(true), v.getBounds()];"
    " return Math.abs(a.x - b.x) + Math.abs(a.y - b.y) + Math.abs(a.width - b.width) < 1e-9; })()"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ViewWorld:
    """A slide with scores and sentences, and its exported folder V."""
    made = write_view_world(tmp_path_factory.mktemp("view"))
    write_texts(made)
    assert run(config_of(made, str(made.root / "V"))) == ExitCode.COMPLETE
    return made


def config_of(world: ViewWorld, export: str = "") -> ViewConfig:
    """The job with all there is."""
    return ViewConfig(
        scores=(str(world.scores),),
        features=f"{world.root}/F",
        stage1=f"{world.root}/S1",
        stage2=f"{world.root}/S2",
        reports=f"{world.root}/reports.csv",
        export=export,
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    """One browser for all tests."""
    assert PROGRAM is not None
    with chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture
def page(world: ViewWorld, browser: Pipe) -> Iterator[Page]:
    """The folder, opened from the disk."""
    made = opened(browser, (world.root / "V" / "index.html").as_uri())
    yield made
    assert made.problems == []
    outside = [url for url in made.requests if not url.startswith((world.root.as_uri(), "data:"))]
    assert outside == [], "nothing but its own files"


def opened(browser: Pipe, url: str, *, dense: float = 1) -> Page:
    """A page with the slide on it, at rest."""
    page = browser.page()
    still = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.call("Emulation.setEmulatedMedia", features=still)
    page.open(url, dense=dense)
    page.wait(LOADED)
    return page


def at(
    page: Page, patch: int, world: ViewWorld, *, right: float = 0.5, down: float = 0.5
) -> tuple[float, float]:
    """Where a point of a patch is on the page, by OpenSeadragon's own transform.

    right, down: from its corner, in sides; by default its middle.
    """
    x, y = (world.coords[patch] + SIDE * np.array([right, down])).tolist()
    place = page.run(
        "(() => { const box = mstarView.viewer.element.getBoundingClientRect();"
        " const p = mstarView.viewer.world.getItemAt(0).imageToViewerElementCoordinates("
        f"new OpenSeadragon.Point({x}, {y})); return [box.x + p.x, box.y + p.y]; }})()"
    )
    return place[0], place[1]


def canvas_colour(page: Page, place: tuple[float, float], dense: float = 1) -> list[int]:
    """The overlay's own pixel (red, green, blue, alpha) at a place of the page."""
    found: list[int] = page.run(
        "(() => { const c = document.querySelector('canvas.scores'), b = c.getBoundingClientRect();"
        " const readable = {willReadFrequently: true};"
        " const one = document.createElement('canvas').getContext('2d', readable);"
        f" one.drawImage(c, Math.floor(({place[0]} - b.x) * {dense}),"
        f" Math.floor(({place[1]} - b.y) * {dense}), 1, 1, 0, 0, 1, 1);"
        " return [...one.getImageData(0, 0, 1, 1).data]; })()"
    )
    return found


def expected_colour(page: Page, share: float) -> list[int]:
    """Of a patch whose score is so far from the lowest to the highest."""
    shades = palette()
    bins = page.run("mstarView.overlay.ramp.length")
    place = min(bins - 1, int(share * bins))
    red, green, blue = shades[round(place * (len(shades) - 1) / (bins - 1))].tolist()
    return [red, green, blue, 255]


def slider(page: Page, name: str, value: float) -> None:
    """Moves a slider as a user does."""
    page.run(
        f"(() => {{ const one = document.getElementById('{name}'); one.value = {value};"
        " one.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def text(page: Page, name: str) -> str:
    """What an element says."""
    return str(page.run(f"document.getElementById('{name}').textContent"))


def test_it_loads_from_a_disk_with_the_slide_in_its_place(page: Page, world: ViewWorld) -> None:
    assert RESEARCH_ONLY[1:] in page.run("document.querySelector('.banner').innerText")
    slider(page, "opacity", 0)
    seen = page.screenshot().astype(int)
    for patch in (0, 7, 19, 33):
        x, y = at(page, patch, world)
        assert np.abs(seen[round(y), round(x)] - patch_colour(patch)).max() < 12, patch
    assert page.run("mstarView.viewer.drawer.getType()") == "canvas"
    loaded = {url for url in page.requests if url.endswith(".jpg")}
    assert len(loaded) > 5


def test_the_overlay_moves_with_the_slide(page: Page, world: ViewWorld) -> None:
    percentile = read_scores(str(world.scores)).layers[0].percentile

    def check() -> tuple[float, float]:
        page.wait(STILL)
        for patch in (10, 11, 19):
            place = at(page, patch, world)
            assert canvas_colour(page, place) == expected_colour(page, percentile[patch] / 100)
        return at(page, 19, world)

    first = check()
    beside = (first[0] - 1.2 * (first[0] - at(page, 16, world)[0]) * 4 / 3, first[1])
    assert canvas_colour(page, beside) == [0, 0, 0, 0], "nothing where no patch is"
    page.drag(*first, -60, 45)
    second = check()
    assert np.hypot(second[0] - first[0] + 60, second[1] - first[1] - 45) < 3
    page.mouse("mouseWheel", *second, deltaX=0, deltaY=-240)
    third = check()
    wide = abs(at(page, 11, world)[0] - at(page, 10, world)[0])
    assert wide > 110, "zoomed in: 95 before"
    assert np.hypot(third[0] - second[0], third[1] - second[1]) < 3, "the wheel's place stays"
    page.call("Emulation.setDeviceMetricsOverride", width=900, height=700, deviceScaleFactor=1,
              mobile=False)  # fmt: skip
    page.wait("mstarView.viewer.container.clientWidth < 700")
    page.wait("document.querySelector('canvas.scores').width < 700")
    check()


def test_a_click_shows_that_patch(page: Page, world: ViewWorld) -> None:
    layers = read_scores(str(world.scores)).layers
    for patch in (13, 38, 5):
        page.click(*at(page, patch, world))
        page.wait(f"mstarView.overlay.chosen === {patch}")
        page.wait("(async () => await mstarView.drawn)()")
        x, y = world.coords[patch].tolist()
        said = text(page, "patch-said")
        assert f"Patch {patch}, x {x:,}, y {y:,}" in said
        percentile = float(said.partition("percentile ")[2].partition(";")[0])
        assert percentile == pytest.approx(layers[0].percentile[patch], abs=0.051)
        rows = page.run("[...document.querySelectorAll('#patch-scores tr')].map(r => r.innerText)")
        assert [row.split("\t")[0] for row in rows] == ["attention:yes", "gain"]
        shown = [float(row.split("\t")[1]) for row in rows]
        np.testing.assert_allclose(shown, [one.values[patch] for one in layers], rtol=6e-3)
        box = page.run(
            "(() => { const b = document.getElementById('patch-picture').getBoundingClientRect();"
            " return [b.x, b.y, b.width, b.height]; })()"
        )
        seen = page.screenshot().astype(int)
        left, top, width, height = (round(value) for value in box)
        picture = seen[top : top + height, left : left + width]
        inner = picture[height // 5 : -height // 5, width // 5 : -width // 5]
        assert np.abs(inner - patch_colour(patch)).max() < 12
        middle = height // 2  # the patch whole: its frame is at its border, on all sides
        for y, x in ((middle, 4), (middle, -5), (4, middle), (-5, middle)):
            assert np.abs(picture[y, x] - patch_colour(patch) // 2).max() < 14, (patch, y, x)
    page.click(*at(page, 13, world))
    page.wait("mstarView.overlay.chosen === 13")
    first, last = world.coords.argmin(0), world.coords.argmax(0)
    for place in (  # beside all patches, on each side: the choice stays
        at(page, int(first[0]), world, right=-0.2),
        at(page, int(first[1]), world, down=-0.2),
        at(page, int(last[0]), world, right=1.2),
        at(page, int(last[1]), world, down=1.2),
    ):
        page.click(*place)
        assert page.run("mstarView.overlay.chosen") == 13


def test_sentences_stand_beside_the_patch_and_say_what_they_are(
    page: Page, world: ViewWorld
) -> None:
    config = config_of(world)
    slide = open_slide(world.slide)
    nearest = gather(config, scores_of(config), slide).nearest
    slide.close()
    assert nearest is not None
    assert text(page, "sentence-note").startswith("Nearest neighbours in the space of texts, not a")
    page.click(*at(page, 21, world))
    page.wait("mstarView.overlay.chosen === 21")
    said = page.run("[...document.querySelectorAll('#sentences li')].map(l => l.firstChild.data)")
    assert said == [nearest.texts[place] for place in nearest.index[21]]


def test_opacity_and_threshold(page: Page, world: ViewWorld) -> None:
    low, high = at(page, 3, world), at(page, 36, world)
    slider(page, "opacity", 100)
    shown = page.screenshot()[round(high[1]), round(high[0])].astype(int)
    assert np.abs(shown - canvas_colour(page, high)[:3]).max() <= 2
    slider(page, "opacity", 50)
    half = page.screenshot()[round(high[1]), round(high[0])].astype(int)
    mixed = (np.array(canvas_colour(page, high)[:3]) + patch_colour(36)) / 2
    assert np.abs(half - mixed).max() < 10
    slider(page, "threshold", 500)  # half of the way: the median
    assert text(page, "shown") == "20 of 40 patches shown"
    assert canvas_colour(page, low) == [0, 0, 0, 0]
    assert canvas_colour(page, high)[3] == 255
    page.run("document.querySelector('input[value=raw]').click()")
    assert text(page, "shown") == "40 of 40 patches shown"
    values = world.values[0]
    slider(page, "threshold", 750)
    cut = values.min() + 0.75 * (values.max() - values.min())
    assert text(page, "shown") == f"{int((values >= cut).sum())} of 40 patches shown"
    assert f"{cut:.3g} and above" == text(page, "threshold-text")
    page.run(
        "(() => { const one = document.getElementById('layer'); one.value = 1;"
        " one.dispatchEvent(new Event('change')); })()"
    )
    share = (world.values[1] - world.values[1].min()) / np.ptp(world.values[1])
    assert canvas_colour(page, low) == expected_colour(page, float(share[3]))


def test_by_keyboard_alone(page: Page, world: ViewWorld) -> None:
    best = np.argsort(-world.values[0], kind="stable")
    for rank in (0, 1, 2):
        page.key("n")
        page.wait(f"mstarView.overlay.chosen === {best[rank]}")
    page.key("p")
    page.wait(f"mstarView.overlay.chosen === {best[1]}")
    page.wait(STILL)
    box = page.run("mstarView.viewer.element.getBoundingClientRect().toJSON()")
    x, y = at(page, int(best[1]), world)
    assert box["left"] < x < box["right"], "the slide goes to the patch"
    assert box["top"] < y < box["bottom"]
    page.key("o")
    assert page.run("document.querySelector('canvas.scores').style.opacity") == "0"
    page.key("o")
    page.run("document.querySelector('#slide .openseadragon-canvas').focus()")
    for key in "rf":  # OpenSeadragon's own keys for turning and flipping
        page.key(key)
    assert page.run("mstarView.viewer.viewport.getRotation()") == 0
    assert page.run("mstarView.viewer.viewport.getFlip()") is False
    order = page.run(
        "[...document.querySelectorAll('a, button, select, input, summary, [tabindex]')]"
        ".filter(one => one.offsetParent && !one.disabled && one.tabIndex >= 0).map(one => one.id)"
    )
    wanted = ["zoom-in", "zoom-out", "home", "theme", "layer", "threshold", "opacity", "next"]
    assert [one for one in order if one in wanted] == wanted
    unnamed = page.run(
        "[...document.querySelectorAll('button, select, input, canvas[role]')]"
        ".filter(o => !(o.innerText || o.ariaLabel || (o.labels && o.labels.length)))"
        ".map(o => o.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page: Page, scheme: str) -> None:
    """At least 4.5 : 1, the contrast that WCAG 2.2 (AA) asks for."""
    page.run(f"document.documentElement.dataset.theme = '{scheme}'")
    page.key("n")
    found = page.run(
        """(() => {
          const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
          const ground = (one) => { for (; one; one = one.parentElement) {
            const c = numbers(getComputedStyle(one).backgroundColor); if (c[3] !== 0) return c; } };
          const light = (rgb) => rgb.slice(0, 3).map(v => v / 255)
            .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
          return [...document.querySelectorAll('body *')].filter(one => one.offsetParent
              && [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && !one.disabled)
            .map(one => { const [a, b] = [light(numbers(getComputedStyle(one).color)),
              light(ground(one) || [255, 255, 255])];
              return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), one.id || one.tagName]; });
        })()"""
    )
    assert len(found) > 25
    assert min(found)[0] >= 4.5, min(found)


def test_served_it_is_the_same_page_also_on_a_dense_screen(world: ViewWorld, browser: Pipe) -> None:
    config = config_of(world)
    slide = open_slide(world.slide)
    content = gather(config, scores_of(config), slide)
    tiles = TileMaker(slide, content.zoom)
    with ViewServer(page_files(content), tiles) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        page = opened(browser, server.url, dense=2)
        place = at(page, 22, world)
        percentile = content.layers[0].scores.percentile[22]
        assert canvas_colour(page, place, 2) == expected_colour(page, percentile / 100)
        page.click(*place)
        page.wait("mstarView.overlay.chosen === 22")
        page.wait("(async () => await mstarView.drawn)()")
        middle = page.run(
            "[...document.getElementById('patch-picture').getContext('2d')"
            ".getImageData(160, 160, 1, 1).data].slice(0, 3)"
        )
        assert np.abs(np.array(middle) - patch_colour(22)).max() < 12
        assert page.problems == []
        outside = [url for url in page.requests if not url.startswith((server.url, "data:"))]
        assert outside == []
        server.shutdown()
        thread.join()
    tiles.close()
