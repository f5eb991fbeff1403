"""Heads against their papers' formulas, written out for one bag in numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mstar.models.heads import build_head
from mstar.models.heads.clam import Clam, smooth_svm
from support.head_bags import CLASSES, DIM, call, packed, small_head

Array = np.ndarray


def weights(module: nn.Module) -> tuple[Array, Array]:
    assert isinstance(module, nn.Linear)
    return module.weight.detach().double().numpy(), module.bias.detach().double().numpy()


def layer(x: Array, module: nn.Module) -> Array:
    w, b = weights(module)
    return x @ w.T + b


def softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(0))
    return np.asarray(raised / raised.sum(0))


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def one_bag(size: int = 21) -> tuple[torch.Tensor, torch.Tensor, Array]:
    x, offsets = packed((size,), seed=4)
    return x, offsets, x.double().numpy()


def scores_of(h: Array, network: nn.Module) -> Array:
    seen = np.tanh(layer(h, network.tanh[0]))  # type: ignore[index]
    if network.gate is not None:
        seen = seen * sigmoid(layer(h, network.gate[0]))  # type: ignore[index]
    return layer(seen, network.score)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["abmil", "abmil_gated"])
def test_abmil_is_equation_8_and_9(name: str, tmp_path: Path) -> None:
    head = small_head(name, tmp_path)
    x, offsets, rows = one_bag()
    h = np.maximum(layer(rows, head.feature.linear), 0)  # type: ignore[union-attr, arg-type]
    a = softmax(scores_of(h, head.attention))  # type: ignore[arg-type]
    expected = layer((a * h).sum(0), head.classifier)  # type: ignore[arg-type]
    output = call(head, x, offsets)
    np.testing.assert_allclose(output.logits[0].detach(), expected, rtol=1e-4, atol=1e-5)
    assert output.attention is not None
    np.testing.assert_allclose(output.attention.detach(), a[:, 0], rtol=1e-4, atol=1e-6)


def test_abmil_has_the_papers_sizes() -> None:
    head = build_head("abmil", {}, input_dim=1024, num_outputs=2)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters() if p.dim() == 2}
    assert shapes == {
        "feature.linear.weight": (512, 1024),
        "attention.tanh.0.weight": (128, 512),
        "attention.score.weight": (1, 128),
        "classifier.weight": (2, 512),
    }
    assert head.feature.dropout.p == 0.25  # type: ignore[union-attr]


def test_dsmil_follows_its_formulas(tmp_path: Path) -> None:
    head = small_head("dsmil", tmp_path)
    x, offsets, rows = one_bag()
    h = np.maximum(layer(rows, head.feature.linear), 0)  # type: ignore[union-attr, arg-type]
    s = layer(h, head.instance)  # type: ignore[arg-type]
    q = np.tanh(layer(np.maximum(layer(h, head.query[0]), 0), head.query[2]))  # type: ignore[index]
    a = np.stack([softmax(q @ q[s[:, c].argmax()] / 8**0.5) for c in range(CLASSES)], axis=1)
    bag = layer((a.T @ h).ravel(), head.bag)  # type: ignore[arg-type]
    output = call(head, x, offsets)
    np.testing.assert_allclose(
        output.logits[0].detach(), (s.max(0) + bag) / 2, rtol=1e-4, atol=1e-5
    )
    assert output.attention is not None
    np.testing.assert_allclose(output.attention.detach(), a, rtol=1e-4, atol=1e-6)


def test_dsmil_can_weigh_the_features_themselves() -> None:
    head = build_head("dsmil", {"hidden": 0}, input_dim=DIM, num_outputs=2)
    assert head.bag.weight.shape == (2, 2 * DIM)  # type: ignore[union-attr]
    x, offsets = packed()
    assert call(head, x, offsets).logits.shape == (4, 2)


@pytest.mark.parametrize("branch", ["clam_sb", "clam_mb"])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("size", [21, 6, 3, 2])
def test_clam_follows_its_formulas(branch: str, exclusive: bool, size: int, tmp_path: Path) -> None:
    head = small_head(branch, tmp_path, exclusive_classes=exclusive).train()
    assert isinstance(head, Clam)
    x, offsets, rows = one_bag(size)
    label, count = 1, min(4, size // 2)
    h = np.maximum(layer(rows, head.feature.linear), 0)
    a = softmax(scores_of(h, head.attention))
    w, b = weights(head.classifier)
    a_of = [a[:, c if branch == "clam_mb" else 0] for c in range(CLASSES)]
    logits = np.array([w[c] @ (a_of[c] @ h) + b[c] for c in range(CLASSES)])
    loss = 0.0
    for c in range(CLASSES):
        order = np.argsort(-a_of[c])
        most, least = order[:count], order[::-1][:count]
        if c == label:
            picked, target = np.concatenate([most, least]), [1] * count + [0] * count
        elif exclusive:
            picked, target = most, [0] * count
        else:
            continue
        evidence = layer(h[picked], head.instances[c])
        svm = [
            np.log(sum(np.exp((j != y) + e[j] - e[y]) for j in (0, 1)))
            for e, y in zip(evidence, target, strict=True)
        ]
        loss += float(np.mean(svm)) / (CLASSES if exclusive else 1)
    output = call(head, x, offsets, torch.tensor([label]))
    np.testing.assert_allclose(output.logits[0].detach(), logits, rtol=1e-4, atol=1e-5)
    assert output.extra_loss is not None
    assert output.extra_loss.item() == pytest.approx(3 / 7 * loss, rel=1e-4)


def test_clam_has_its_patch_loss_in_training_only(tmp_path: Path) -> None:
    head = small_head("clam_sb", tmp_path)
    x, offsets = packed()
    labels = torch.tensor([0, 1, 2, 0])
    assert call(head, x, offsets, labels).extra_loss is None
    assert call(head.train(), x, offsets).extra_loss is None
    assert call(head, x, offsets, labels).extra_loss is not None
    off = small_head("clam_sb", tmp_path, instance_weight=0.0).train()
    assert call(off, x, offsets, labels).extra_loss is None


def test_the_smooth_svm_loss_nears_the_hinge_when_cold() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.3, 0.1], [-1.0, 4.0]])
    targets = torch.tensor([0, 1, 0])
    hinge = torch.tensor([0.0, 1.2, 6.0])
    torch.testing.assert_close(smooth_svm(logits, targets, 0.01), hinge, rtol=0, atol=1e-3)
    warm = smooth_svm(logits, targets, 1e4)
    assert bool((warm > hinge).all())
