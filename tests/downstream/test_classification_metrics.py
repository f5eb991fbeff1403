"""Every classification metric equals scikit-learn's, resample by resample."""

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from mstar.downstream.statistics.bootstrap import patient_weights
from mstar.downstream.statistics.calibration import reliability
from mstar.downstream.statistics.classification import class_aucs, classes_present
from mstar.downstream.statistics.evaluated import Evaluated, once
from mstar.downstream.statistics.metrics import METRICS, metric_spec, value_of
from mstar.errors import ConfigError, TrainingError
from support.predictions import classified, resampled

CLASSIFICATION = [name for name, spec in METRICS.items() if spec.kind == "classification"]


def by_scikit_learn(metric: str, e: Evaluated) -> float:
    """The metric from the rows themselves; NaN where this package says NaN."""
    labels, scores, codes = e.class_labels, e.scores, list(range(e.num_classes))
    one_hot = np.eye(e.num_classes)[labels]
    if metric in ("macro_auc", "weighted_auc", "average_precision"):
        chosen = [1] if e.num_classes == 2 else codes
        enough = 1 if metric == "average_precision" else 2  # an AUC needs a negative as well
        held = [
            c for c in chosen if one_hot[:, c].any() and len(set(one_hot[:, c].tolist())) >= enough
        ]
        if not held:
            return float("nan")
        function = reference.average_precision_score if enough == 1 else reference.roc_auc_score
        values = [function(one_hot[:, c], scores[:, c]) for c in held]
        frequency = one_hot[:, held].sum(axis=0) if metric == "weighted_auc" else None
        return float(np.average(values, weights=frequency))
    if metric == "brier":
        positive = scores[:, 1] if e.num_classes == 2 else scores
        return float(reference.brier_score_loss(one_hot[:, 1] if e.num_classes == 2 else one_hot,
                                                positive))  # fmt: skip
    if metric == "calibration_error":
        confidence, correct = scores.max(axis=1), e.predicted == labels
        error = 0.0
        for low in range(15):
            inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
            if inside.any():
                error += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
        return float(error)
    if metric == "quadratic_kappa":
        if len(set(labels.tolist()) | set(e.predicted.tolist())) == 1:
            return float("nan")
        return float(
            reference.cohen_kappa_score(labels, e.predicted, labels=codes, weights="quadratic")
        )
    plain = {
        "accuracy": reference.accuracy_score,
        "balanced_accuracy": lambda t, p: reference.recall_score(
            t, p, labels=sorted(set(t.tolist())), average="macro", zero_division=0.0
        ),
        "weighted_f1": lambda t, p: reference.f1_score(t, p, average="weighted", zero_division=0.0),
    }
    return float(plain[metric](labels, e.predicted))


@pytest.mark.parametrize("metric", CLASSIFICATION)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    samples=st.integers(2, 40),
    classes=st.integers(2, 5),
    digits=st.sampled_from([None, 1, 2]),
)
def test_equals_scikit_learn(
    metric: str, seed: int, samples: int, classes: int, digits: int | None
) -> None:
    """Few samples: classes are absent, scores tied, resamples of one class."""
    e = classified(seed, samples=samples, classes=classes, digits=digits)
    if metric == "brier" and digits is not None:
        e = classified(seed, samples=samples, classes=classes)  # scikit-learn wants sums of one
    weights = np.concatenate([once(samples), patient_weights(e.patients, 5, seed)])
    values = METRICS[metric].function(e, weights)
    expected = [by_scikit_learn(metric, resampled(e, row)) for row in weights]
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_multiclass_auc_is_one_vs_rest(classes: int) -> None:
    """With all classes there, scikit-learn's own averages."""
    e = classified(1, samples=200, classes=classes)
    scores = e.scores[:, 1] if classes == 2 else e.scores
    for name, average in (("macro_auc", "macro"), ("weighted_auc", "weighted")):
        expected = reference.roc_auc_score(e.labels, scores, multi_class="ovr", average=average)
        assert value_of(name, e) == pytest.approx(expected, abs=1e-12)
    assert value_of("balanced_accuracy", e) == pytest.approx(
        reference.balanced_accuracy_score(e.labels, e.predicted)
    )


def test_absent_classes_are_left_out_and_counted() -> None:
    """An external cohort without a class of the task: its codes stay, the average has one less."""
    e = classified(2, samples=80, classes=4)
    held = e.class_labels != 0
    rows = np.flatnonzero(held)
    without = Evaluated(
        patients=tuple(e.patients[row] for row in rows),
        scores=e.scores[rows],
        labels=e.class_labels[rows],
    )
    areas = class_aucs(without.class_labels, without.scores, once(len(rows)))[:, 0]
    assert np.isnan(areas[0])
    assert value_of("macro_auc", without) == pytest.approx(areas[1:].mean())
    assert classes_present(without.class_labels, 4, once(len(rows))).tolist() == [3]


@pytest.mark.parametrize("metric", ["macro_auc", "weighted_auc", "quadratic_kappa"])
def test_one_class_alone_is_undefined_without_a_warning(metric: str) -> None:
    """NaN, not 0.5 and not a crash (pytest turns warnings into errors)."""
    scores = np.tile([0.9, 0.1], (5, 1))
    e = Evaluated(patients=tuple("abcde"), scores=scores, labels=np.zeros(5, np.int64))
    assert np.isnan(value_of(metric, e))


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_order_of_samples_does_not_matter(seed: int) -> None:
    """Exactly, for the ranking metrics: their sums are whole numbers."""
    e = classified(seed, samples=50, classes=3, digits=1)
    rows = np.random.default_rng(seed).permutation(50)
    shuffled = Evaluated(
        patients=tuple(e.patients[row] for row in rows),
        scores=e.scores[rows],
        labels=e.class_labels[rows],
    )
    for metric in CLASSIFICATION:
        assert value_of(metric, shuffled) == pytest.approx(value_of(metric, e), abs=1e-14)
    assert value_of("macro_auc", shuffled) == value_of("macro_auc", e)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resamples are computed some at a time."""
    e = classified(3, samples=70, classes=3, digits=1)
    weights = patient_weights(e.patients, 40, 0)
    for metric in ("macro_auc", "average_precision"):
        whole = METRICS[metric].function(e, weights)
        with monkeypatch.context() as patch:
            patch.setattr("mstar.downstream.statistics.evaluated.BLOCK_NUMBERS", 200)
            np.testing.assert_array_equal(METRICS[metric].function(e, weights), whole)


def test_reliability_diagram_equals_scikit_learn() -> None:
    """Points of the calibration figure."""
    e = classified(4, samples=300)
    points = reliability(e.class_labels, e.scores[:, 1], bins=10)
    correct, confidence = calibration_curve(e.labels, e.scores[:, 1], n_bins=10)
    np.testing.assert_allclose(points.correct, correct)
    np.testing.assert_allclose(points.confidence, confidence)
    assert points.count.sum() == 300


def test_predictions_that_are_not_finite_are_refused() -> None:
    """A metric of NaN scores would be a number that means nothing."""
    scores = np.array([[0.5, 0.5], [np.nan, 0.5]])
    with pytest.raises(TrainingError, match="1 of 2 predictions are not finite"):
        Evaluated(patients=("a", "b"), scores=scores, labels=np.array([0, 1]))


def test_an_unknown_metric_is_refused_with_the_names() -> None:
    """And what there is."""
    with pytest.raises(ConfigError, match=r"'auroc'.*macro_auc"):
        metric_spec("auroc")
