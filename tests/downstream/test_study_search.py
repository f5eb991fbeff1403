"""Inside one study: how many configurations, how long each, who goes on, and the same again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.downstream.search import FAILED, StudySearch
from mstar.downstream.spaces import Choice, LogUniform, Space

SEARCH = {"lr": LogUniform(1e-5, 1e-2), "optimizer": Choice(("adam", "sgd"))}


def make_search(key: str = "t/e/abmil", **fields: object) -> StudySearch:
    """A search of eleven trials in populations of four, one in three going on."""
    given_fields: dict[str, object] = {
        "search": SEARCH,
        "samples": 11,
        "population": 4,
        "epochs": (2, 6, 18),
    }
    space = Space(**(given_fields | fields))  # type: ignore[arg-type]
    return StudySearch(space, head="abmil", key=key, budgets=space.epochs)


def run_search(search: StudySearch, score: object) -> list[tuple[tuple[int, ...], int, bool]]:
    """Run to the end; the rounds: trials, epochs and whether it was the full length."""
    rounds = []
    while (round_ := search.next_round()) is not None:
        search.tell([score(t, c) for t, c in zip(round_.trials, round_.configs, strict=True)])  # type: ignore[operator]
        rounds.append((round_.trials, round_.configs[0].epochs, round_.full))
    return rounds


@settings(max_examples=25)
@given(scores=st.lists(st.floats(-1, 1), min_size=11, max_size=11))
def test_budget_does_not_depend_on_scores(scores: list[float]) -> None:
    """An easy task and a hard one train as many configurations, as many of them in full."""
    search = make_search()
    rounds = run_search(search, lambda trial, config: scores[trial])
    assert [(len(trials), epochs) for trials, epochs, _ in rounds] == search.num_fits()
    assert search.num_fits() == [
        (4, 2), (2, 6), (1, 18),
        (4, 2), (2, 6), (1, 18),
        (3, 2), (1, 6), (1, 18),
    ]  # fmt: skip
    assert sorted(search.ended) == list(range(11))
    assert sum(end.full for end in search.ended.values()) == 3


@settings(max_examples=25)
@given(scores=st.permutations(range(11)))
def test_the_best_of_each_population_goes_on(scores: list[int]) -> None:
    """And the best of all full-length ones wins."""
    search = make_search()
    run_search(search, lambda trial, config: float(scores[trial]))
    groups = [range(4), range(4, 8), range(8, 11)]
    expected = {max(group, key=lambda trial: scores[trial]) for group in groups}
    assert {trial for trial, end in search.ended.items() if end.full} == expected
    assert search.best is not None
    assert search.best.trial == max(range(11), key=lambda trial: scores[trial])


def test_schedule_length_follows_the_budget() -> None:
    """A configuration that goes on is trained anew: a cosine of the new length, else equal."""
    search = make_search()
    first = search.next_round()
    assert first is not None
    search.tell([0.0, 3.0, 1.0, 2.0])
    second = search.next_round()
    assert second is not None
    assert second.trials == (1, 3)
    for trial, config in zip(second.trials, second.configs, strict=True):
        before = first.configs[trial]
        assert (before.epochs, config.epochs) == (2, 6)
        assert before.lr == config.lr
        assert before.optimizer == config.optimizer


def test_first_of_equal_ones_wins() -> None:
    """Whatever the order of answers."""
    search = make_search()
    run_search(search, lambda trial, config: 0.5)
    assert search.best is not None
    assert search.best.trial == 0


def test_failed_configurations_do_not_go_on() -> None:
    """A population without any other has nobody to go on; with all failed nobody wins."""
    search = make_search()
    rounds = run_search(search, lambda trial, config: FAILED if trial < 4 else float(trial))
    assert [trials for trials, _, _ in rounds][:2] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert search.best is not None
    assert search.best.trial == 10
    none = make_search()
    run_search(none, lambda trial, config: FAILED)
    assert none.best is None
    assert len(none.ended) == 11


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_told_the_same_it_asks_for_the_same(sampler: str) -> None:
    """So a killed sweep is replayed from its journal; another study draws others."""
    if sampler == "tpe":
        pytest.importorskip("optuna")

    def history(key: str, bias: float) -> list[tuple[float, str]]:
        search = make_search(key, sampler=sampler)
        seen = []

        def score(trial: int, config: object) -> float:
            seen.append((config.lr, config.optimizer))  # type: ignore[attr-defined]
            return -abs(math.log10(config.lr) + bias)  # type: ignore[attr-defined]

        run_search(search, score)
        return seen

    assert history("a/e/abmil", 3.0) == history("a/e/abmil", 3.0)
    assert history("a/e/abmil", 3.0) != history("b/e/abmil", 3.0)


def test_tpe_learns_within_a_study() -> None:
    """Later trials lie nearer the optimum than the first, random, population."""
    pytest.importorskip("optuna")
    search = make_search(sampler="tpe", samples=40, population=8, epochs=(3,))
    lrs: list[float] = []

    def score(trial: int, config: object) -> float:
        lrs.append(config.lr)  # type: ignore[attr-defined]
        return -abs(math.log10(config.lr) + 3.0)  # type: ignore[attr-defined]

    run_search(search, score)
    away = [abs(math.log10(lr) + 3.0) for lr in lrs]
    assert sum(away[24:]) / 16 < 0.6 * sum(away[:8]) / 8


def test_a_space_without_search_is_one_trial() -> None:
    """Whatever number is asked for: equal configurations are no search."""
    search = StudySearch(Space(), head="abmil", key="k", budgets=(30,), samples=7)
    assert search.samples == 1
    assert run_search(search, lambda trial, config: 1.0) == [((0,), 30, True)]
