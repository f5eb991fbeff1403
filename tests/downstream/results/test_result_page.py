"""The page needs no network, sorts by numbers, escapes text, and survives what is degenerate."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mstar.downstream.predictions import Predictions
from mstar.downstream.results.config import ResultsConfig
from mstar.downstream.results.job import run
from mstar.downstream.results.svg import tag, ticks
from mstar.schema import RESEARCH_ONLY
from support.prediction_files import classification, survival, write_study

FEW: dict[str, Any] = {"resamples": 100, "difference_resamples": 100, "workers": 1}
VOID = {"meta", "input", "wbr", "link", "img", "br"}
LOADING = {"src", "srcset", "poster", "data", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """Elements with their attributes, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]


def made(tmp_path: Path, studies: list[Predictions], left_out: str = "", **options: Any) -> str:
    for study in studies:
        write_study(tmp_path / "run", study)
    if left_out:
        (tmp_path / "run" / "left_out.csv").write_text(left_out)
    config = ResultsConfig(
        runs=(str(tmp_path / "run"),), out=str(tmp_path / "out"), **FEW, **options
    )
    assert run(config) == 0
    return (tmp_path / "out" / "index.html").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with every kind of row."""
    studies = []
    for encoder, signal in (("initial", 0.5), ("stage2", 2.5)):
        studies += [
            classification("t_binary", encoder, signal=signal, seeds=(1, 2), cases=90),
            classification("t_few", encoder, signal=signal, cases=20),
            classification("t_leak", encoder, signal=signal, leaked_patients=3),
            classification("t_compat", encoder, signal=signal, protocol="paper-compat"),
            classification("t_four", encoder, signal=signal, classes=("a", "b", "c", "d")),
            survival("t_os", encoder, signal=signal),
        ]
    left_out = 'task,reason\nt_missing,"<script>alert(1)</script> & no features"\n'
    return made(tmp_path_factory.mktemp("page"), studies, left_out, title="A <b>title</b> & more")


def test_nothing_is_loaded_from_anywhere(whole: str) -> None:
    page = Page(whole)
    assert "http://" not in whole
    assert "https://" not in whole
    assert not page.all("link") + page.all("img") + page.all("iframe") + page.all("object")
    assert "url(" not in whole
    assert "@import" not in whole
    for _, attributes in page.elements:
        assert not LOADING & attributes.keys()
    links = [str(a["href"]) for a in page.all("a")]
    assert {link for link in links if not link.startswith("#")} == {
        f"results.{ending}" for ending in ("csv", "parquet", "tex", "md")
    }
    policy = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert str(policy[0]).startswith("default-src 'none'")


def test_every_link_within_the_page_has_its_target(whole: str) -> None:
    page = Page(whole)
    ids = [str(a["id"]) for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    inside = {str(a["href"])[1:] for a in page.all("a") if str(a["href"]).startswith("#")}
    assert inside <= set(ids)


def test_columns_sort_by_numbers(whole: str) -> None:
    page = Page(whole)
    headings = [a for a in page.all("th") if a.get("role") == "columnheader"]
    buttons = [a["data-sort"] for a in page.all("button") if "data-sort" in a]
    assert len(headings) == len(buttons)
    assert {a["aria-sort"] for a in headings} == {"none"}
    values = [a["data-v"] for a in page.all("td") if a.get("class") == "c-value"]
    assert len(values) == 12
    assert all(0 < float(str(value)) <= 1 for value in values)
    rows = [a for a in page.all("tr") if "data-words" in a]
    assert {a["data-encoder"] for a in rows} == {"initial", "stage2"}
    assert len(rows) == len(values)


def test_text_is_escaped(whole: str) -> None:
    assert "<script>alert(1)" not in whole
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; no features" in whole
    assert "A &lt;b&gt;title&lt;/b&gt; &amp; more" in whole


def test_drawings_are_named_for_those_who_hear_the_page(whole: str) -> None:
    page = Page(whole)
    images = [a for a in page.all("svg") if a.get("role") == "img"]
    hidden = [a for a in page.all("svg") if a.get("aria-hidden") == "true"]
    assert len(images) + len(hidden) == len(page.all("svg"))
    assert len(re.findall(r'role="img"[^>]*><title>[^<]+', whole)) == len(images)
    assert {"ROC", "confusion", "calibration", "Kaplan–Meier", "precision–recall"} <= set(
        re.findall(r"<figcaption>([^<]+)", whole)
    )


def test_the_page_says_what_it_must(whole: str) -> None:
    assert RESEARCH_ONLY in whole
    for said in (
        "leak: 3 patients",
        "paper-compat numbers read high",
        "rejects a true null about half of the time",
        "20 test cases",
        "t_missing",
    ):
        assert said in whole
    assert "Generated data" not in whole
    assert 'data-theme="dark"' in whole
    assert "prefers-color-scheme: dark" in whole
    assert "width=device-width" in whole


def test_generated_data_are_marked_on_the_page_and_in_every_table(tmp_path: Path) -> None:
    text = made(tmp_path, [classification("t", data_source="generated")])
    assert re.search(r'class="banner"[^>]*>Generated data', text)
    out = tmp_path / "out"
    for name in ("results.md", "results.tex"):
        assert "GENERATED DATA" in (out / name).read_text()
    for name in ("results", "metrics", "folds"):
        assert "data_source" in (out / f"{name}.csv").read_text().splitlines()[0]
        assert "generated" in (out / f"{name}.csv").read_text()


@pytest.mark.parametrize(
    "study",
    [
        classification("t", labels=[1] * 40),
        classification("t", classes=("a", "b", "c"), labels=[0, 2] * 20),
        classification("t", labels=[0, 1]),
        survival("t", censored=1.0),
        survival("t", cases=3),
        survival("t", median_risk={}),
    ],
    ids=["one class", "a class absent", "two cases", "all censored", "three cases", "no median"],
)
def test_degenerate_predictions_have_a_row_and_a_page(tmp_path: Path, study: Predictions) -> None:
    Page(made(tmp_path, [study]))
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| t | initial | abmil |" in text


def test_a_page_of_one_encoder_claims_nothing(tmp_path: Path) -> None:
    text = made(tmp_path, [classification("t"), classification("u")])
    assert "No task has a winner" in text
    assert "Average ranks" not in text


def test_equal_predictions_give_equal_bytes(tmp_path: Path) -> None:
    study = classification("t")
    files = [made(tmp_path / "a", [study]), made(tmp_path / "b", [study])]
    assert files[0].replace("/a/run", "") == files[1].replace("/b/run", "")


def test_markdown_and_latex_escape_their_own_signs(tmp_path: Path) -> None:
    made(
        tmp_path, [classification("t_1", classes=("a|b", "c_d"))], "task,reason\nu,50 % | _x_ & y\n"
    )
    markdown = (tmp_path / "out" / "results.md").read_text()
    latex = (tmp_path / "out" / "results.tex").read_text()
    assert "50 % \\| _x_ & y" in markdown
    assert r"50 \% | \_x\_ \& y" in latex
    assert r"t\_1 & initial" in latex
    widths = {
        line.count("|") - line.count("\\|") for line in markdown.splitlines() if "|" in line[:1]
    }
    assert len(widths) == 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.43, 0.91), (0.0, 187.0), (0.5, 0.5)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    places = ticks(low, high)
    assert len(places) <= 6
    assert all(low - 1e-6 <= place <= high + 1e-6 for place in places)


def test_attributes_are_escaped() -> None:
    assert tag("p", "x", title='a"b<c') == '<p title="a&quot;b&lt;c">x</p>'
