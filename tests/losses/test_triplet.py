"""Batch-hard triplets against a loop in NumPy, both policies, and cases that take no part."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.losses.cases import CaseEmbeddings
from mstar.losses.triplet import triplet_loss


def numpy_triplet(
    cases: CaseEmbeddings, margin: float, policy: str, fewest: int
) -> tuple[float, int]:
    has = cases.stacked_has().numpy()
    cancer, rows = cases.cancer.numpy(), []
    for i in range(len(has)):
        parts = [cases.vectors(m)[i].detach().double().numpy() for m in ("wsi", "text", "gene")]
        units = [p / np.linalg.norm(p) for p in parts]
        rows.append([u if h else np.zeros(6) for u, h in zip(units, has[i], strict=True)])
    hinge = []
    for a in range(len(rows)):
        others = [
            o
            for o in range(len(rows))
            if o != a
            and has[o].sum() >= fewest
            and cancer[o] >= 0
            and (policy == "zero_fill" or (has[o] == has[a]).all())
        ]
        d = {o: np.linalg.norm(np.concatenate(rows[a]) - np.concatenate(rows[o])) for o in others}
        same, other = ([o for o in d if (cancer[o] == cancer[a]) == s] for s in (True, False))
        if has[a].sum() >= fewest and cancer[a] >= 0 and same and other:
            hinge.append(max(0, max(d[o] for o in same) - min(d[o] for o in other) + margin))
    return (float(np.mean(hinge)) if hinge else 0.0), len(hinge)


def make_cases(
    has: list[tuple[bool, bool, bool]], cancer: list[int], seed: int = 0
) -> CaseEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.tensor(has, dtype=torch.bool).reshape(-1, 3)
    vectors = torch.randn(3, len(has), 6, generator=generator)
    vectors = vectors.masked_fill(~masks.T[:, :, None], torch.nan)
    wsi, text, gene = (v.clone().requires_grad_() for v in vectors)
    return CaseEmbeddings(
        wsi=wsi,
        text=text,
        gene=gene,
        has_wsi=masks[:, 0],
        has_text=masks[:, 1],
        has_gene=masks[:, 2],
        cancer=torch.tensor(cancer, dtype=torch.int64),
    )


CASE = st.tuples(st.tuples(st.booleans(), st.booleans(), st.booleans()), st.integers(-1, 2))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(CASE, max_size=12),
    seed=st.integers(0, 99),
    policy=st.sampled_from(["same_set", "zero_fill"]),
    fewest=st.integers(1, 2),
)
def test_loss_equals_the_reference(
    rows: list[tuple[tuple[bool, bool, bool], int]], seed: int, policy: str, fewest: int
) -> None:
    cases = make_cases([r[0] for r in rows], [r[1] for r in rows], seed)
    found, anchors = triplet_loss(cases, margin=0.3, missing=policy, fewest_modalities=fewest)  # type: ignore[arg-type]
    expected, expected_anchors = numpy_triplet(cases, 0.3, policy, fewest)
    assert anchors == expected_anchors
    assert (found is None) == (anchors == 0)
    if found is not None:
        assert float(found.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_policies_differ_in_who_is_compared() -> None:
    """Two types, each with another set of modalities: only zero-filling compares them."""
    has = [(True, True, True), (True, True, True), (True, True, False), (True, True, False)]
    cases = make_cases(has, [0, 0, 1, 1])
    assert triplet_loss(cases, margin=0.3, missing="same_set") == (None, 0)
    assert triplet_loss(cases, margin=0.3, missing="zero_fill")[1] == 4


def test_anchors_without_positive_or_negative_are_left_out() -> None:
    for cancer, anchors in (([0, 0, 0, 0], 0), ([0, 1, 2, 3], 0), ([0, 0, 1, 2], 2)):
        cases = make_cases([(True, True, True)] * 4, cancer)
        assert triplet_loss(cases, margin=0.3, missing="same_set")[1] == anchors


def test_training_separates_the_types() -> None:
    cases = make_cases([(True, True, True)] * 9, [0, 1, 2] * 3)
    vectors = [cases.wsi, cases.text, cases.gene]
    optimiser = torch.optim.Adam(vectors, lr=0.05)
    values = []
    for _ in range(150):
        optimiser.zero_grad()
        loss, _ = triplet_loss(cases, margin=0.3, missing="same_set")
        assert loss is not None
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[0] > 0.3
    assert values[-1] < 0.01


def test_collapsed_vectors_give_the_margin_and_finite_gradients() -> None:
    """A distance of zero has no direction; its gradient must still be a number."""
    ones = [torch.ones(4, 6, requires_grad=True) for _ in range(3)]
    has = torch.ones(4, dtype=torch.bool)
    cases = CaseEmbeddings(
        wsi=ones[0],
        text=ones[1],
        gene=ones[2],
        has_wsi=has,
        has_text=has,
        has_gene=has,
        cancer=torch.tensor([0, 0, 1, 1]),
    )
    loss, anchors = triplet_loss(cases, margin=0.3, missing="same_set")
    assert loss is not None
    assert (float(loss.detach()), anchors) == (pytest.approx(0.3), 4)
    loss.backward()
    assert all(torch.isfinite(v.grad).all() for v in ones if v.grad is not None)


def test_float32_under_autocast() -> None:
    cases = make_cases([(True, True, True)] * 8, [0, 1] * 4)
    expected, _ = triplet_loss(cases, margin=0.3, missing="same_set")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = triplet_loss(cases, margin=0.3, missing="same_set")
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)
