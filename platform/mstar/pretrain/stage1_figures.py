"""Pictures of a stage-1 run: its curves, and who finds whom among the held-out cases."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mstar.losses.cases import MODALITIES
from mstar.losses.contrastive import PAIRS
from mstar.losses.recall import Retrieval, similarity
from mstar.pretrain.stage1_validate import CaseVectors, Validation
from mstar.pretrain.stage1_watch import COLLAPSE_UNIFORMITY

NAMES = {"wsi": "slide", "text": "report", "gene": "RNA"}
COLORS = {"wsi": "#0072b2", "text": "#d55e00", "gene": "#009e73"}
PAIR_COLORS = {"wsi_text": "#0072b2", "wsi_gene": "#009e73", "text_gene": "#d55e00"}
GREY = "#777777"

History = Sequence[Mapping[str, float]]


def curves(history: History, path: Path) -> None:
    """Loss parts, held-out recall beside its yardsticks, uniformity and temperature by step."""
    figure = Figure(figsize=(17, 7.4), layout="constrained")
    draw = (_loss, _recall, _within, _zero_shot, _uniformity, _scale)
    for axes, fill in zip(figure.subplots(2, 3).flat, draw, strict=True):
        fill(axes, history)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", color=GREY, transform=axes.transAxes)
    figure.savefig(path, dpi=110)


def _loss(axes: Axes, history: History) -> None:
    for name, (first, second) in PAIRS.items():
        label = f"{NAMES[first]} – {NAMES[second]}"
        _line(axes, history, f"loss.{name}", label, color=PAIR_COLORS[name])
    _line(axes, history, "loss.triplet", "triplet", color="#cc79a7")
    most = max((row.get(f"pairs.{name}", 0) for row in history for name in PAIRS), default=0)
    if most > 1:
        axes.axhline(math.log(most), color=GREY, lw=1, ls=":", label=f"log N, N = {most:.0f}")
    axes.set_ylim(bottom=0)
    axes.set_title("loss parts of the training batches", loc="left", fontsize=10)


def _recall(axes: Axes, history: History) -> None:
    for first, second in combinations(MODALITIES, 2):
        for name, dashes in ((f"{first}_to_{second}", "-"), (f"{second}_to_{first}", "--")):
            color = PAIR_COLORS[f"{first}_{second}"]
            _line(axes, history, f"val.recall_at_10.{name}", _said(name), color=color, ls=dashes)
    ceilings = {name for row in history for name in row if "type_ceiling_at_10." in name}
    _yardstick(axes, history, sorted(ceilings), "knowing only the type")
    axes.set_ylim(0, 1.02)
    axes.set_title("held-out recall @10, whole gallery", loc="left", fontsize=10)


def _within(axes: Axes, history: History) -> None:
    for name, color in (("wsi_to_text", COLORS["text"]), ("wsi_to_gene", COLORS["gene"])):
        rows = [row for row in history if f"val.within_recall_at_5.{name}" in row]
        _line(axes, rows, f"val.within_recall_at_5.{name}", _said(name), color=color)
        low, high = (
            [row[f"val.within_recall_{end}_at_5.{name}"] for row in rows] for end in ("low", "high")
        )
        axes.fill_between([row["step"] for row in rows], low, high, color=color, alpha=0.13, lw=0)
        label = f"chance, {_said(name)}"
        _line(axes, rows, f"val.within_chance_at_5.{name}", label, color=color, ls=":")
    axes.set_ylim(0, 1.02)
    axes.set_title("held-out recall @5 within the cancer type, 95 %", loc="left", fontsize=10)


def _zero_shot(axes: Axes, history: History) -> None:
    _line(axes, history, "val.zero_shot_balanced_accuracy", "balanced accuracy", color="#0072b2")
    _line(axes, history, "val.zero_shot_chance", "chance", color=GREY, ls=":")
    axes.set_ylim(0, 1.02)
    axes.set_title("held-out cancer type, zero-shot", loc="left", fontsize=10)


def _uniformity(axes: Axes, history: History) -> None:
    for name, color in COLORS.items():
        _line(axes, history, f"uniformity.{name}", NAMES[name], color=color, alpha=0.6)
        label = f"{NAMES[name]}, held out"
        _line(axes, history, f"val.uniformity.{name}", label, color=color, ls="--")
    axes.axhline(COLLAPSE_UNIFORMITY, color=GREY, lw=1, ls=":", label="collapsed above this")
    axes.set_title("uniformity of the embeddings, lower is wider", loc="left", fontsize=10)


def _scale(axes: Axes, history: History) -> None:
    _line(axes, history, "logit_scale", "logit scale", color="#0072b2")
    axes.set_title("temperature: logit scale, at most 100", loc="left", fontsize=10)


def _line(axes: Axes, history: History, name: str, label: str, **look: object) -> None:
    points = [(row["step"], row[name]) for row in history if name in row]
    if points:
        marker = "o" if len(points) < 20 else None
        axes.plot(*zip(*points, strict=True), label=label, lw=1.3, ms=2.5, marker=marker, **look)  # type: ignore[arg-type]


def _yardstick(axes: Axes, history: History, names: Sequence[str], label: str) -> None:
    """The mean of several metrics."""
    rows = [row for row in history if names and names[0] in row]
    means = [{"step": row["step"], label: float(np.mean([row[n] for n in names]))} for row in rows]
    _line(axes, means, label, label, color=GREY, ls=":")


def _said(direction: str) -> str:
    first, second = direction.split("_to_")
    return f"{NAMES[first]} → {NAMES[second]}"


def retrieval_matrix(found: Validation, cancers: Sequence[str], path: Path) -> None:
    """Cosines of all held-out cases, sorted by cancer type, for each pairing."""
    vectors = found.vectors
    assert vectors is not None
    pairs = [p for p in combinations(MODALITIES, 2) if f"{p[0]}_to_{p[1]}" in found.directions]
    figure = Figure(figsize=(5.2 * max(1, len(pairs)), 5.1), layout="constrained")
    for place, pair in enumerate(pairs):
        axes = figure.add_subplot(1, len(pairs), place + 1)
        _matrix(axes, vectors, pair, cancers)
        directions = (f"{pair[0]}_to_{pair[1]}", f"{pair[1]}_to_{pair[0]}")
        axes.set_xlabel("\n".join(_caption(n, found.directions[n]) for n in directions), fontsize=8)
    figure.savefig(path, dpi=110)


def _matrix(
    axes: Axes, vectors: CaseVectors, pair: tuple[str, str], cancers: Sequence[str]
) -> None:
    rows = vectors.both(*pair)
    rows = rows[np.argsort(vectors.cancer[rows], kind="stable")]
    scores = similarity(vectors.vectors[pair[0]][rows], vectors.vectors[pair[1]][rows])
    image = axes.imshow(scores, cmap="magma")
    axes.figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02).set_label("cosine", fontsize=8)
    kinds, counts = np.unique(vectors.cancer[rows], return_counts=True)
    ends = counts.cumsum()
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="white", lw=0.4)
        axes.axvline(end - 0.5, color="white", lw=0.4)
    named = counts >= 0.028 * len(rows)  # a line of text fits
    middle, labels = (ends - counts / 2 - 0.5)[named], [cancers[kind] for kind in kinds[named]]
    axes.set_yticks(middle, labels, fontsize=7)
    axes.set_xticks(middle, labels, fontsize=7, rotation=90)
    axes.set_title(
        f"{len(rows)} held-out cases: {NAMES[pair[0]]} (row) and {NAMES[pair[1]]} (column)",
        fontsize=10,
    )


def _caption(name: str, found: Retrieval) -> str:
    """A direction's recall beside what knowing the type alone would give."""
    ten = next(one for one in found.overall if one.k == 10)
    five = next(one for one in found.within if one.k == 5)
    return (
        f"{_said(name)}:  R@10 {ten.value:.2f} (type only {ten.ceiling:.2f}),  "
        f"within type R@5 {five.value:.2f} (chance {five.chance:.2f})"
    )
