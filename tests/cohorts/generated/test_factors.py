"""Latent factors: one case at a time from the seed, balanced, independent unless linked."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, iter_cases, slides_of
from mstar.errors import ConfigError

MANY = 4000


def make(**fields: object) -> GenerateConfig:
    return GenerateConfig(out="unused", **fields)  # type: ignore[arg-type]


def cases_of(**fields: object) -> list[CaseFactors]:
    return list(iter_cases(make(**fields)))


@pytest.fixture(scope="module")
def many() -> list[CaseFactors]:
    return cases_of(cases=MANY, seed=3)


def chi2_p_over_dof(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's chi² divided by its degrees of freedom, 1 in expectation when independent."""
    rows, columns = np.unique(first), np.unique(second)
    seen = np.array([[np.sum((first == r) & (second == c)) for c in columns] for r in rows])
    expected = seen.sum(1, keepdims=True) * seen.sum(0, keepdims=True) / seen.sum()
    dof = (len(rows) - 1) * (len(columns) - 1)
    return float(((seen - expected) ** 2 / expected).sum() / dof)


def c_index(hazard: np.ndarray, months: np.ndarray, event: np.ndarray) -> float:
    """Harrell's, over all comparable pairs."""
    earlier = (months[:, None] < months[None]) & (event[:, None] == 1)
    higher = hazard[:, None] > hazard[None]
    return float((higher & earlier).sum() / earlier.sum())


def column(cases: list[CaseFactors], name: str) -> np.ndarray:
    return np.array([getattr(case, name) for case in cases])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    cases=st.integers(8, 60),
    num_types=st.integers(1, 8),
    rate=st.floats(0, 1),
)
def test_a_case_does_not_depend_on_how_many_there_are(
    seed: int, cases: int, num_types: int, rate: float
) -> None:
    fields = {"seed": seed, "num_cancer_types": num_types, "mutation_rate": rate}
    few, more = cases_of(cases=cases, **fields), cases_of(cases=cases + 9, **fields)
    assert more[:cases] == few
    assert len({case.case_id for case in more}) == len(more)
    block = few[: min(cases, 2 * num_types) // (2 * num_types) * 2 * num_types]
    for code in {case.cancer_type for case in block}:
        assert sum(case.cancer_type == code for case in block) == 2


def test_another_seed_gives_other_factors() -> None:
    assert cases_of(seed=1) == cases_of(seed=1)
    assert cases_of(seed=1) != cases_of(seed=2)


def test_eight_cases_hold_every_type_with_and_without_the_mutation() -> None:
    cases = cases_of(cases=8)
    assert len({(case.cancer_type, case.mutation) for case in cases}) == 8


def test_factors_are_independent_of_one_another_and_of_the_site(many: list[CaseFactors]) -> None:
    columns = {
        "type": column(many, "cancer_type"),
        "grade": column(many, "grade"),
        "mutation": column(many, "mutation"),
        "pathway": (column(many, "pathway") * 4).astype(int),
        "site": column(many, "site"),
        "slides": column(many, "num_slides"),
        "report": column(many, "has_report"),
        "rna": column(many, "has_rna"),
    }
    names = list(columns)
    worst = max(
        (chi2_p_over_dof(columns[a], columns[b]), a, b)
        for place, a in enumerate(names)
        for b in names[place + 1 :]
    )
    assert worst[0] < 8, worst  # 1 in expectation; 8 for one degree of freedom is p = 0.005, of 28


@pytest.mark.parametrize("factor", ["mutation", "pathway"])
def test_a_link_ties_a_factor_to_the_type(factor: str) -> None:
    measured = []
    for link in (0.0, 0.5, 1.0):
        cases = cases_of(cases=800, **{f"{factor}_type_link": link})
        values = column(cases, factor).astype(float)
        means = [values[column(cases, "cancer_type") == t].mean() for t in make().cancer_types]
        measured.append(max(means) - min(means))
    none, half, whole = measured
    reach = 1.0 if factor == "mutation" else 0.5
    assert none < 0.15
    assert half == pytest.approx(reach / 2, abs=0.1)
    assert whole == pytest.approx(reach, abs=0.06)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1.0])
def test_the_mutation_has_its_rate(rate: float) -> None:
    found = column(cases_of(cases=MANY, mutation_rate=rate), "mutation").mean()
    assert found == pytest.approx(rate, abs=4 * math.sqrt(0.25 / MANY))


def test_hazard_is_standardised_and_holds_its_parts(many: list[CaseFactors]) -> None:
    hazard = column(many, "hazard")
    assert abs(hazard.mean()) < 0.06
    assert hazard.std() == pytest.approx(1, abs=0.04)
    for name, weight in {"grade": 0.55, "mutation": 0.5, "pathway": 0.45}.items():
        seen = np.corrcoef(hazard, column(many, name).astype(float))[0, 1]
        assert seen == pytest.approx(weight, abs=0.05), name


def test_true_hazard_orders_survival_as_well_as_stated(many: list[CaseFactors]) -> None:
    some = many[:1500]
    hazard, months, event = (column(some, n) for n in ("hazard", "os_months", "os_event"))
    assert 0.74 < c_index(hazard, months, event) < 0.80  # docs: 0.77
    shuffled = np.random.default_rng(0).permutation(hazard)
    assert c_index(shuffled, months, event) == pytest.approx(0.5, abs=0.04)


def test_without_hazard_strength_survival_is_chance() -> None:
    cases = cases_of(cases=1500, hazard_strength=0.0)
    found = c_index(*(column(cases, n) for n in ("hazard", "os_months", "os_event")))
    assert found == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.7])
@pytest.mark.parametrize("strength", [0.0, 1.2, 3.0])
def test_censoring_is_as_stated(share: float, strength: float) -> None:
    cases = cases_of(cases=2500, censoring=share, hazard_strength=strength)
    assert 1 - column(cases, "os_event").mean() == pytest.approx(share, abs=0.045)
    assert column(cases, "os_months").min() > 0


def test_modalities_are_missing_as_stated_and_no_case_is_empty() -> None:
    cases = cases_of(cases=MANY, missing_wsi=0.5, missing_report=0.5, missing_rna=0.5)
    for name, share in {"num_slides": 0.5, "has_rna": 0.5, "has_report": 0.5 + 0.125}.items():
        assert (column(cases, name) > 0).mean() == pytest.approx(share, abs=0.04), name
    assert all(case.num_slides or case.has_report or case.has_rna for case in cases)
    alone = cases_of(missing_wsi=1.0, missing_report=1.0, missing_rna=1.0)
    assert all(case.has_report and not case.has_rna and not case.num_slides for case in alone)


def test_slides_differ_in_seed_and_size_but_a_site_has_one_scanner(many: list[CaseFactors]) -> None:
    config = make(cases=MANY, seed=3)
    slides = [slide for case in many[:400] for slide in slides_of(config, case)]
    assert len({slide.seed for slide in slides}) == len({s.slide_id for s in slides}) == len(slides)
    assert len({(slide.width_px, slide.height_px) for slide in slides}) > len(slides) * 0.9
    assert len({(slide.case.site, slide.mpp) for slide in slides}) == config.num_sites
    assert all(abs(slide.mpp / config.mpp - 1) <= 0.03 for slide in slides)
    sides = np.array([(slide.width_px, slide.height_px) for slide in slides])
    assert sides.min() >= 0.8 * config.slide_px - 1
    assert sides.max() <= 1.2 * config.slide_px


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cases", 7),
        ("cases", 10_001),
        ("mutation_rate", 1.5),
        ("censoring", float("nan")),
        ("num_cancer_types", 9),
        ("slide_px", 300),
        ("noise", -1.0),
        ("rna_strength", -0.1),
        ("num_genes", 10),
    ],
)
def test_what_cannot_be_made_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')}: expected .* got"):
        replace(make(), **{field: value})  # type: ignore[arg-type]
