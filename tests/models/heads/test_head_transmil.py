"""TransMIL as a head: its grid and landmarks are the bag's own; TransMIL+ starts from stage 1."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from mstar.errors import WeightsError
from mstar.models.aggregator import Aggregator
from mstar.models.heads import build_head
from mstar.models.heads.transmil import TransMil
from mstar.models.heads.transmil_plus import TransMilPlus
from mstar.models.stage1_files import load_aggregator
from support.head_bags import DIM, call, export_aggregator, packed, small_head

SIZES = (5, 1, 40, 17)


@pytest.mark.parametrize("mode", ["public", "masked"])
@pytest.mark.parametrize("attention", ["nystrom", "exact"])
def test_a_packed_bag_is_the_aggregators_lone_bag(
    mode: str, attention: str, tmp_path: Path
) -> None:
    head = small_head("transmil", tmp_path, mode=mode, attention=attention)
    assert isinstance(head, TransMil)
    config = dataclasses.replace(head.aggregator.config, attention=attention)  # type: ignore[arg-type]
    plain = Aggregator(config).eval()
    plain.load_state_dict(head.aggregator.state_dict())
    x, offsets = packed(SIZES)
    expected = [plain(x[None, first:last]).logits for first, last in itertools.pairwise(offsets)]
    torch.testing.assert_close(call(head, x, offsets).logits, torch.cat(expected))


def test_auto_is_exact_for_small_bags_and_nystrom_above(tmp_path: Path) -> None:
    x, offsets = packed((16, 17))
    logits = {
        kind: call(
            small_head("transmil", tmp_path, attention=kind, exact_up_to=16), x, offsets
        ).logits
        for kind in ("auto", "exact", "nystrom")
    }
    assert torch.equal(logits["auto"][0], logits["exact"][0])
    assert torch.equal(logits["auto"][1], logits["nystrom"][1])
    assert not torch.allclose(logits["exact"], logits["nystrom"], rtol=1e-4)


def test_all_weights_learn(tmp_path: Path) -> None:
    head = small_head("transmil", tmp_path).train()
    x, offsets = packed(SIZES)
    call(head, x, offsets).logits.square().sum().backward()
    assert all(p.grad is not None for p in head.parameters())


def test_plus_starts_from_the_export(tmp_path: Path) -> None:
    folder = export_aggregator(tmp_path)
    head = build_head("transmil_plus", {"aggregator": folder}, input_dim=DIM, num_outputs=2)
    assert isinstance(head, TransMilPlus)
    stage1 = load_aggregator(folder)
    state = stage1.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in head.aggregator.state_dict().items())
    x, offsets = packed((9, 30))
    slides = torch.cat([stage1(x[None, :9]).slide, stage1(x[None, 9:]).slide])
    expected = head.classifier(slides)
    torch.testing.assert_close(call(head.eval(), x, offsets).logits, expected)


def test_plus_trains_everything_unless_frozen(tmp_path: Path) -> None:
    folder = export_aggregator(tmp_path)
    x, offsets = packed((9, 30))
    for freeze in (False, True):
        head = build_head(
            "transmil_plus",
            {"aggregator": folder, "freeze": freeze},
            input_dim=DIM,
            num_outputs=2,
        )
        assert head.training
        call(head, x, offsets).logits.square().sum().backward()
        moved = {n.partition(".")[0] for n, p in head.named_parameters() if p.grad is not None}
        assert moved == ({"classifier"} if freeze else {"classifier", "aggregator"})


def test_plus_refuses_other_features_and_missing_files(tmp_path: Path) -> None:
    folder = export_aggregator(tmp_path)
    with pytest.raises(WeightsError, match="features of 12 numbers, these have 13"):
        build_head("transmil_plus", {"aggregator": folder}, input_dim=13, num_outputs=2)
    with pytest.raises(WeightsError, match="no such file"):
        build_head(
            "transmil_plus", {"aggregator": str(tmp_path / "x")}, input_dim=DIM, num_outputs=2
        )
