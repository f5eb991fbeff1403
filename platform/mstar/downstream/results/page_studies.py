"""Every study of the page: its curves, its other metrics, and what made it."""

import json
from collections.abc import Sequence

from mstar.downstream.results.rows import ResultRow
from mstar.downstream.results.svg import tag, text
from mstar.downstream.results.svg_curves import study_drawings
from mstar.downstream.results.text_tables import METRIC_NAMES, number, with_interval


def studies_section(rows: Sequence[ResultRow]) -> str:
    """One closed block a study, in the order of the table."""
    note = (
        "Curves of several folds or seeds are averaged point by point, with their range as a band; "
        "dotted is chance. Kaplan–Meier is cut at the median risk of the training part."
    )
    buttons = tag("button", "Open all", type="button", id="open-all", class_="ghost")
    blocks = []
    task = ""
    for row in rows:
        if row.predictions.task != task:
            task = row.predictions.task
            blocks.append(tag("h3", text(task)))
        blocks.append(_study(row))
    return tag("p", text(note), class_="quiet") + buttons + "".join(blocks)


def _study(row: ResultRow) -> str:
    p = row.predictions
    marks = "".join(tag("span", text(said), class_="mark") for said in row.marks)
    summary = tag(
        "summary",
        tag("span", text(f"{p.encoder} · {p.head}"), class_="who"),
        tag("span", text(with_interval(row)), class_="number"),
        marks,
    )
    figures = "".join(
        tag("figure", drawn, tag("figcaption", text(caption)))
        for caption, drawn in study_drawings(p)
    )
    body = tag("div", figures, class_="figures") + tag(
        "div", _metrics(row), _facts(row), class_="two"
    )
    return tag("details", summary, body, id=f"s-{row.anchor}", class_="study")


def _metrics(row: ResultRow) -> str:
    lines = []
    for name, one in row.others.items():
        interval = "–" if one.low != one.low else f"{number(one.low)} – {number(one.high)}"
        lines.append(
            tag(
                "tr",
                tag("th", text(METRIC_NAMES.get(name, name)), scope="row"),
                tag("td", number(one.value)),
                tag("td", interval),
                tag("td", number(one.seed_std)),
            )
        )
    heads = "".join(
        tag("th", name, scope="col") for name in ("Metric", "Value", "95 % interval", "Seed SD")
    )
    return tag("table", tag("thead", tag("tr", heads)), tag("tbody", *lines), class_="plain small")


def _facts(row: ResultRow) -> str:
    p, one, facts = row.predictions, row.estimate, row.predictions.facts
    classes = f"{one.classes} of {one.num_classes}: {', '.join(facts.class_names)}"
    said = (
        ("Evaluated on", f"{one.samples:,} samples of {one.patients:,} patients, part {p.part}"),
        ("Classes present", classes if one.num_classes else ""),
        ("Models", f"folds: {len(one.folds)}, seeds: {one.seeds}"),
        ("Per fold", ", ".join(map(number, one.fold_values)) if len(one.folds) > 1 else ""),
        ("Trials", f"{facts.trials:,}, chosen on validation"),
        ("Trained on", facts.trained_on),
        ("Votes with", row.cohort if row.cohort != p.task else ""),
        ("Winner", "yes" if row.winner else row.no_winner if row.rank == 1 else ""),
        ("Against the reference", row.contrast.note if row.contrast else ""),
        ("Protocol", facts.protocol + (f": {facts.warning}" if facts.warning else "")),
        ("Data", facts.data_source),
        ("Configuration", json.dumps(dict(facts.config), sort_keys=True)),
        ("Digests", ", ".join(f"{name} {d[:12]}" for name, d in sorted(facts.digests.items()))),
        ("mstar", facts.mstar_version),
    )
    items = "".join(tag("dt", text(name)) + tag("dd", text(what)) for name, what in said if what)
    return tag("dl", items)
