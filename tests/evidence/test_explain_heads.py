"""Every head's way to score patches: finite, one a patch, and what is known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mstar.errors import ConfigError, FeatureError
from mstar.evidence import gradient, occlusion
from mstar.evidence.asked import Asked
from mstar.evidence.explain import WAYS, explain, ways_of
from mstar.models.heads import HEADS, GroupedGenes
from support.head_bags import CLASSES, COLUMNS, DIM, SMALL, small_head

GROUPS = tuple(f"group {at}" for at in range(len(COLUMNS)))
POOLED = ("linear", "knn", "prototype", "cox_linear")
LOOKING = [name for name, ways in WAYS.items() if ways]


def asked_of(name: str, folder: Path, size: int, **fields: Any) -> Asked:
    """A small head and a random bag on a lattice."""
    rng = np.random.default_rng(size)
    places = np.stack([np.arange(size) % 7, np.arange(size) // 7], axis=1) * 256
    values = rng.standard_normal((1, DIM)).astype(np.float32)
    scores = "discrete" if HEADS[name].genes else "cox" if name == "cox_linear" else "softmax"
    outputs = 1 if scores == "cox" else CLASSES
    options = {"neighbours": 6} if name == "knn" else {}  # or all votes are of one class
    head = fields.pop("head", None) or small_head(name, folder, **options)
    given: dict[str, Any] = {
        "name": name,
        "head": head,
        "scores": scores,
        "x": torch.from_numpy(rng.standard_normal((size, DIM)).astype(np.float32)),
        "coords_l0": torch.from_numpy(places),
        "output_names": tuple(f"class {at}" for at in range(outputs)),
        "group_names": GROUPS,
        "genes": GroupedGenes(values=torch.from_numpy(values), columns=COLUMNS),
        "pooled": name in POOLED,
        "passes": 16,
    }
    return Asked(**given | fields)


def test_every_head_has_a_row() -> None:
    assert set(WAYS) == set(HEADS) == set(SMALL)
    assert [name for name in HEADS if not WAYS[name]] == ["snn"]
    with pytest.raises(ConfigError, match="does not score patches"):
        ways_of("snn", "auto")
    with pytest.raises(ConfigError, match="no gradient"):
        ways_of("knn", "gradient")


@pytest.mark.parametrize("method", ["auto", "gradient", "occlusion"])
@pytest.mark.parametrize("name", LOOKING)
def test_scores_are_finite_one_a_patch(name: str, method: Any, tmp_path: Path) -> None:
    if (name, method) == ("knn", "gradient"):
        return
    for size in (1, 40):
        asked = asked_of(name, tmp_path, size)
        layers = explain([asked], ways_of(name, method))
        assert len({(one.kind, one.class_name) for one in layers}) == len(layers) > 0
        for layer in layers:
            assert layer.values.shape == (size,)
            assert layer.values.dtype == np.float32
            assert np.isfinite(layer.values).all()
            if "attention" in layer.kind:
                assert layer.values.sum() == pytest.approx(1, abs=1e-4)
        if size > 1:
            assert any(np.ptp(layer.values) > 0 for layer in layers)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("abmil", {"attention": 1}),
        ("clam_mb", {"attention": CLASSES, "instance": CLASSES}),
        ("dsmil", {"attention": CLASSES, "instance": CLASSES}),
        ("transmil", {"gradient": CLASSES}),
        ("cmta", {"co_attention": 1 + len(GROUPS)}),
        ("prototype", {"occlusion": CLASSES}),
    ],
)
def test_layers_are_of_classes_and_groups(name: str, kinds: dict[str, int], tmp_path: Path) -> None:
    layers = explain([asked_of(name, tmp_path, 9)], ways_of(name, "auto"))
    assert {kind: [one.kind for one in layers].count(kind) for kind in kinds} == kinds
    assert len(layers) == sum(kinds.values())


def test_attention_set_by_hand_is_given_back(tmp_path: Path) -> None:
    """One feature makes the score of attention: softmax(3 tanh(x)) of the first feature's sign."""
    head = small_head("abmil", tmp_path, hidden=DIM, attention_dim=1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.feature.linear.weight[0, 0] = 1.0  # type: ignore[union-attr, index]
        head.attention.tanh[0].weight[0, 0] = 1.0  # type: ignore[union-attr, index]
        head.attention.score.weight[0, 0] = 3.0  # type: ignore[union-attr, index]
    asked = asked_of("abmil", tmp_path, 12, head=head)
    (layer,) = explain([asked], ways_of("abmil", "auto"))
    raised = np.exp(3 * np.tanh(np.maximum(asked.x[:, 0].numpy(), 0)))
    np.testing.assert_allclose(layer.values, raised / raised.sum(), rtol=1e-5)


def test_several_models_are_averaged_as_they_are(tmp_path: Path) -> None:
    first = asked_of("abmil", tmp_path, 9)
    torch.manual_seed(11)
    other = small_head("abmil_gated", tmp_path)
    second = asked_of("abmil", tmp_path, 9, head=other)
    ways = ways_of("abmil", "auto")
    alone = [explain([one], ways)[0].values for one in (first, second)]
    assert np.abs(alone[0] - alone[1]).max() > 1e-4
    np.testing.assert_allclose(explain([first, second], ways)[0].values, np.mean(alone, axis=0))


def test_occlusion_of_a_linear_head_is_its_closed_form(tmp_path: Path) -> None:
    """t(mean) − t(mean without i) = W (x_i − mean) / (n − 1), W less its mean over the classes."""
    asked = asked_of("linear", tmp_path, 20)
    weight = asked.head.classifier.weight.detach().double()  # type: ignore[union-attr]
    weight = weight - weight.mean(0)
    x = asked.x.double()
    expected = (x - x.mean(0)) @ weight.T / (len(x) - 1)
    for pooled in (True, False):
        found = occlusion.scores(asked_of("linear", tmp_path, 20, pooled=pooled, passes=64))
        for at, values in enumerate(found.values()):
            np.testing.assert_allclose(values, expected[:, at], rtol=1e-4, atol=1e-6)


def test_gradient_times_input_of_a_linear_head_is_its_term_of_the_sum(tmp_path: Path) -> None:
    asked = asked_of("linear", tmp_path, 20)
    weight = asked.head.classifier.weight.detach()  # type: ignore[union-attr]
    expected = asked.x @ (weight - weight.mean(0)).T / 20
    for at, values in enumerate(gradient.scores(asked).values()):
        np.testing.assert_allclose(values, expected[:, at], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["transmil", "abmil", "cmta", "mcat"])
def test_the_gradient_is_that_of_finite_differences(name: str, tmp_path: Path) -> None:
    asked = asked_of(name, tmp_path, 10)
    found = gradient.scores(asked)
    step = 1e-3
    for target, values in enumerate(found.values()):
        for patch in (0, 6):
            near = []
            for sign in (1, -1):
                moved = asked.x.clone()
                moved[patch] *= 1 + sign * step
                near.append(float(asked.targets(moved).detach()[0, target]))
            slope = (near[0] - near[1]) / (2 * step)
            assert float(values[patch]) == pytest.approx(slope, rel=0.05, abs=2e-3)


def test_the_mean_of_linear_patch_scores_is_what_is_said_of_the_bag(tmp_path: Path) -> None:
    for name in ("linear", "cox_linear"):
        asked = asked_of(name, tmp_path, 15)
        said = asked.output(asked.x).logits[0].detach().numpy()
        layers = explain([asked], ways_of(name, "auto"))
        np.testing.assert_allclose([one.values.mean() for one in layers], said, rtol=1e-4)


def test_patches_of_clam_are_scored_only_where_they_were_trained(tmp_path: Path) -> None:
    ways = ways_of("clam_sb", "auto")
    of_survival = asked_of("clam_sb", tmp_path, 9, scores="discrete")
    assert {one.kind for one in explain([of_survival], ways)} == {"attention"}
    without = asked_of(
        "clam_sb", tmp_path, 9, head=small_head("clam_sb", tmp_path, instance_weight=0.0)
    )
    assert {one.kind for one in explain([without], ways)} == {"attention"}


def test_co_attention_of_cmta_is_what_its_layer_computes(tmp_path: Path) -> None:
    """The patch that is made to answer alone has all of the weight, and the head is left alone."""
    asked = asked_of("cmta", tmp_path, 8)
    before = asked.output(asked.x).logits
    layers = explain([asked], ways_of("cmta", "auto"))
    assert not asked.head.genes_ask._forward_hooks  # type: ignore[union-attr]
    torch.testing.assert_close(asked.output(asked.x).logits, before)
    groups = np.stack([one.values for one in layers[1:]])
    np.testing.assert_allclose(layers[0].values, groups.mean(0), rtol=1e-5)
    np.testing.assert_allclose(groups.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(("size", "most"), [(2, 2), (10, 16), (40, 16), (100, 9), (257, 2)])
def test_blocks_hold_every_patch_once_and_are_few(size: int, most: int) -> None:
    coords = torch.from_numpy(np.random.default_rng(size).integers(0, 9000, (size, 2)))
    blocks = occlusion.neighbours(coords, most)
    assert len(blocks) <= most
    assert torch.cat(blocks).sort().values.tolist() == list(range(size))
    assert min(map(len, blocks)) >= 1
    assert max(map(len, blocks)) <= size - 1


def test_blocks_are_of_neighbours() -> None:
    """Two pieces far apart come into two blocks."""
    coords = torch.tensor([[0, 0], [256, 0], [0, 256], [9000, 0], [9256, 0]])
    first, second = occlusion.neighbours(coords, 2)
    assert {frozenset(first.tolist()), frozenset(second.tolist())} in (
        {frozenset({0, 1, 2}), frozenset({3, 4})},
        {frozenset({0, 2}), frozenset({1, 3, 4})},
    )


def test_a_block_is_worth_what_its_patches_are_together(tmp_path: Path) -> None:
    """Of a linear head the blocks' scores are means of changes, and far cheaper."""
    asked = asked_of("linear", tmp_path, 40, pooled=False, passes=4)
    found = occlusion.scores(asked)
    blocks = occlusion.neighbours(asked.coords_l0, 4)
    whole = asked.targets(asked.x)[0]
    for block in blocks:
        kept = [at for at in range(40) if at not in block.tolist()]
        lost = (whole - asked.targets(asked.x[kept])[0]) / len(block)
        for at, values in enumerate(found.values()):
            torch.testing.assert_close(values[block], lost[at].expand(len(block)))


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    asked = asked_of("abmil", tmp_path, 5)
    asked.x[2] = torch.nan
    with pytest.raises(FeatureError, match="expected finite scores, got nan"):
        explain([asked], ways_of("abmil", "auto"))
    assert isinstance(asked.head, nn.Module)
