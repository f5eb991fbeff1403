"""What gets a vector: slides, cases, reports, rows of RNA, with what is known of each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mstar.data.cases import Case, read_cases
from mstar.downstream.encode_config import EncodeConfig
from mstar.errors import ConfigError
from mstar.features.store import FeatureStore
from mstar.storage import objects

TABLES = {"text": "report_vectors", "gene": "rna_vectors"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One row of a table of vectors.

    name: of the slide or the case.
    key: of the report or the row of RNA.
    """

    name: str
    case_id: str = ""
    slides: tuple[str, ...] = ()
    key: str = ""
    cancer_type: str = ""
    site: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The samples of one modality.

    missing: slides of the cohort that the store does not have (cases are left out for them).
    """

    name: str
    modality: str
    samples: tuple[Sample, ...]
    missing: int = 0


def tables_of(config: EncodeConfig) -> list[Table]:
    """The tables to be made, samples sorted by name.

    Raises:
        ConfigError: a table would be empty.
    """
    cases = read_cases(objects.join(config.cohort, "cases.csv")) if config.cohort else []
    made = []
    for modality in config.chosen:
        table = _slides(config, cases) if modality == "wsi" else _of_cases(modality, cases)
        if not table.samples:
            where = config.features if modality == "wsi" else config.cohort
            raise ConfigError(f"{where}: expected something to encode as {modality}, got nothing.")
        made.append(table)
    return made


def _slides(config: EncodeConfig, cases: Sequence[Case]) -> Table:
    done = set(FeatureStore.open(config.features).done_ids())
    name = f"{config.level}_vectors"
    if config.level == "case":
        whole = [case for case in cases if case.slides and done.issuperset(case.slides)]
        samples = [_sample(case.case_id, case, case.slides) for case in whole]
    elif cases:
        pairs = [(slide, case) for case in cases for slide in case.slides if slide in done]
        samples = [_sample(slide, case, (slide,)) for slide, case in pairs]
    else:
        samples = [Sample(name=slide, slides=(slide,)) for slide in done]
    missing = len({slide for case in cases for slide in case.slides} - done)
    return Table(name=name, modality="wsi", samples=_sorted(samples), missing=missing)


def _of_cases(modality: str, cases: Sequence[Case]) -> Table:
    keys = [(case, case.report if modality == "text" else case.rna) for case in cases]
    samples = [_sample(case.case_id, case, (), key) for case, key in keys if key]
    return Table(name=TABLES[modality], modality=modality, samples=_sorted(samples))


def _sample(name: str, case: Case, slides: tuple[str, ...], key: str = "") -> Sample:
    return Sample(
        name=name,
        case_id=case.case_id,
        slides=slides,
        key=key,
        cancer_type=case.cancer_type,
        site=case.site or "",
    )


def _sorted(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: sample.name))
