"""The table of heads and how one is built from a name and options."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mstar.errors import ConfigError
from mstar.models.heads import HEADS, GeneLayout, build_head, head_config
from mstar.models.heads.contract import CLASSIFICATION, SURVIVAL

NEEDS_A_FILE = "transmil_plus"
GUIDE = Path(__file__).parents[3] / "platform/docs/heads.md"
FREE = tuple(name for name in HEADS if name != NEEDS_A_FILE)
GENES = GeneLayout(genes=20_000, groups=(82, 328, 513, 443, 1536, 452))  # the paper's table


def test_the_table_has_the_heads_of_the_plan() -> None:
    assert list(HEADS) == [
        "linear", "knn", "prototype", "abmil", "abmil_gated", "clam_sb", "clam_mb", "dsmil",
        "transmil", "transmil_plus", "cox_linear", "snn", "mcat", "porpoise", "motcat", "cmta",
    ]  # fmt: skip
    assert all(spec.name == name for name, spec in HEADS.items())
    assert HEADS["cox_linear"].kinds == (SURVIVAL,)
    assert [n for n, s in HEADS.items() if SURVIVAL not in s.kinds] == ["knn", "prototype"]
    assert all(s.kinds for s in HEADS.values())
    assert CLASSIFICATION in HEADS["abmil"].kinds


@pytest.mark.parametrize("name", FREE)
def test_defaults_build_a_head(name: str) -> None:
    outputs = 1 if name == "cox_linear" else 4
    head = build_head(name, {}, input_dim=64, num_outputs=outputs, genes=GENES)
    assert isinstance(head, nn.Module)
    assert bool(list(head.parameters())) == HEADS[name].trained


@pytest.mark.parametrize("name", FREE)
def test_weights_follow_the_seed(name: str) -> None:
    outputs = 1 if name == "cox_linear" else 2
    states = []
    for _ in range(2):
        torch.manual_seed(11)
        states.append(
            build_head(name, {}, input_dim=64, num_outputs=outputs, genes=GENES).state_dict()
        )
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_an_unknown_head_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean transmil\?"):
        build_head("tranmil", {}, input_dim=8, num_outputs=2)


def test_an_unknown_option_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no option 'hiden'; it has hidden, attention_dim"):
        head_config("abmil", {"hiden": 3})


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("abmil", {"hidden": "wide"}, "expected int, got 'wide'"),
        ("abmil", {"hidden": 2.5}, "expected int, got 2.5"),
        ("abmil", {"activation": "tanh"}, "expected relu, gelu, got 'tanh'"),
        ("clam_sb", {"num_instances": 0}, "num_instances of at least 1"),
        ("transmil", {"attention": "linear"}, "auto, nystrom, exact"),
        ("transmil_plus", {"attention": "linear"}, "trained, auto"),
        ("transmil_plus", {}, "Give the folder"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    name: str, options: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        build_head(name, options, input_dim=8, num_outputs=2)


def test_a_whole_number_serves_for_a_fraction() -> None:
    assert head_config("abmil", {"dropout": 0}).dropout == 0


def test_cox_gives_one_risk_and_begins_with_none() -> None:
    with pytest.raises(ConfigError, match="one risk, got 4"):
        build_head("cox_linear", {}, input_dim=8, num_outputs=4)
    head = build_head("cox_linear", {}, input_dim=8, num_outputs=1)
    assert [name for name, _ in head.named_parameters()] == ["risk.weight"]
    risk = head(torch.randn(5, 8), torch.tensor([0, 2, 5])).logits
    assert risk.tolist() == [[0.0], [0.0]]


def test_the_guide_lists_every_head_with_its_parameters() -> None:
    cells = [line.split("|") for line in GUIDE.read_text().splitlines() if line.startswith("| `")]
    rows = {row[1].strip(" `"): row[3].strip() for row in cells if len(row) == 8}
    assert list(rows) == list(HEADS)
    for name in FREE:
        outputs = 1 if name == "cox_linear" else 4 if HEADS[name].genes else 2
        head = build_head(name, {}, input_dim=1024, num_outputs=outputs, genes=GENES)
        assert rows[name].split(" (")[0] == f"{sum(p.numel() for p in head.parameters()):,}"
