"""Curves equal scikit-learn's; figures are drawn for every kind and every degenerate study."""

import numpy as np
import pytest
from sklearn.metrics import auc, confusion_matrix, precision_recall_curve, roc_curve

from mstar.downstream import curves, figures
from mstar.downstream.predictions import Predictions
from support.prediction_files import classification, survival

MULTI = ("a", "b", "c")


def test_roc_points_are_those_of_scikit_learn() -> None:
    study = classification("t", cases=80)
    (line,) = curves.roc_lines(study)
    rates = roc_curve(study.label, study.scores[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(line.x, rates[0])
    np.testing.assert_allclose(line.y, rates[1])
    assert line.label == "positive"


def test_precision_recall_points_are_those_of_scikit_learn() -> None:
    study = classification("t", cases=80)
    (line,) = curves.pr_lines(study)
    precision, recall, _ = precision_recall_curve(study.label, study.scores[:, 1])
    kept = len(line.x) - 1
    np.testing.assert_allclose(line.x[1:], recall[:-1][::-1][:kept])
    np.testing.assert_allclose(line.y[1:], precision[:-1][::-1][:kept])


def test_models_are_averaged_with_their_range() -> None:
    study = classification("t", cases=80, seeds=(1, 2, 3))
    (line,) = curves.roc_lines(study)
    assert line.low is not None
    assert line.high is not None
    assert (line.low <= line.y).all()
    assert (line.y <= line.high).all()
    areas = [auc(*roc_curve(study.label[r], study.scores[r, 1])[:2]) for _, _, r in study.runs()]
    assert auc(line.x, line.y) == pytest.approx(np.mean(areas), abs=0.01)


def test_absent_classes_have_no_curve() -> None:
    assert curves.roc_lines(classification("t", labels=[1] * 9)) == []
    study = classification("t", classes=MULTI, labels=[0, 2] * 9)
    assert [line.label for line in curves.roc_lines(study)] == ["a", "c"]


def test_confusion_is_that_of_scikit_learn_and_a_mean_over_models() -> None:
    study = classification("t", classes=MULTI, cases=50)
    expected = confusion_matrix(study.label, study.scores.argmax(axis=1), labels=[0, 1, 2])
    np.testing.assert_allclose(curves.confusion_counts(study), expected)
    external = classification("t", classes=MULTI, cases=50, folds=("0", "1"), part="external")
    assert curves.confusion_counts(external).sum() == pytest.approx(50)


def test_risk_is_cut_at_the_training_median_and_each_case_counts_once() -> None:
    study = survival("t", cases=40, seeds=(1, 2, 3))
    split = curves.risk_split(study)
    assert split is not None
    assert split.cut == "training"
    runs = [study.scores[rows, 0] for _, _, rows in study.runs()]
    np.testing.assert_array_equal(split.high, np.mean(runs, axis=0) - 0.1 > 0)
    compat = curves.risk_split(survival("t", cases=40, protocol="paper-compat"))
    assert compat is not None
    assert compat.cut == "cohort"
    assert compat.high.sum() == 20
    assert curves.risk_split(survival("t", median_risk={})) is None


def test_thinned_curves_keep_their_ends() -> None:
    line = curves.Line(label="", x=np.linspace(0, 1, 999), y=np.linspace(0, 1, 999) ** 2)
    fewer = curves.thinned(line, 50)
    assert len(fewer.x) <= 50
    assert (fewer.x[0], fewer.x[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    "study",
    [
        classification("t", seeds=(1, 2), cases=40),
        classification("t", labels=[1] * 9, data_source="generated"),
        survival("t", cases=30),
        survival("t", cases=8, censored=1.0),
        survival("t", median_risk={}),
    ],
    ids=["two seeds", "one class", "survival", "all censored", "no median"],
)
def test_every_figure_can_be_drawn(study: Predictions) -> None:
    drawn = figures.study_figures(study)
    expected = (
        {"km"} if study.facts.kind == "survival" else {"roc", "pr", "confusion", "calibration"}
    )
    assert set(drawn) == expected
    for figure in drawn.values():
        generated = study.facts.data_source == "generated"
        assert ("generated data" in figure.axes[0].get_title()) == generated
    one = next(iter(drawn.values()))
    assert figures.figure_png(one).startswith(b"\x89PNG")
