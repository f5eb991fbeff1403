"""Over tasks: one vote a cohort, Wilcoxon, ranks and the critical difference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import friedmanchisquare, wilcoxon

from mstar.downstream.statistics.across_tasks import (
    critical_difference,
    friedman_p,
    independent_cohorts,
    rank_methods,
    signed_rank_p,
    wilcoxon_across_cohorts,
)
from mstar.errors import CohortError

PATIENTS = {
    "brca_er": ["A1", "A2"],
    "brca_pr": ["A2", "A3"],
    "brca_os": ["A4", "A3"],  # shares nobody with brca_er, but a patient with brca_pr
    "brca_os_fusion": ["A4"],
    "luad_kras": ["B1"],
    "cptac_luad_kras": ["C1"],
    "zj1_luad_kras": ["D1"],
    "panda": ["E1"],
    "stad_yn1": ["F1"],
    "stad_yn3": ["G1"],
}
TRAINED_ON = {
    "cptac_luad_kras": "luad_kras",
    "zj1_luad_kras": "luad_kras",
    "stad_yn1": "aux_stad",
    "stad_yn3": "aux_stad",
}


def test_tasks_that_share_patients_or_a_model_are_one_cohort() -> None:
    """Receptors of one cohort, survival and fusion, internal and external, two externals."""
    cohorts = independent_cohorts(PATIENTS, trained_on=TRAINED_ON)
    assert cohorts == {
        "brca_er": "brca_er",
        "brca_pr": "brca_er",
        "brca_os": "brca_er",
        "brca_os_fusion": "brca_er",
        "luad_kras": "cptac_luad_kras",
        "cptac_luad_kras": "cptac_luad_kras",
        "zj1_luad_kras": "cptac_luad_kras",
        "panda": "panda",
        "stad_yn1": "stad_yn1",
        "stad_yn3": "stad_yn1",
    }
    stated = independent_cohorts(PATIENTS, trained_on=TRAINED_ON, same=[("panda", "brca_er")])
    assert stated["panda"] == stated["brca_os"]


@given(order=st.permutations(sorted(PATIENTS)))
@settings(max_examples=20, deadline=None)
def test_cohorts_do_not_depend_on_the_order_of_tasks(order: list[str]) -> None:
    """Named after their first task by name."""
    shuffled = {task: PATIENTS[task] for task in order}
    expected = independent_cohorts(PATIENTS, trained_on=TRAINED_ON)
    assert independent_cohorts(shuffled, trained_on=TRAINED_ON) == expected


def test_a_cohort_with_many_tasks_has_one_vote() -> None:
    """Ten tasks of one cohort are no evidence; scipy on the cohorts' means is the test."""
    cohorts = {f"brca_{number}": "brca" for number in range(10)}
    differences = dict.fromkeys(cohorts, 0.05)
    alone = wilcoxon_across_cohorts(differences, cohorts)
    assert (alone.p, alone.smallest_p) == (1.0, 1.0)
    others = dict(zip("abcdefg", (0.01, 0.02, -0.005, 0.04, 0.03, 0.06, float("nan")), strict=True))
    test = wilcoxon_across_cohorts(differences | others, cohorts | {name: name for name in others})
    assert test.differences["brca"] == pytest.approx(0.05)
    assert "g" not in test.differences
    expected = wilcoxon([0.05, 0.01, 0.02, -0.005, 0.04, 0.03, 0.06], method="exact").pvalue
    assert test.p == pytest.approx(expected)
    assert test.smallest_p == pytest.approx(2 / 2**7)


def test_signed_rank_of_nothing_and_of_zeros() -> None:
    """Undefined, and no difference."""
    assert np.isnan(signed_rank_p(np.array([])))
    assert signed_rank_p(np.zeros(5)) == 1.0
    assert 0.0 < signed_rank_p(np.array([1.0, 1.0, 1.0, -2.0, 3.0, 0.0])) <= 1.0


def test_critical_differences_are_those_of_the_table() -> None:
    """Demšar 2006, table 5a: q at 0.05 for 2 to 10 methods."""
    table = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for methods, quantile in enumerate(table, start=2):
        expected = quantile * np.sqrt(methods * (methods + 1) / (6 * 14))
        assert critical_difference(methods, 14) == pytest.approx(expected, abs=2e-3)
    assert np.isnan(critical_difference(3, 1))


@given(seed=st.integers(0, 10_000), cohorts=st.integers(2, 12), methods=st.integers(3, 6))
@settings(max_examples=20, deadline=None)
def test_friedman_equals_scipy(seed: int, cohorts: int, methods: int) -> None:
    """Ties included."""
    from scipy.stats import rankdata

    values = np.random.default_rng(seed).integers(0, 4, (cohorts, methods))
    ranks = np.stack([rankdata(row) for row in values])
    if (ranks == ranks[:, :1]).all():
        assert friedman_p(ranks) == 1.0
    else:
        assert friedman_p(ranks) == pytest.approx(friedmanchisquare(*values.T).pvalue)


def test_ranks_are_averaged_over_cohorts_not_tasks() -> None:
    """Three tasks of one cohort against two other cohorts."""
    values = {
        "er": {"uni": 0.9, "mstar": 0.8},
        "pr": {"uni": 0.9, "mstar": 0.8},
        "her2": {"uni": 0.9, "mstar": 0.8},
        "luad": {"uni": 0.7, "mstar": 0.8},
        "brier": {"uni": 0.3, "mstar": 0.2},  # lower is better
        "half": {"uni": 0.5},
    }
    cohorts = {task: "brca" if task in ("er", "pr", "her2") else task for task in values}
    better = {task: task != "brier" for task in values}
    ranking = rank_methods(values, cohorts, higher_is_better=better)
    assert ranking.methods == ("mstar", "uni")
    assert ranking.average_ranks == pytest.approx((4 / 3, 5 / 3))
    assert ranking.cohorts == 3
    assert ranking.tasks_left_out == ("half",)
    assert ranking.cliques == (("mstar", "uni"),)
    with pytest.raises(CohortError, match="No task has a value of every one of mstar, uni"):
        rank_methods(
            {"half": {"uni": 0.5, "mstar": float("nan")}}, cohorts, higher_is_better=better
        )


def test_cliques_are_the_bars_of_the_figure() -> None:
    """Methods far apart are in no bar together; runs inside others are not drawn."""
    names = ["a", "b", "c", "d"]
    order = [["a", "b", "c", "d"]] * 10 + [["b", "a", "d", "c"]] * 9
    values = {
        f"t{number}": {m: 1.0 - row.index(m) / 10 for m in names}
        for number, row in enumerate(order)
    }
    ranking = rank_methods(
        values, {task: task for task in values}, higher_is_better=dict.fromkeys(values, True)
    )
    assert ranking.cliques == (("a", "b"), ("c", "d"))
    assert ranking.friedman_p < 1e-6
    assert ranking.critical_difference == pytest.approx(critical_difference(4, 19))
