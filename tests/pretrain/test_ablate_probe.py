"""The probes of the ablation: against scikit-learn, on what is planted, on noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mstar.pretrain import ablate_probe
from mstar.pretrain.ablate_probe import abmil, auc, cross_validated, folds_of, linear


@given(
    scores=arrays(np.float64, st.integers(4, 30), elements=st.integers(-3, 3).map(float)),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_auc_is_scikit_learns(scores: np.ndarray, data: st.DataObject) -> None:
    labels = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores),
                                         max_size=len(scores))))  # fmt: skip
    labels[0], labels[1] = True, False
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_folds_hold_both_classes_evenly() -> None:
    labels = np.arange(53) % 3 == 0
    folds = folds_of(labels, 5, seed=1)
    for value in (False, True):
        counts = np.bincount(folds[labels == value], minlength=5)
        assert counts.max() - counts.min() <= 1


def planted_bags(shift: float, count: int = 60) -> tuple[list[np.ndarray], np.ndarray]:
    """Bags in which a positive's patches, a third of them, are shifted in one direction."""
    rng = np.random.default_rng(5)
    labels = np.arange(count) % 2 == 0
    bags = []
    for label in labels:
        bag = rng.standard_normal((int(rng.integers(6, 16)), 6)).astype(np.float32)
        bag[: len(bag) // 3, 2] += shift * label
        bags.append(bag)
    return bags, labels


def test_the_linear_probe_is_logistic_regression_on_means() -> None:
    bags, labels = planted_bags(1.0)
    train, test = np.stack([bag.mean(0) for bag in bags[:40]]), [bag.mean(0) for bag in bags[40:]]
    centre, scale = train.mean(0), train.std(0)
    reference = LogisticRegression(C=1 / (2 * ablate_probe.RIDGE * 40), tol=1e-8, max_iter=1000)
    reference.fit((train - centre) / scale, labels[:40])
    expected = reference.decision_function((np.stack(test) - centre) / scale)
    found = linear(bags[:40], labels[:40], bags[40:], 0)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_abmil_finds_what_a_third_of_the_patches_shows() -> None:
    bags, labels = planted_bags(4.0)
    folds = folds_of(labels, 3, seed=0)
    assert cross_validated(abmil, bags, labels, folds) > 0.9


def test_abmil_does_not_see_padding() -> None:
    bags, labels = planted_bags(4.0)
    alone = abmil(bags[:40], labels[:40], bags[40:50], 1)
    beside = abmil(bags[:40], labels[:40], [*bags[40:50], np.zeros((50, 6), np.float32)], 1)
    np.testing.assert_allclose(alone, beside[:10], atol=1e-5)


def test_probes_find_nothing_in_noise() -> None:
    bags, labels = planted_bags(0.0, count=120)
    folds = folds_of(labels, 5, seed=0)
    for fit in (linear, abmil):
        assert abs(cross_validated(fit, bags, labels, folds) - 0.5) < 0.2
