"""What a split must never be, as errors that name the ids and the way out.

A patient is a case, but for TCGA: ids that are barcodes are of one patient when their first three
parts are the same, whatever sample, portion or slide follows.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache

from mstar.data.barcodes import parse_barcode
from mstar.data.cases import Case
from mstar.errors import SplitError

PARTS = ("train", "val", "test")
HELD_OUT = ("val", "test")
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SHOWN = 5


@lru_cache(maxsize=1 << 16)  # a case comes again in every fold
def patient_of(case_id: str) -> str:
    """The patient a case id is of: `TCGA-A2-A0T2` of `TCGA-A2-A0T2-01A`, other ids themselves."""
    barcode = parse_barcode(case_id)
    return barcode.patient if barcode else case_id


def named(ids: Collection[str]) -> str:
    """How many there are and the first few: `7 cases (a, b, c, d, e, …)`."""
    first = sorted(ids)[:_SHOWN]
    more = ", …" if len(ids) > _SHOWN else ""
    return f"{len(ids):,} {'case' if len(ids) == 1 else 'cases'} ({', '.join(first)}{more})"


def part_name(text: str, where: str) -> str:
    """train, val or test, from the spellings that tables use.

    Raises:
        SplitError: it is none of them.
    """
    part = PART_NAMES.get(text.strip().lower())
    if part is None:
        raise SplitError(
            f"{where}: expected one of {', '.join(PART_NAMES)}, got {text!r}. Rename it; a table "
            "of numbered folds needs a column part that says what each row is in its fold."
        )
    return part


def check_patients(cases: Iterable[Case], where: str) -> None:
    """Raises SplitError when two cases are of one patient: they could fall into two parts."""
    owners = _groups((patient_of(case.case_id), case.case_id) for case in cases)
    for patient, ids in _several(owners):
        raise SplitError(
            f"{where}: patient {patient} has {named(ids)}; {_count(owners)} patients like this. "
            "Merge them into one case with all their slides."
        )


def check_slides(cases: Iterable[Case], where: str) -> None:
    """Raises SplitError when a slide is in two cases: it could be trained and tested on."""
    owners = _groups((slide, case.case_id) for case in cases for slide in case.slides)
    for slide, ids in _several(owners):
        raise SplitError(
            f"{where}: slide {slide} is in {named(ids)}; {_count(owners)} slides like this. "
            "Give each slide to the patient it is of."
        )


def check_one_part(parts: Iterable[tuple[str, str]], where: str) -> None:
    """Raises SplitError when a patient is in two parts of one fold.

    parts: (case id, part) of one fold; a case may come again with the same part.
    """
    found = _groups((patient_of(case_id), part) for case_id, part in parts)
    for patient, names in _several(found):
        raise SplitError(
            f"{where}: patient {patient} is in {' and '.join(sorted(names))}; {_count(found)} "
            "patients like this. Put all rows of a patient into one part."
        )


def check_tested_once(folds: Mapping[str, Iterable[str]], where: str) -> None:
    """Raises SplitError when a patient is tested in two folds.

    folds: fold → the cases that it tests.
    """
    found = _groups((patient_of(case), fold) for fold, cases in folds.items() for case in cases)
    for patient, names in _several(found):
        raise SplitError(
            f"{where}: patient {patient} is tested in folds {' and '.join(sorted(names))}; "
            f"{_count(found)} patients like this. Each may be tested in one fold only."
        )


def check_known(case_ids: Iterable[str], cases: Iterable[Case], where: str) -> None:
    """Raises SplitError when a split names cases that the case table does not have."""
    missing = set(case_ids) - {case.case_id for case in cases}
    if missing:
        raise SplitError(
            f"{where}: {named(missing)} of the split are not in the case table. Add them to it, "
            "or make the split from the table as it is now."
        )


def check_unseen(held_out: Iterable[str], pretraining: Iterable[str], where: str) -> None:
    """Raises SplitError when validation or test patients of a task were seen in pretraining.

    held_out: cases that the task validates or tests on.
    pretraining: cases that pretraining sees.
    """
    seen = find_seen(held_out, pretraining)
    if seen:
        raise SplitError(
            f"{where}: {named(seen)} in validation or test are seen in pretraining. Cut the task "
            "from the split registry, or make the registry with this table among its --tasks "
            "before pretraining. --allow-seen is for encoders not pretrained on this cohort."
        )


def find_seen(held_out: Iterable[str], pretraining: Iterable[str]) -> set[str]:
    """The held-out cases whose patients pretraining sees."""
    patients = {patient_of(case) for case in pretraining}
    return {case for case in held_out if patient_of(case) in patients}


def _groups(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = defaultdict(set)
    for key, value in pairs:
        groups[key].add(value)
    return groups


def _several(groups: Mapping[str, set[str]]) -> Iterator[tuple[str, set[str]]]:
    return ((key, groups[key]) for key in sorted(groups) if len(groups[key]) > 1)


def _count(groups: Mapping[str, set[str]]) -> str:
    return f"{sum(len(group) > 1 for group in groups.values()):,}"
