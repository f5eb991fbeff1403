"""The main table of the page: sortable by every column, filtered by what its rows are."""

import math
from collections.abc import Sequence

from mstar.downstream.results.rows import GENERATED, ResultRow
from mstar.downstream.results.svg import tag, text
from mstar.downstream.results.svg_overview import Looks, interval_bar, value_range
from mstar.downstream.results.text_tables import (
    METRIC_NAMES,
    difference_text,
    number,
    p_text,
)

# key, heading, what it means (shown on pointing), whether larger values come first
COLUMNS = (
    ("task", "Task", "What is predicted", False),
    ("encoder", "Encoder", "Whose features", False),
    ("head", "Head", "What is trained on them", False),
    ("value", "Value", "The task's own metric", True),
    (
        "interval",
        "95 % interval",
        "Percentiles of a bootstrap of patients; sorts by lower end",
        True,
    ),
    ("seed", "± seeds", "Standard deviation between seeds; empty for one seed", False),
    ("rank", "Rank", "Among the rows of the task", False),
    ("difference", "vs reference", "Paired difference; stars after Holm over tasks", True),
    ("p", "p (Holm)", "Two-sided, paired, corrected over tasks", False),
    ("paper", "p_paper_compat", "The article's test: no evidence, see below", False),
    ("n", "Patients", "In the test part", True),
    ("trials", "Trials", "Configurations that competed on validation", True),
    ("marks", "Marks", "What you must know of this row", True),
)
_FILTERS = (
    ("kind", "Kind"),
    ("metric", "Metric"),
    ("encoder", "Encoder"),
    ("head", "Head"),
    ("part", "Part"),
    ("protocol", "Protocol"),
    ("source", "Data"),
)


def table_section(rows: Sequence[ResultRow], looks: Looks) -> str:
    """Filters and table."""
    axes = {
        metric: value_range([row for row in rows if row.estimate.metric == metric])
        for metric in {row.estimate.metric for row in rows}
    }
    heads = "".join(_heading(*column) for column in COLUMNS)
    body = "".join(_row(row, axes[row.estimate.metric], looks) for row in rows)
    caption = tag(
        "caption",
        "Every task × encoder × head. Select a heading to sort; a task's name leads to its curves.",
    )
    table = tag(
        "table",
        caption,
        tag("thead", tag("tr", heads, role="row"), role="rowgroup"),
        tag("tbody", body, role="rowgroup"),
        id="results",
        class_="results",
        role="table",
    )
    wrapped = tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="Results")
    return _filters(rows) + wrapped


def facets(row: ResultRow) -> dict[str, str]:
    """What a row can be filtered by."""
    p = row.predictions
    return {
        "kind": p.facts.kind,
        "metric": METRIC_NAMES.get(row.estimate.metric, row.estimate.metric),
        "encoder": p.encoder,
        "head": p.head,
        "part": p.part,
        "protocol": p.facts.protocol,
        "source": p.facts.data_source,
    }


def _filters(rows: Sequence[ResultRow]) -> str:
    search = tag(
        "label",
        text("Search"),
        '<input type="search" id="search" placeholder="task, cohort, mark …" autocomplete="off">',
    )
    selects = []
    for name, title in _FILTERS:
        values = sorted({facets(row)[name] for row in rows})
        if len(values) > 1:
            options = tag("option", "all", value="") + "".join(
                tag("option", text(value), value=value) for value in values
            )
            selects.append(tag("label", text(title), tag("select", options, data_filter=name)))
    sort = "".join(tag("option", text(title), value=key) for key, title, _, _ in COLUMNS)
    sorting = tag("label", "Sort by", tag("select", sort, id="sort"), class_="phone")
    checks = "".join(
        tag("label", f'<input type="checkbox" data-only="{key}">', text(title), class_="check")
        for key, title in (("winner", "winners"), ("stars", "stars"), ("best", "rank 1"))
    )
    count = tag("output", id="count", aria_live="polite")
    reset = tag("button", "Reset", type="button", id="reset", class_="ghost")
    return tag("div", search, *selects, sorting, checks, reset, count, class_="filters")


def _heading(key: str, title: str, meaning: str, descending: bool) -> str:
    button = tag("button", text(title), type="button", data_sort=key, title=meaning)
    first = "descending" if descending else "ascending"
    return tag(
        "th",
        button,
        scope="col",
        role="columnheader",
        class_=f"c-{key}",
        aria_sort="none",
        data_first=first,
    )


def _row(row: ResultRow, axis: tuple[float, float], looks: Looks) -> str:
    p, one, contrast = row.predictions, row.estimate, row.contrast
    protocol = p.facts.protocol != "honest"
    label = f"{METRIC_NAMES.get(one.metric, one.metric)}"
    value = tag("strong" if row.winner else "span", number(one.value))
    best = tag("span", "★ best", class_="best", title=_WON) if row.winner else ""
    ends = "" if math.isnan(one.low) else f"{number(one.low)} – {number(one.high)}"
    rank = f"{row.rank} / {row.rivals}" if row.rank else "–"
    why = row.no_winner if row.rank == 1 and not row.winner else ""
    cells = (
        _cell("task", p.task, _link(row), header=True),
        _cell("encoder", p.encoder, text(p.encoder)),
        _cell("head", p.head, text(p.head)),
        _cell("value", one.value, value + " " + tag("small", text(label)) + best),
        _cell("interval", one.low, interval_bar(row, axis, looks) + tag("small", text(ends))),
        _cell("seed", one.seed_std, text("" if one.seeds < 2 else number(one.seed_std))),
        _cell("rank", row.rank, tag("span", text(rank), title=why or None)),
        _difference(row),
        _cell("p", contrast.p_holm if contrast else None, text(_p(row))),
        _cell("paper", contrast.p_paper_compat if contrast else None, text(_paper(row))),
        _cell("n", one.patients, f"{one.patients:,}"),
        _cell("trials", p.facts.trials, f"{p.facts.trials:,}"),
        _cell("marks", "; ".join(row.marks), "".join(map(_mark, row.marks))),
    )
    words = " ".join((p.task, p.encoder, p.head, row.category, row.dataset, row.cohort, *row.marks))
    stars = bool(contrast and contrast.stars)
    return tag(
        "tr",
        *cells,
        role="row",
        data_words=words.lower(),
        data_winner="1" if row.winner else None,
        data_stars="1" if stars else None,
        data_best="1" if row.rank == 1 else None,
        class_="compat" if protocol else None,
        **{f"data_{name}": value for name, value in facets(row).items()},
    )


_WON = "Better than every other row of its task, corrected over tasks"


def _difference(row: ResultRow) -> str:
    contrast = row.contrast
    if contrast is None:
        return _cell("difference", None, tag("small", "reference"))
    one = contrast.difference
    shown = difference_text(row)
    if one is not None:
        said = f"[{number(one.low)}, {number(one.high)}], {one.method}"
        against = f"{contrast.encoder} · {contrast.head}"
        title = f"against {against}: {said}{'; ' + contrast.note if contrast.note else ''}"
        inner = tag("span", text(shown), title=title)
    else:
        inner = tag("span", "–", title=contrast.note)
    other = contrast.encoder if contrast.encoder != row.method[0] else contrast.head
    inner += " " + tag("small", text(f"vs {other}"))
    return _cell("difference", one.value if one else None, inner)


def _cell(key: str, value: object, inner: str, *, header: bool = False) -> str:
    """A cell that sorts by `data-v` and names its column on a phone."""
    sorts_by = "" if value is None or value != value else value  # NaN is not itself
    heading = next(title for name, title, _, _ in COLUMNS if name == key)
    shown = f"{sorts_by:.9g}" if isinstance(sorts_by, float) else str(sorts_by)
    return tag(
        "th" if header else "td",
        inner,
        class_=f"c-{key}",
        data_v=shown,
        data_label=heading,
        scope="row" if header else None,
        role="rowheader" if header else "cell",
    )


def _link(row: ResultRow) -> str:
    """A task's name, which may be long, breaks at its underscores only."""
    name = text(row.predictions.task).replace("_", "_<wbr>")
    return tag("a", name, href=f"#s-{row.anchor}")


def _p(row: ResultRow) -> str:
    return p_text(row.contrast.p_holm) if row.contrast else ""


def _paper(row: ResultRow) -> str:
    return p_text(row.contrast.p_paper_compat) if row.contrast else ""


def _mark(said: str) -> str:
    class_ = "mark"
    if said.startswith("leak") or said == "paper-compat":
        class_ = "mark bad"
    elif said.startswith(GENERATED):
        class_ = "mark generated"
    return tag("span", text(said), class_=class_)
