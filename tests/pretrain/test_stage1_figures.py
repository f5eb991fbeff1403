"""The pictures are drawn from whatever a run has, and say what they show."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from mstar.losses.cases import MODALITIES
from mstar.pretrain.stage1_figures import curves, retrieval_matrix
from mstar.pretrain.stage1_validate import CaseVectors, measure

CANCERS = ("BRCA", "COAD", "KIRC", "LUAD")
PAIRS = {"wsi_text": ("wsi", "text"), "wsi_gene": ("wsi", "gene"), "text_gene": ("text", "gene")}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    made: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return made


def vectors_of(modalities: tuple[str, ...], num: int = 60) -> CaseVectors:
    rng = np.random.default_rng(0)
    cancer = rng.integers(0, 4, num)
    base = rng.standard_normal((num, 8)) + 2 * np.eye(4, 8)[cancer]
    return CaseVectors(
        case_ids=tuple(map(str, range(num))),
        cancer=cancer,
        vectors={name: base + rng.standard_normal((num, 8)) for name in MODALITIES},
        has={name: np.full(num, name in modalities) for name in MODALITIES},
    )


def history_of(modalities: tuple[str, ...]) -> list[dict[str, float]]:
    found = measure(
        vectors_of(modalities), duplicates=np.arange(60), class_vectors=np.eye(4, 8)
    ).metrics
    rows: list[dict[str, float]] = []
    for step in range(1, 41):
        row: dict[str, float] = {"step": step, "logit_scale": 14.0, "loss.triplet": 0.3}
        for name, pair in PAIRS.items():
            if set(pair) <= set(modalities):
                row |= {f"loss.{name}": math.log(30) - step / 40, f"pairs.{name}": 30.0}
        row |= {f"uniformity.{name}": -step / 40 for name in modalities}
        rows.append(row)
        rows += [{"step": step, **found}] if step % 10 == 0 else []
    return rows


def names_of(figure: Figure) -> list[list[str]]:
    """What the legend of each panel says."""
    legends = [axes.get_legend() for axes in figure.axes]
    return [[text.get_text() for text in one.get_texts()] if one else [] for one in legends]


def test_curves_show_every_part_beside_its_yardstick(tmp_path: Path, drawn: list[Figure]) -> None:
    curves(history_of(MODALITIES), tmp_path / "curves.png")
    loss, recall, within, zero_shot, uniformity, scale = names_of(drawn[0])
    assert loss == ["slide – report", "slide – RNA", "report – RNA", "triplet", "log N, N = 30"]
    assert len(recall) == 7
    assert recall[-1] == "knowing only the type"
    assert within[:2] == ["slide → report", "chance, slide → report"]
    assert zero_shot == ["balanced accuracy", "chance"]
    assert [name for name in uniformity if "held out" in name] == [
        "slide, held out",
        "report, held out",
        "RNA, held out",
    ]
    assert scale == ["logit scale"]
    assert image.imread(tmp_path / "curves.png").shape == (814, 1870, 4)


def test_curves_of_two_modalities_of_one_step_and_of_none(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    for place, history in enumerate((history_of(("wsi", "text")), history_of(MODALITIES)[:1], [])):
        curves(history, tmp_path / f"{place}.png")
    assert names_of(drawn[0])[0] == ["slide – report", "triplet", "log N, N = 30"]
    assert names_of(drawn[0])[1] == ["slide → report", "report → slide", "knowing only the type"]
    assert names_of(drawn[1])[1] == []
    assert [text.get_text() for text in drawn[1].axes[1].texts] == ["not measured"]


def test_the_matrix_sorts_by_type_and_states_recall_and_ceiling(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    vectors = vectors_of(MODALITIES)
    found = measure(vectors, duplicates=np.arange(60))
    retrieval_matrix(found, CANCERS, tmp_path / "matrix.png")
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "60 held-out cases: slide (row) and report (column)",
        "60 held-out cases: slide (row) and RNA (column)",
        "60 held-out cases: report (row) and RNA (column)",
    ]
    ten = found.directions["wsi_to_text"].overall[2]
    caption = panels[0].get_xlabel()
    assert f"slide → report:  R@10 {ten.value:.2f} (type only {ten.ceiling:.2f})" in caption
    assert "report → slide:  R@10" in caption
    assert [label.get_text() for label in panels[0].get_yticklabels()] == list(CANCERS)
    shown = np.asarray(panels[0].images[0].get_array())
    order = np.argsort(vectors.cancer, kind="stable")
    unit = {n: v / np.linalg.norm(v, axis=1, keepdims=True) for n, v in vectors.vectors.items()}
    np.testing.assert_allclose(shown, unit["wsi"][order] @ unit["text"][order].T, atol=1e-6)


def test_types_too_small_for_a_line_of_text_are_not_named(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    vectors = vectors_of(("wsi", "gene"), num=100)
    vectors.cancer[:] = 0
    vectors.cancer[:2] = 3
    retrieval_matrix(measure(vectors, duplicates=np.arange(100)), CANCERS, tmp_path / "matrix.png")
    (panel,) = [axes for axes in drawn[0].axes if axes.get_title()]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["BRCA"]
