"""Which part each sample of a task is in, and who says so.

In this order: the table's own folds when the caller asks for them as published; a named split of
the cohort; the split registry, wherever it knows the cases; the table's own folds. A table's own
fold that contradicts split or registry is an error, and so is a patient in two parts.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mstar.data.label_tables.samples import ONE_FOLD, LabelTable, Sample
from mstar.data.splits.leaks import HELD_OUT, patient_of
from mstar.data.splits.registry import SplitRegistry, Unassigned
from mstar.data.splits.schemes import Split
from mstar.data.splits.stratify import assign
from mstar.data.tasks import Task
from mstar.errors import SplitError

NO_PART = ""
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitChoice:
    """Who may say which part a sample is in.

    registry: of the cohort; governs the cases that it knows.
    split: a further split of the cohort, in its place.
    published: take the table's own folds, even if they contradict the registry or leak.
    unassigned: what becomes of cases that the registry gives no part (pretraining saw them).
    val_share: share of the training patients that validates where the split has no such part.
    seed: of that draw.
    """

    registry: SplitRegistry | None = None
    split: Split | None = None
    published: bool = False
    unassigned: Unassigned = "train"
    val_share: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Fold → the part of every sample, in their order; "" is no part.

    source: who says so, in words.
    digest: of the registry or split that says so, else of the parts.
    """

    folds: Mapping[str, tuple[str, ...]]
    source: str
    digest: str


def cut_folds(task: Task, table: LabelTable, samples: Sequence[Sample], choice: SplitChoice) -> Cut:
    """The parts of a task's samples, with a validation part in every fold.

    Raises:
        SplitError: nobody says it, or two say different things.
    """
    cut = _cut(task, table, samples, choice)
    if task.split_policy == "train_only":
        cut = replace(cut, folds={name: _untested(p) for name, p in cut.folds.items()})
    if task.split_policy == "test_fold":
        return replace(cut, folds={name: _tested(p) for name, p in cut.folds.items()})
    folds = {}
    for name, parts in cut.folds.items():
        carve = "val" not in parts and "train" in parts
        folds[name] = _with_val(task, name, samples, parts, choice) if carve else parts
    if folds != cut.folds:
        share = f"{choice.val_share:.0%} of the training patients validate"
        return replace(cut, folds=folds, source=f"{cut.source}; {share}")
    return cut


def leaked_patients(
    table: LabelTable, samples: Sequence[Sample], cut: Cut, *, allowed: bool
) -> frozenset[str]:
    """The patients that are in two parts of a fold.

    Raises:
        SplitError: there are some and that is not allowed.
    """
    leaked: set[str] = set()
    for name, parts in cut.folds.items():
        places: dict[str, dict[str, int]] = defaultdict(dict)
        for sample, part in zip(samples, parts, strict=True):
            if part:
                places[sample.patient].setdefault(part, sample.row)
        several = sorted(patient for patient, rows in places.items() if len(rows) > 1)
        leaked |= set(several)
        if several and not allowed:
            rows = places[several[0]].items()
            shown = " and ".join(f"{part} (row {row:,})" for part, row in rows)
            raise SplitError(
                f"{table.uri}: fold {name}: patient {several[0]} is in {shown}; "
                f"{len(several):,} patients like this. Put all rows of a patient into one part, or "
                "run a published split as it is with --published-split: its row is marked then."
            )
    return frozenset(leaked)


def seen_in_pretraining(
    samples: Sequence[Sample], cut: Cut, registry: SplitRegistry | None
) -> frozenset[str]:
    """The patients that a fold validates or tests on though pretraining sees them."""
    if registry is None:
        return frozenset()
    seen = {patient_of(case) for case in registry.pretraining}
    return frozenset(
        sample.patient
        for parts in cut.folds.values()
        for sample, part in zip(samples, parts, strict=True)
        if part in HELD_OUT and patient_of(sample.case_id) in seen
    )


def governed(registry: SplitRegistry | None, samples: Sequence[Sample]) -> bool:
    """Whether the registry knows any of the samples."""
    return registry is not None and bool(registry_parts(registry, samples))


def registry_parts(
    registry: SplitRegistry, samples: Sequence[Sample]
) -> dict[str, tuple[str, bool]]:
    """Case → (part, whether pretraining sees it), by id or else by patient; unknown ones not."""
    of_case = {row.case_id: (row.part, row.pretraining) for row in registry.rows}
    of_patient = {patient_of(case): place for case, place in of_case.items()}
    found = {}
    for sample in samples:
        place = of_case.get(sample.case_id) or of_patient.get(patient_of(sample.case_id))
        if place is not None:
            found[sample.case_id] = place
    return found


def _cut(task: Task, table: LabelTable, samples: Sequence[Sample], choice: SplitChoice) -> Cut:
    own = {n: tuple(s.folds.get(n, NO_PART) for s in samples) for n in table.folds}
    if choice.published and own:
        source = f"the published split of {table.uri}"
        return Cut(folds=own, source=source, digest=_digest(samples, own))
    if choice.split is not None:
        return _from_split(table, samples, own, choice.split)
    if choice.registry is not None and governed(choice.registry, samples):
        return _from_registry(table, samples, own, choice.registry, choice.unassigned)
    if own:
        source = f"the split of {table.uri}"
        return Cut(folds=own, source=source, digest=_digest(samples, own))
    if task.split_policy == "train_only":
        parts = {ONE_FOLD: ("train",) * len(samples)}
        return Cut(folds=parts, source="all of it trains", digest=_digest(samples, parts))
    if task.split_policy == "test_fold":  # as the authors publish it: the test fold alone
        parts = {ONE_FOLD: ("test",) * len(samples)}
        return Cut(folds=parts, source="all of it is tested", digest=_digest(samples, parts))
    raise SplitError(
        f"{table.uri}: expected a part of every row, got neither a column of the table that says "
        f"it nor a split registry that knows its cases (task {task.task_id}: {task.split_policy}). "
        "Make one with `mstar cohort split C --preset mstar` and give --cohort C, or a further "
        "one with `--scheme label|survival|kfold --name NAME` and give --split NAME."
    )


def _from_split(
    table: LabelTable, samples: Sequence[Sample], own: Mapping[str, tuple[str, ...]], split: Split
) -> Cut:
    folds = {}
    for fold in split.folds:
        by_patient = {patient_of(case): part for case, part in fold.parts.items()}
        folds[fold.name] = tuple(
            fold.parts.get(s.case_id) or by_patient.get(patient_of(s.case_id), NO_PART)
            for s in samples
        )
    where = f"split {split.name}"
    unknown = [s for s, *parts in zip(samples, *folds.values(), strict=True) if not any(parts)]
    if unknown:
        raise SplitError(
            f"{table.uri}: row {unknown[0].row:,}, case {unknown[0].case_id}: expected a case of "
            f"{where}; {len(unknown):,} cases are not in it. Make the split of this table."
        )
    for parts in own.values():
        _refuse_disagreement(table, samples, parts, next(iter(folds.values())), where)
    return Cut(folds=folds, source=where, digest=split.digest)


def _from_registry(
    table: LabelTable,
    samples: Sequence[Sample],
    own: Mapping[str, tuple[str, ...]],
    registry: SplitRegistry,
    unassigned: Unassigned,
) -> Cut:
    """The registry's parts; those of the table where the registry has none."""
    places = registry_parts(registry, samples)
    free = {"train": "train", "drop": NO_PART, "error": NO_PART}[unassigned]
    folds: dict[str, tuple[str, ...]] = {}
    where = f"split registry {registry.name}"
    for name in own or (ONE_FOLD,):
        stated = own.get(name, (NO_PART,) * len(samples))
        said = [places.get(sample.case_id, (NO_PART, False)) for sample in samples]
        _refuse_disagreement(table, samples, stated, [part for part, _ in said], where)
        _refuse_seen(table, samples, stated, [seen for _, seen in said])
        folds[name] = tuple(
            part or mine or (free if sample.case_id in places else NO_PART)
            for sample, (part, _), mine in zip(samples, said, stated, strict=True)
        )
    lost = [
        sample
        for sample, *parts in zip(samples, *folds.values(), strict=True)
        if not any(parts) and (sample.case_id not in places or unassigned == "error")
    ]
    if lost:
        raise SplitError(
            f"{table.uri}: row {lost[0].row:,}, case {lost[0].case_id}: expected a part in {where} "
            f"or in the table, got none; {len(lost):,} cases like this. Place new cases with "
            "`mstar cohort split C --preset mstar --extend`."
        )
    return Cut(folds=folds, source=where, digest=registry.digest)


def _refuse_disagreement(
    table: LabelTable,
    samples: Sequence[Sample],
    stated: Sequence[str],
    said: Sequence[str],
    where: str,
) -> None:
    rows = list(zip(samples, stated, said, strict=True))
    wrong = [(s, mine, theirs) for s, mine, theirs in rows if mine and theirs and mine != theirs]
    if wrong:
        sample, mine, theirs = wrong[0]
        raise SplitError(
            f"{table.uri}: row {sample.row:,}, case {sample.case_id}: expected part {theirs} as "
            f"{where} says, got {mine}; {len(wrong):,} rows like this. Drop the table's own fold, "
            "or ask for it with --published-split: its row is marked then."
        )


def _refuse_seen(
    table: LabelTable, samples: Sequence[Sample], stated: Sequence[str], seen: Sequence[bool]
) -> None:
    rows = zip(samples, stated, seen, strict=True)
    wrong = [sample for sample, part, was in rows if part in HELD_OUT and was]
    if wrong:
        raise SplitError(
            f"{table.uri}: row {wrong[0].row:,}, case {wrong[0].case_id}: held out here, but "
            f"pretraining sees it; {len(wrong):,} rows like this. Make the registry with this "
            "table among its --tasks before pretraining, or run it with --published-split."
        )


def _untested(parts: Sequence[str]) -> tuple[str, ...]:
    """Auxiliary tasks test nothing: what a registry keeps for tests stays unused."""
    return tuple(NO_PART if part == "test" else part for part in parts)


def _tested(parts: Sequence[str]) -> tuple[str, ...]:
    """Nothing is trained: the other parts stay unused."""
    return tuple(part if part == "test" else NO_PART for part in parts)


def _with_val(
    task: Task, fold: str, samples: Sequence[Sample], parts: Sequence[str], choice: SplitChoice
) -> tuple[str, ...]:
    """A share of the training patients validates, stratified by class or event."""
    rows = list(zip(samples, parts, strict=True))
    strata = {s.patient: (str(s.label if s.event is None else s.event),)
              for s, part in rows if part == "train"}  # fmt: skip
    ratio = {"train": 1 - choice.val_share, "val": choice.val_share}
    purpose = f"val of {task.task_id} in {fold}"
    drawn = assign(strata, ratio, seed=choice.seed, purpose=purpose)
    return tuple(drawn[s.patient] if part == "train" else part for s, part in rows)


def _digest(samples: Sequence[Sample], folds: Mapping[str, Sequence[str]]) -> str:
    """The sha256 of (fold, case, slides, part), whatever the order of the rows."""
    lines = sorted(
        json.dumps([name, sample.case_id, sample.slides, part], ensure_ascii=False)
        for name, parts in folds.items()
        for sample, part in zip(samples, parts, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
