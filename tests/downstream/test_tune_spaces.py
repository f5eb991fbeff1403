"""Search spaces are data: every head has one, all cost the same, and nonsense is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstar.downstream.config import paper_trial
from mstar.downstream.spaces import (
    Choice,
    LogUniform,
    Space,
    Uniform,
    at_quantile,
    load_space,
    make_trial,
    spaces_folder,
)
from mstar.errors import ConfigError
from mstar.models.heads import HEADS, head_config


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_a_file_of_its_own_that_it_can_run(head: str) -> None:
    """Both ends of each range give a configuration that the head takes."""
    space = load_space("tune", head)
    assert space.heads == (head,)
    for share in (0.0, 1.0):
        values = {name: at_quantile(wanted, share) for name, wanted in space.search.items()}
        trial = make_trial(space, head, values, 3)
        assert trial.head == head
        assert trial.epochs == 3
        head_config(head, trial.head_options)


def test_every_head_has_the_same_budget() -> None:
    """Else more samples would look like a better head."""
    spaces = [load_space("tune", head) for head in HEADS]
    assert len({(s.samples, s.population, s.keep, len(s.epochs)) for s in spaces}) == 1


@pytest.mark.parametrize("head", HEADS)
def test_paper_is_the_papers_one_configuration(head: str) -> None:
    """Adam 2e-4, 1e-5, cosine, 30 epochs, one bag; Cox's model has its own."""
    space = load_space("paper", head)
    assert space.samples == 1
    assert not space.search
    trial = make_trial(space, head, {}, space.budgets(head)[-1])
    if HEADS[head].trained:
        assert trial == paper_trial(head)
    if head == "abmil":
        assert (trial.lr, trial.weight_decay, trial.schedule) == (2e-4, 1e-5, "cosine")
        assert (trial.epochs, trial.batch_bags) == (30, 1)


@pytest.mark.parametrize("file", sorted(spaces_folder().glob("*.py")), ids=lambda p: p.stem)
def test_files_are_data(file: Path) -> None:
    """A docstring, one import and SPACE: nothing is computed."""
    head = file.stem if file.stem in HEADS else "abmil"
    assert isinstance(load_space(file.stem, head), Space)
    code = [line for line in file.read_text().splitlines() if line and line[0] not in ' "})']
    assert len(code) == 2
    assert code[0].startswith("from mstar.downstream.spaces import ")
    assert code[1].startswith("SPACE = Space(")


@given(share=st.floats(0, 1), low=st.floats(1e-6, 1.0), factor=st.floats(1.5, 1e4))
def test_values_stay_in_their_range(share: float, low: float, factor: float) -> None:
    """At every share."""
    high = low * factor
    for wanted in (Uniform(low, high), LogUniform(low, high)):
        assert low * (1 - 1e-9) <= at_quantile(wanted, share) <= high * (1 + 1e-9)
    assert at_quantile(Choice(("a", "b")), share) in ("a", "b")


def test_own_file_by_its_path(tmp_path: Path) -> None:
    """Anywhere, for the heads that it names."""
    own = tmp_path / "mine.py"
    own.write_text(
        "from mstar.downstream.spaces import Space\n"
        "SPACE = Space(heads=('abmil',), base={'lr': 1e-3, 'head_options.dropout': 0.1})\n"
    )
    trial = make_trial(load_space(str(own), "abmil"), "abmil", {}, 30)
    assert (trial.lr, trial.head_options) == (1e-3, {"dropout": 0.1})
    with pytest.raises(ConfigError, match="it is for abmil, not for dsmil"):
        load_space(str(own), "dsmil")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPACE = 3", "expected SPACE = Space"),
        ("from mstar.downstream.spaces import *\nSPACE = Space(samples=0)", "samples 0: expected"),
        ("from mstar.downstream.spaces import *\nSPACE = Space(samples=4)", "would all be equal"),
        ("from mstar.downstream.spaces import *\nSPACE = Space(base={'epochs': 3})", "Budgets"),
        ("from mstar.downstream.spaces import *\nSPACE = Space(epochs=(30, 10))", "rising"),
        ("from mstar.downstream.spaces import *\nSPACE = Uniform(2.0, 1.0)", "low below high"),
        ("from mstar.downstream.spaces import *\nSPACE = LogUniform(0.0, 1.0)", "0 < low"),
        ("from mstar.downstream.spaces import *\nSPACE = Choice(())", "a value or more"),
    ],
)
def test_nonsense_is_refused_by_its_file(tmp_path: Path, text: str, message: str) -> None:
    """With the file's name in front."""
    own = tmp_path / "mine.py"
    own.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_space(str(own), "abmil")
    assert str(own) in str(caught.value)


def test_unknown_name_lists_the_files() -> None:
    """So that the right one can be picked."""
    with pytest.raises(ConfigError, match="paper, porpoise, prototype, quick"):
        load_space("papre", "abmil")


def test_unknown_option_is_refused() -> None:
    """By the head, before anything is trained."""
    space = Space(base={"head_options.width": 3})
    with pytest.raises(ConfigError, match="no option 'width'"):
        make_trial(space, "abmil", {}, 1)


def test_heads_without_gradients_have_one_round() -> None:
    """More epochs would change nothing."""
    space = load_space("tune", "knn")
    assert space.budgets("knn") == (1,)
    assert dataclasses.replace(space, heads=()).budgets("abmil") == space.epochs
