"""The heads without gradients against scikit-learn, and what they refuse."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import Tensor

from mstar.errors import ConfigError, FeatureError, TrainingError
from mstar.models.heads import HEADS, FittedHead, build_head
from support.head_bags import CLASSES, DIM, call, labels_of, packed

FITTED = tuple(name for name in HEADS if not HEADS[name].trained)
SIZES = tuple(range(2, 42))


def shifted(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bags whose mean depends on their class, around a point far from zero."""
    x, offsets = packed(SIZES, seed=seed)
    labels = labels_of(len(SIZES))
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9)) / 2
    return x + centres[labels.repeat_interleave(offsets.diff())] + 3, offsets, labels


def unit_means(x: Tensor, offsets: Tensor, centre: np.ndarray | None) -> np.ndarray:
    """CL2N by hand; without a centre, around its own."""
    rows = x.double().numpy()
    pairs = itertools.pairwise(offsets)
    means = np.stack([rows[first:last].mean(0) for first, last in pairs])
    means = means - (means.mean(0) if centre is None else centre)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


def own_centre(x: Tensor, offsets: Tensor) -> np.ndarray:
    rows = x.double().numpy()
    pairs = itertools.pairwise(offsets)
    return np.asarray(np.stack([rows[a:b].mean(0) for a, b in pairs]).mean(0))


def test_knn_votes_as_scikit_learns() -> None:
    x, offsets, labels = shifted(1)
    new, new_offsets, _ = shifted(2)
    head = build_head(
        "knn", {"neighbours": 7, "temperature": 0.2}, input_dim=DIM, num_outputs=CLASSES
    )
    head.fit(x, offsets, labels)  # type: ignore[operator]
    found = call(head, new, new_offsets).logits.softmax(1)
    reference = KNeighborsClassifier(
        7, weights=lambda distance: np.exp((1 - distance) / 0.2), metric="cosine"
    ).fit(unit_means(x, offsets, None), labels)
    expected = reference.predict_proba(unit_means(new, new_offsets, own_centre(x, offsets)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_prototypes_predict_as_scikit_learns_centroids() -> None:
    x, offsets, labels = shifted(1)
    new, new_offsets, truth = shifted(2)
    head = build_head("prototype", {}, input_dim=DIM, num_outputs=CLASSES)
    head.fit(x, offsets, labels)  # type: ignore[operator]
    logits = call(head, new, new_offsets).logits
    reference = NearestCentroid().fit(unit_means(x, offsets, None), labels)
    vectors = unit_means(new, new_offsets, own_centre(x, offsets))
    np.testing.assert_array_equal(logits.argmax(1), reference.predict(vectors))
    apart = ((vectors[:, None] - reference.centroids_) ** 2).sum(2)
    np.testing.assert_allclose(logits, -apart / 0.1, rtol=1e-4, atol=1e-4)
    assert float((logits.argmax(1) == truth).float().mean()) > 0.7


@pytest.mark.parametrize("name", FITTED)
def test_a_class_without_training_bags_comes_last(name: str) -> None:
    x, offsets, labels = shifted(1)
    head = build_head(name, {}, input_dim=DIM, num_outputs=CLASSES + 1)
    head.fit(x, offsets, labels)  # type: ignore[operator]
    logits = call(head, x, offsets).logits
    assert bool(logits.isfinite().all())
    assert bool((logits[:, CLASSES] <= logits[:, :CLASSES].amin(1)).all())


@pytest.mark.parametrize("name", FITTED)
def test_a_state_is_loaded_into_a_head_that_saw_nothing(name: str) -> None:
    x, offsets, labels = shifted(1)
    head, fresh = (build_head(name, {}, input_dim=DIM, num_outputs=CLASSES) for _ in range(2))
    assert isinstance(head, FittedHead)
    head.fit(x, offsets, labels)
    fresh.load_state_dict(head.state_dict())
    assert torch.equal(call(fresh, x, offsets).logits, call(head, x, offsets).logits)
    other = build_head(name, {}, input_dim=DIM + 1, num_outputs=CLASSES)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(head.state_dict())


@pytest.mark.parametrize("name", FITTED)
def test_what_cannot_be_fitted_is_refused(name: str) -> None:
    x, offsets, labels = shifted(1)
    head = build_head(name, {}, input_dim=DIM, num_outputs=CLASSES)
    with pytest.raises(TrainingError, match="no training bags"):
        head(x, offsets)
    with pytest.raises(FeatureError, match="a label for each of 40 bags, got 39"):
        head.fit(x, offsets, labels[1:])  # type: ignore[operator]
    with pytest.raises(FeatureError, match="codes from 0 to 2, got 1 to 3"):
        head.fit(x, offsets, labels + 1)  # type: ignore[operator]


def test_knn_takes_equally_near_bags_in_the_order_of_training() -> None:
    x = torch.zeros(5, DIM)
    x[:, 0] = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    head = build_head("knn", {"neighbours": 1}, input_dim=DIM, num_outputs=2)
    head.fit(x, torch.arange(6), torch.tensor([1, 0, 0, 0, 0]))  # type: ignore[operator]
    assert call(head, x[:1], torch.tensor([0, 1])).logits.argmax().item() == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("knn", {"neighbours": 0}),
        ("knn", {"temperature": 0.0}),
        ("prototype", {"temperature": 0.0}),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        build_head(name, options, input_dim=DIM, num_outputs=2)
