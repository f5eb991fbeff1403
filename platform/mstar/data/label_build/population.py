"""Cases and slides that may be labelled.

TCGA: the cases of the cohort folder. Another data set: its slides.csv; without one, the ids of its
own tables, where slides are named after them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mstar.data.cases import Case, read_cases
from mstar.data.label_build.datasets import EXCLUDE, SLIDES, Dataset
from mstar.data.label_build.sources import Sources
from mstar.data.label_tables.matching import without_extension
from mstar.data.table_text import read_as_text
from mstar.data.tables import column_names
from mstar.errors import ConfigError
from mstar.schema import SlideRef
from mstar.storage import objects
from mstar.storage.manifest import read_slides


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One case.

    has_rna: whether the cohort has its gene expression.
    """

    case_id: str
    slides: tuple[str, ...]
    cancer_type: str = ""
    has_rna: bool = False
    os_months: float | None = None
    os_event: int | None = None


def members_of(sources: Sources, cohort: Sequence[Case]) -> list[Member]:
    """The cases of a data set, sorted by id; those of exclude.csv among them.

    Raises:
        ConfigError: nothing says which slides there are.
    """
    dataset = sources.dataset
    if dataset.barcodes:
        if not cohort:
            raise ConfigError(
                "--cohort: expected the cohort folder, whose cases.csv says which slides a TCGA "
                "case has, got none. Build it with `mstar cohort build`."
            )
        return sorted((_of_case(case) for case in cohort), key=lambda member: member.case_id)
    manifest = objects.join(sources.folder, SLIDES)
    if objects.exists(manifest):
        return _of_manifest(manifest)
    if not dataset.slide:
        raise ConfigError(
            f"{manifest}: expected the slides of this data set (path, slide_id, case_id), got "
            "nothing. Its tables do not say which slides a case has."
        )
    return _of_tables(sources, dataset)


def read_cohorts(folders: Iterable[str]) -> list[Case]:
    """The cases of cohort folders."""
    return [case for folder in folders for case in read_cases(objects.join(folder, "cases.csv"))]


def excluded_ids(sources: Sources) -> frozenset[str]:
    """The ids of exclude.csv, its first column; empty when there is none."""
    uri = objects.join(sources.folder, EXCLUDE)
    if not objects.exists(uri):
        return frozenset()
    first = column_names(uri)[0]
    cells = read_as_text(uri).column(first).to_pylist()
    return frozenset(without_extension(cell.strip()) for cell in cells if cell)


def _of_case(case: Case) -> Member:
    return Member(
        case_id=case.case_id,
        slides=case.slides,
        cancer_type=case.cancer_type,
        has_rna=case.rna is not None,
        os_months=case.os_months,
        os_event=case.os_event,
    )


def _of_manifest(uri: str) -> list[Member]:
    slides: dict[str, list[str]] = {}
    for entry in read_slides(uri):
        if isinstance(entry, SlideRef):
            slides.setdefault(entry.case_id or entry.slide_id, []).append(entry.slide_id)
    return [Member(case_id=case, slides=tuple(slides[case])) for case in sorted(slides)]


def _of_tables(sources: Sources, dataset: Dataset) -> list[Member]:
    """A case for every id of the tables; slides that have a patient are put together."""
    patients: dict[str, str] = {}
    for sheet in sources.all_sheets():
        column = next(filter(None, map(sheet.find, dataset.patients)), None)
        of = sheet.columns[column] if column else [None] * len(sheet.columns[sheet.id_column])
        for text, patient in zip(sheet.columns[sheet.id_column], of, strict=True):
            key = sources.key(text)
            if key is not None:
                patients[key.name] = patient or patients.get(key.name) or key.name
    slides: dict[str, list[str]] = {}
    for name, patient in patients.items():
        slides.setdefault(patient, []).append(dataset.slide.format(id=name))
    return [Member(case_id=case, slides=tuple(sorted(slides[case]))) for case in sorted(slides)]


def slide_key(dataset: Dataset) -> Callable[[str], str]:
    """From a slide's id to its name in tables that are keyed by slide."""
    return lambda slide: without_extension(slide.rpartition("/")[2])
