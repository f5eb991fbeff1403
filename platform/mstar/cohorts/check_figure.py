"""The figure of a check: which modalities the cases have, and how many cases of which cancer."""

import io
from typing import TYPE_CHECKING, Any

from mstar.cohorts.check_result import CohortCheck, Combination

if TYPE_CHECKING:
    pass

_MODALITIES = ("WSI", "report", "RNA")
_DARK, _LIGHT, _BLUE, _ORANGE = "#222222", "#d8d8d8", "#3b6fb6", "#e08a3c"
_DPI = 130


def draw(check: CohortCheck) -> bytes:
    """The figure as PNG; equal results give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # only those who draw wait for it
    from matplotlib.figure import Figure

    types = max(len(check.cancer_types), 1)
    figure = Figure(figsize=(11, max(4.2, 1.6 + 0.24 * types)), layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    _draw_overlap(halves[0], check)
    _draw_types(halves[1], check)
    cases = sum(check.overlap.values())
    title = f"{cases:,} cases, {check.num_slides:,} slides"
    figure.suptitle(title + (" (generated data)" if check.data_source == "generated" else ""))
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DPI, metadata={"Software": None})
    return sink.getvalue()


def _draw_overlap(figure: Any, check: CohortCheck) -> None:
    """A bar for each combination of modalities, over dots that say which."""
    combinations = sorted(check.overlap, key=lambda c: (-check.overlap[c], c))
    bars, dots = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    counts = [check.overlap[combination] for combination in combinations]
    drawn = bars.bar(range(len(counts)), counts, color=_BLUE, width=0.65)
    bars.bar_label(drawn, labels=[f"{count:,}" for count in counts], padding=2, fontsize=8)
    bars.set_title("cases by usable modalities", fontsize=10)
    bars.set_ylabel("cases")
    bars.margins(y=0.12)
    bars.yaxis.get_major_locator().set_params(integer=True)
    bars.tick_params(bottom=False)
    bars.spines[["top", "right"]].set_visible(False)
    for column, combination in enumerate(combinations):
        _draw_dots(dots, column, combination)
    dots.set_yticks(range(len(_MODALITIES)), _MODALITIES)
    dots.set_ylim(len(_MODALITIES) - 0.4, -0.6)
    dots.set_xlim(-0.6, max(len(counts), 1) - 0.4)
    dots.tick_params(length=0, labelbottom=False)
    dots.spines[:].set_visible(False)


def _draw_dots(axes: Any, column: int, combination: Combination) -> None:
    rows = [row for row, present in enumerate(combination) if present]
    axes.scatter([column] * 3, range(3), s=70, color=_LIGHT, zorder=1)
    axes.scatter([column] * len(rows), rows, s=70, color=_DARK, zorder=3)
    if len(rows) > 1:
        axes.plot([column, column], [rows[0], rows[-1]], color=_DARK, linewidth=2, zorder=2)


def _draw_types(figure: Any, check: CohortCheck) -> None:
    """A bar for each cancer type; held-out cases apart where there is a registry."""
    axes = figure.subplots()
    names = list(check.cancer_types)
    held = [check.cancer_types[name].held_out for name in names]
    cases = [check.cancer_types[name].cases for name in names]
    others = [total - out for total, out in zip(cases, held, strict=True)]
    rows = range(len(names))
    axes.barh(rows, others, color=_BLUE, height=0.7, label="train or pretraining only")
    if check.registry_digest:
        axes.barh(rows, held, left=others, color=_ORANGE, height=0.7, label="validation or test")
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    for row, total in enumerate(cases):
        axes.annotate(
            f"{total:,}", (total, row), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(rows, names, fontsize=8)
    axes.set_ylim(max(len(names), 4) - 0.4, -0.6)  # few types: no thicker bars
    axes.set_xlim(0, 1.12 * max(cases, default=1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("cases")
    axes.set_title("cases by cancer type", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
