"""The latent factors of every case, from the seed alone.

A case's factors depend on (seed, index of the case) and on nothing else: not on the order of work,
the number of workers, or how many cases there are. Cancer type and mutation are balanced within
blocks of two cases a type, so that 8 cases already hold both; within a block their order is random.

    cancer type   equal shares
    grade         1, 2, 3, a third each
    mutation      `mutation_rate`, independent of the type unless `mutation_type_link` > 0
    pathway       uniform on 0 to 1, independent of the type unless `pathway_type_link` > 0
    hazard        0.55 grade + 0.50 mutation + 0.45 pathway + 0.50 of its own, each standardised;
                  standard deviation 1 (the squares sum to 1)
    site, number of slides, which modalities are missing: independent of all of these
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.survival import Survival, censoring_rate, draw_survival

GRADES = (1, 2, 3)
_OCCURRING = {1: (2,), 2: (1, 3), 3: GRADES}
"""By their number."""
HAZARD_WEIGHTS = {"grade": 0.55, "mutation": 0.5, "pathway": 0.45, "own": 0.4950}
_UNIFORM_SD = 1 / math.sqrt(12)


class Purpose(IntEnum):
    """What a stream of random numbers is for; part of its seed, so that parts do not disturb."""

    BLOCK = 1
    FACTORS = 2
    SURVIVAL = 3
    MODALITIES = 4
    SLIDE = 5
    REPORT = 6
    RNA = 7
    GENES = 8
    SITES = 9
    LABELS = 10
    SPLIT = 11
    SIZE = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFactors:
    """What is true of one case.

    hazard: log hazard, standardised over cases.
    pathway: activity, 0 to 1.
    num_slides: 0 when the case has none.
    """

    index: int
    case_id: str
    site: str
    cancer_type: str
    grade: int
    mutation: bool
    pathway: float
    hazard: float
    os_months: float
    os_event: int
    num_slides: int
    has_report: bool
    has_rna: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFactors:
    """One slide to be painted, before a pixel is drawn.

    seed: of `np.random.default_rng`, the only source of randomness of the slide.
    mpp: microns per pixel at level 0, of the site's scanner.
    """

    case: CaseFactors
    slide_id: str
    slide_index: int
    mpp: float
    width_px: int
    height_px: int
    seed: tuple[int, ...]


def rng_of(config: GenerateConfig, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """The random numbers of one purpose; `numbers` are a case, a slide, a gene."""
    return np.random.default_rng((config.seed, int(purpose), *numbers))


def iter_cases(config: GenerateConfig) -> Iterator[CaseFactors]:
    """Every case in order; nothing is kept."""
    rate = censoring_rate(config.censoring, config.hazard_strength)
    for index in range(config.cases):
        yield draw_case(config, index, rate)


def draw_case(config: GenerateConfig, index: int, censoring: float) -> CaseFactors:
    """The factors of case `index`; censoring: the rate of `survival.censoring_rate`."""
    rng = rng_of(config, Purpose.FACTORS, index)
    type_index, quantile = _balanced(config, index)
    mutation = bool(quantile < _mutation_probability(config, type_index))
    grade = int(rng.choice(_OCCURRING[config.num_grades]))
    pathway = _pathway(config, type_index, rng)
    site = f"S{int(rng.integers(config.num_sites)) + 1:02d}"
    hazard = _hazard(config, grade, mutation, pathway, float(rng.normal()))
    survival: Survival = draw_survival(
        rng_of(config, Purpose.SURVIVAL, index), hazard * config.hazard_strength, censoring
    )
    num_slides, has_report, has_rna = _modalities(config, index)
    return CaseFactors(
        index=index,
        case_id=f"GEN-{site}-{index:06d}",
        site=site,
        cancer_type=config.cancer_types[type_index],
        grade=grade,
        mutation=mutation,
        pathway=pathway,
        hazard=hazard,
        os_months=survival.months,
        os_event=survival.event,
        num_slides=num_slides,
        has_report=has_report,
        has_rna=has_rna,
    )


def slide_ids_of(case: CaseFactors) -> tuple[str, ...]:
    """The ids of a case's slides."""
    return tuple(f"{case.case_id}-{number + 1}" for number in range(case.num_slides))


def slides_of(config: GenerateConfig, case: CaseFactors) -> tuple[SlideFactors, ...]:
    """The slides of a case: size and resolution follow from site and chance, never from factors."""
    ids = slide_ids_of(case)
    return tuple(_slide(config, case, number, slide_id) for number, slide_id in enumerate(ids))


def _slide(config: GenerateConfig, case: CaseFactors, number: int, slide_id: str) -> SlideFactors:
    rng = rng_of(config, Purpose.SIZE, case.index, number)
    width, height = (int(side) for side in config.slide_px * rng.uniform(0.8, 1.2, 2))
    site = int(case.site[1:])
    scanner = rng_of(config, Purpose.SITES, site).uniform(0.97, 1.03)
    return SlideFactors(
        case=case,
        slide_id=slide_id,
        slide_index=number,
        mpp=round(float(config.mpp * scanner), 4),
        width_px=max(width, 2 * config.patch_px),
        height_px=max(height, 2 * config.patch_px),
        seed=(config.seed, int(Purpose.SLIDE), case.index, number),
    )


def _balanced(config: GenerateConfig, index: int) -> tuple[int, float]:
    """Type, and a uniform quantile of which each half is taken once a type in a block."""
    num_types = config.num_cancer_types
    block, place = divmod(index, 2 * num_types)
    rng = rng_of(config, Purpose.BLOCK, block)
    slot = int(rng.permutation(2 * num_types)[place])
    half = slot // num_types
    within = float(rng.uniform(size=2 * num_types)[place])
    return slot % num_types, (half + within) / 2


def _leaning(type_index: int) -> float:
    """Where a link pulls a type: even ones up, odd ones down."""
    return 1.0 - type_index % 2


def _mutation_probability(config: GenerateConfig, type_index: int) -> float:
    link = config.mutation_type_link
    return (1 - link) * config.mutation_rate + link * _leaning(type_index)


def _pathway(config: GenerateConfig, type_index: int, rng: np.random.Generator) -> float:
    """Uniform; a link narrows it to the type's own end of the range."""
    link = config.pathway_type_link
    free = float(rng.uniform())
    return round((1 - link) * free + link * (_leaning(type_index) + free) / 2, 6)


def _hazard(
    config: GenerateConfig, grade: int, mutation: bool, pathway: float, own: float
) -> float:
    rate = config.mutation_rate
    spread = math.sqrt(max(rate * (1 - rate), 0.01))
    parts = {
        "grade": (grade - 2) / math.sqrt(2 / 3),
        "mutation": (mutation - rate) / spread,
        "pathway": (pathway - 0.5) / _UNIFORM_SD,
        "own": own,
    }
    return round(sum(HAZARD_WEIGHTS[name] * part for name, part in parts.items()), 6)


def _modalities(config: GenerateConfig, index: int) -> tuple[int, bool, bool]:
    """Number of slides, report?, RNA?; a case that would have nothing keeps its report."""
    rng = rng_of(config, Purpose.MODALITIES, index)
    absent = rng.uniform(size=3) < (config.missing_wsi, config.missing_report, config.missing_rna)
    num_slides = 0 if absent[0] else int(rng.integers(1, config.slides_per_case_max + 1))
    return num_slides, bool(not absent[1] or absent.all()), bool(not absent[2])
