"""index.html: one file that needs no network, no server and no other file.

Order of the page: what can be claimed, the table, methods over tasks, intervals, every study's
curves, what is missing, how to read it. Styles and script are inline; a content security policy
forbids the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mstar import __version__
from mstar.data.tasks import Task
from mstar.downstream.results.across import Average, MethodPair, RankedMethods, method_name
from mstar.downstream.results.learning import learning_section
from mstar.downstream.results.page_claims import claims_section, methods_section
from mstar.downstream.results.page_reading import reading_section
from mstar.downstream.results.page_studies import studies_section
from mstar.downstream.results.page_table import table_section
from mstar.downstream.results.rows import GENERATED, ResultRow
from mstar.downstream.results.sources import LeftOut
from mstar.downstream.results.svg import tag, text
from mstar.downstream.results.svg_overview import Looks, forest, legend, looks_of
from mstar.downstream.results.text_tables import METRIC_NAMES, any_generated
from mstar.schema import RESEARCH_ONLY

_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageContent:
    """What the page shows."""

    title: str
    rows: Sequence[ResultRow]
    averages: Sequence[Average]
    ranked: Sequence[RankedMethods]
    pairs: Sequence[MethodPair]
    left_out: Sequence[LeftOut]
    tasks: Mapping[str, Task]
    resamples: int
    difference_resamples: int
    downloads: Sequence[str]  # names of files beside the page


def page(content: PageContent) -> str:
    """The whole page; equal content gives equal bytes."""
    looks = looks_of(sorted({row.method for row in content.rows}))
    sections = (
        ("claims", "What can be claimed", claims_section(content.rows, content.ranked)),
        ("table", "Table", legend(looks) + table_section(content.rows, looks)),
        (
            "methods",
            "Methods over tasks",
            methods_section(content.averages, content.ranked, content.pairs, looks),
        ),
        ("forest", "Intervals", _forests(content.rows, looks)),
        ("learning", "Learning curves", learning_section(content.rows)),
        ("studies", "Every study", studies_section(content.rows)),
        ("missing", "Not in the table", _left_out(content.left_out, content.tasks)),
        ("reading", "How to read this", reading_section(content)),
    )
    shown = [(name, title, body) for name, title, body in sections if body]
    links = "".join(tag("a", text(title), href=f"#{name}") for name, title, _ in shown)
    body = (
        tag("a", "Skip to the table", class_="skip", href="#table"),
        _banner(content.rows),
        _header(content),
        tag("nav", links, aria_label="Sections"),
        tag("main", *(_section(name, title, inner) for name, title, inner in shown)),
        tag(
            "footer", text(f"Made by mstar {__version__} from stored predictions; {RESEARCH_ONLY}.")
        ),
        tag("script", (_HERE / "page.js").read_text()),
    )
    return "<!doctype html>\n" + tag("html", _head(content.title), tag("body", *body), lang="en")


def _head(title: str) -> str:
    return tag(
        "head",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<meta name="referrer" content="no-referrer">',
        tag("title", text(title)),
        tag("style", (_HERE / "page.css").read_text()),
    )


def _banner(rows: Sequence[ResultRow]) -> str:
    if not any_generated(rows):
        return ""
    every = all(row.predictions.facts.data_source == GENERATED for row in rows)
    what = "All" if every else "Rows marked so"
    said = (
        f"Generated data. {what} of these numbers come from an artificial cohort: they show that "
    )
    verb = "the pipeline works, and say nothing of real patients."
    said = said.replace("All of these numbers come", "All numbers come").replace(
        "Rows marked so of these numbers come", "Rows marked so come"
    )
    return tag("div", text(said + verb), class_="banner", role="note")


def _header(content: PageContent) -> str:
    rows = content.rows
    tasks = {row.predictions.task for row in rows}
    left = {one.task for one in content.left_out}
    patients = {patient for row in rows for patient in row.predictions.patient}
    tiles = (
        (len(tasks), "tasks", f"{len(set(row.cohort for row in rows))} independent cohorts"),
        (len({row.method[0] for row in rows}), "encoders", "whose features"),
        (len({row.method[1] for row in rows}), "heads", "trained on them"),
        (len(rows), "studies", f"{sum(row.predictions.facts.trials for row in rows):,} trials"),
        (len(patients), "test patients", "distinct ids"),
        (len(left - tasks), "tasks left out", _left_in_part(len(left & tasks))),
    )
    shown = "".join(
        tag(
            "li",
            tag("strong", f"{number:,}"),
            tag("span", text(name)),
            tag("small", text(more)) if more else "",
        )
        for number, name, more in tiles
    )
    headline = real_rows(rows, content.tasks)
    button = tag("button", "Light / dark", type="button", id="theme", class_="ghost")
    files = ", ".join(tag("a", text(name), href=name) for name in content.downloads)
    beside = tag("p", "Beside this page: ", files, class_="quiet") if files else ""
    return tag(
        "header",
        tag("div", tag("h1", text(content.title)), button, class_="top"),
        tag("p", text(f"{headline}."), class_="headline") if headline else "",
        tag("ul", shown, class_="tiles"),
        beside,
    )


def real_rows(rows: Sequence[ResultRow], tasks: Mapping[str, Task]) -> str:
    """How many tasks of the list have a row, and how many of those rest on real data."""
    listed = {name for name, task in tasks.items() if task.number is not None}
    shown = {row.predictions.task for row in rows} & listed
    real = {
        row.predictions.task for row in rows if row.predictions.facts.data_source != GENERATED
    } & listed
    if not shown:
        return ""
    said = f"{len(shown)} of the {len(listed)} tasks of the list have a result; "
    return said + f"{len(real) or 'none'} of them rest{'s' if len(real) == 1 else ''} on real data"


def _left_in_part(tasks: int) -> str:
    return f"{tasks} more in part; why: below" if tasks else "with reasons below"


def _section(name: str, title: str, inner: str) -> str:
    heading = tag("h2", text(title), id=f"{name}-title")
    return tag("section", heading, inner, id=name, aria_labelledby=f"{name}-title")


def _forests(rows: Sequence[ResultRow], looks: Looks) -> str:
    metrics = list(dict.fromkeys(row.estimate.metric for row in rows))
    parts = []
    for metric in metrics:
        own = [row for row in rows if row.estimate.metric == metric]
        parts.append(tag("h3", text(METRIC_NAMES.get(metric, metric))))
        parts.append(tag("div", forest(own, looks), class_="scroll", tabindex=0))
    return "".join(parts)


def _left_out(left_out: Sequence[LeftOut], tasks: Mapping[str, Task]) -> str:
    if not left_out:
        return ""
    heads = "".join(tag("th", text(name), scope="col") for name in ("Task", "Study", "Reason"))
    rows = "".join(
        tag(
            "tr",
            tag("th", text(one.task), scope="row"),
            tag("td", text(" · ".join(n for n in (one.encoder, one.head) if n) or "all")),
            tag("td", text(one.reason)),
        )
        for one in left_out
    )
    count = len({one.task for one in left_out})
    are = "1 task is" if count == 1 else f"{count} tasks are"
    said = f"{are} left out, whole or in part; none was shrunk to fit."
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="plain")
    return tag("p", text(said)) + tag("div", table, class_="scroll", tabindex=0)


__all__ = ["PageContent", "method_name", "page"]
