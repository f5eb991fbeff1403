"""The picture of learning curves: a metric against the number of slides a class."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

COLOURS = ("#2f6db3", "#c8553d", "#3f8f5b", "#7b5ea7", "#a8792a")
TITLES = {"macro_auc": "Macro AUC", "balanced_accuracy": "Balanced accuracy"}


def curve_figure(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], *, title: str, generated: bool
) -> Figure:
    """One panel a metric; a line a method, with its interval over patients and its draws' spread.

    Args:
        curves: method → rows of `curve.csv`.
        title: of the picture.
        generated: whether to say that the data are generated.
    """
    metrics = list(dict.fromkeys(row["metric"] for rows in curves.values() for row in rows))
    figure = Figure(figsize=(5.2 * len(metrics), 4.0), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        every = {
            name: [row for row in rows if row["metric"] == metric] for name, rows in curves.items()
        }
        for at, (name, rows) in enumerate(every.items()):
            _line(axes, rows, name, COLOURS[at % len(COLOURS)], shift=at - (len(every) - 1) / 2)
        ks = sorted({row["k"] for rows in every.values() for row in rows})
        lowest = min(row["draws_low"] for rows in every.values() for row in rows)
        axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([str(k) for k in ks])
        axes.set_xlabel("slides a class")
        axes.set_ylabel(TITLES.get(metric, metric))
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    said = " (generated data)" if generated else ""
    figure.suptitle(f"{title}{said}", fontsize=10)
    return figure


def _line(
    axes: Any, rows: Sequence[Mapping[str, Any]], name: str, colour: str, *, shift: float
) -> None:
    """Mean over draws with its interval as bars, the spread of the draws as a band."""
    ks = [row["k"] * 2 ** (0.06 * shift) for row in rows]
    values = [row["value"] for row in rows]
    draws = rows[0]["draws"] if rows else 0
    axes.fill_between(
        ks,
        [row["draws_low"] for row in rows],
        [row["draws_high"] for row in rows],
        color=colour,
        alpha=0.13,
        linewidth=0,
    )
    bars = [
        [max(0.0, row["value"] - row["low"]) for row in rows],
        [max(0.0, row["high"] - row["value"]) for row in rows],
    ]
    axes.errorbar(
        ks, values, yerr=bars, color=colour, marker="o", markersize=4, linewidth=1.6, capsize=3,
        label=f"{name}, {draws} draws",
    )  # fmt: skip
