"""Which cases stage 1 trains and validates on, and what is wrong with the others.

What can be told without reading whole files is checked before the first step: patches, reports,
expression rows, dimensions. NaN among features is seen when a bag is read (`stage1_batches`), and
so are the patches of a store that is not on a disk: to look would mean to fetch all of it. An
unusable input counts as a missing modality and is named; a case with fewer than two modalities is
left out, since it has nothing to be contrasted with.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mstar.data.bags import BagReader
from mstar.data.cases import Case, read_cases
from mstar.data.reports import ReportTable
from mstar.data.rna.store import ExpressionStore
from mstar.data.splits.registry import SplitRegistry, has_registry, read_registry
from mstar.errors import FeatureError, TrainingError
from mstar.pretrain.batch_plan import CaseKind
from mstar.pretrain.stage1_config import Stage1Config
from mstar.storage import objects
from mstar.training.exit_codes import allowed_failures
from mstar.training.seeds import seed_of

FEWEST_MODALITIES = 2
NUM_LOOKED_AT, NUM_FETCHED = 9, 3  # slides, to tell what most have: on a disk, in a bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class BadInput:
    """One input that is not used."""

    case_id: str
    modality: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainCase:
    """A case and the modalities of it that are used."""

    case: Case
    modalities: frozenset[str]
    cancer: int  # index into `Stage1Cases.cancers`

    @property
    def kind(self) -> CaseKind:
        """What the batch plan looks at."""
        return CaseKind(cancer_type=self.case.cancer_type, modalities=self.modalities)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage1Cases:
    """The cases of a run.

    too_few: cases left out because fewer than two modalities are there.
    held_out: cases that the split registry keeps from pretraining.
    """

    train: tuple[TrainCase, ...]
    val: tuple[TrainCase, ...]
    cancers: tuple[str, ...]
    bad: tuple[BadInput, ...] = ()
    too_few: int = 0
    held_out: int = 0
    split_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the modalities of a cohort are read from; None for those that take no part."""

    bags: BagReader | None
    reports: ReportTable | None
    expression: ExpressionStore | None
    token_counts: Mapping[str, int] = field(default_factory=dict)  # case → tokens of its report
    listed: frozenset[str] | None = None  # slides of a store that is not on a disk


def choose_cases(config: Stage1Config, sources: Sources) -> Stage1Cases:
    """The cases to train and validate on.

    Raises:
        TrainingError: none are left, or too many inputs are bad.
    """
    cases = read_cases(objects.join(config.cohort, "cases.csv"))
    registry = read_registry(config.cohort) if has_registry(config.cohort) else None
    if registry is not None:
        registry.check_cases(cases)
    parts = _parts(cases, registry, config)
    if sources.bags is not None:
        num_looks = NUM_LOOKED_AT if sources.listed is None else NUM_FETCHED
        used = [case for case in cases if case.case_id in parts]
        settle_feature_kind(sources.bags, used, num_looks)
    cancers = tuple(sorted({case.cancer_type for case in cases}))
    bad: list[BadInput] = []
    usable = {c.case_id: _usable(c, config, sources, bad) for c in cases if c.case_id in parts}
    _refuse_too_many(bad, len(usable), config)
    chosen: dict[str, list[TrainCase]] = {"train": [], "val": []}
    for case in cases:
        if len(usable.get(case.case_id, ())) >= FEWEST_MODALITIES:
            chosen[parts[case.case_id]].append(
                TrainCase(
                    case=case,
                    modalities=usable[case.case_id],
                    cancer=cancers.index(case.cancer_type),
                )
            )
    if not chosen["train"]:
        raise TrainingError(
            f"{config.cohort}: expected cases with two of {', '.join(config.chosen)} to train on, "
            "got none. Look at `mstar cohort check` and at the split registry."
        )
    return Stage1Cases(
        train=tuple(chosen["train"]),
        val=tuple(chosen["val"]),
        cancers=cancers,
        bad=tuple(bad),
        too_few=len(usable) - len(chosen["train"]) - len(chosen["val"]),
        held_out=len(cases) - len(parts),
        split_digest=registry.digest if registry is not None else "",
    )


def _parts(
    cases: Sequence[Case], registry: SplitRegistry | None, config: Stage1Config
) -> dict[str, str]:
    """Case → train or val; a case held out for testing is in neither."""
    ids = [case.case_id for case in cases]
    if registry is not None:
        val = {row.case_id: "val" for row in registry.rows if row.part == "val"}
        if val:
            return dict.fromkeys(registry.pretraining, "train") | val
        ids = [case_id for case_id in ids if case_id in registry.pretraining]
    limit = config.val_fraction * 2**63
    return {
        case_id: "val" if seed_of("val", config.seed, case_id) < limit else "train"
        for case_id in ids
    }


def settle_feature_kind(bags: BagReader, cases: Sequence[Case], num_looks: int) -> None:
    """Let the reader expect what most slides have, should the very first one be the odd one."""
    with_slides = [case for case in cases if case.slides]
    kinds: dict[Case, tuple[int, str]] = {}
    for case in with_slides[:: max(1, len(with_slides) // num_looks)]:
        alone = BagReader(bags.store.root)
        with suppress(FeatureError):  # named when its turn comes
            first = alone.views(case.case_id, case.slides[:1])[0]
            kinds[case] = int(first.shape[1]), first.dtype.name
    for usual, _ in Counter(kinds.values()).most_common(1):
        case = next(case for case, kind in kinds.items() if kind == usual)
        bags.num_rows(case.case_id, case.slides[:1])


def _usable(
    case: Case, config: Stage1Config, sources: Sources, bad: list[BadInput]
) -> frozenset[str]:
    """The modalities of a case that can be used; unusable ones are added to `bad`."""
    looks: dict[str, tuple[bool, Callable[[Case, Sources], str]]] = {
        "wsi": (bool(case.slides), _slides_problem),
        "text": (case.report is not None, _report_problem),
        "gene": (case.rna is not None, _expression_problem),
    }
    found = set()
    for modality in config.chosen:
        present, problem_of = looks[modality]
        reason = problem_of(case, sources) if present else ""
        if reason:
            bad.append(BadInput(case_id=case.case_id, modality=modality, reason=reason))
        elif present:
            found.add(modality)
    return frozenset(found)


def _slides_problem(case: Case, sources: Sources) -> str:
    assert sources.bags is not None
    if sources.listed is not None:
        absent = [slide for slide in case.slides if slide not in sources.listed]
        return f"slide {absent[0]}: expected features, got none" if absent else ""
    try:
        sources.bags.num_rows(case.case_id, case.slides)
        return ""
    except FeatureError as error:
        return str(error)


def _report_problem(case: Case, sources: Sources) -> str:
    assert sources.reports is not None
    assert case.report is not None
    if case.report in sources.reports.empty:
        return f"report {case.report}: expected text, got none"
    if case.report not in sources.reports:
        return f"report {case.report}: expected a row in reports.csv, got none"
    if not sources.token_counts.get(case.report, 1):
        return f"report {case.report}: expected text, got zero tokens"
    return ""


def _expression_problem(case: Case, sources: Sources) -> str:
    assert sources.expression is not None
    assert case.rna is not None
    if case.rna not in sources.expression:
        return f"RNA row {case.rna}: expected it in the expression store, got none"
    if case.rna in sources.expression.zero_cases:
        return f"RNA row {case.rna}: expected expression, got zeros only"
    return ""


def _refuse_too_many(bad: Sequence[BadInput], num_cases: int, config: Stage1Config) -> None:
    allowed = allowed_failures(config.max_bad_cases, num_cases)
    num_bad = len({one.case_id for one in bad})
    if not bad or (config.bad_cases == "skip" and num_bad <= allowed):
        return
    counts = ", ".join(f"{n} {m}" for m, n in Counter(one.modality for one in bad).items())
    first = "; ".join(f"{one.case_id}: {one.reason}" for one in bad[:3])
    raise TrainingError(
        f"{num_bad} of {num_cases} cases have inputs that cannot be used ({counts}): {first}. "
        "Correct them, or allow them with --bad-cases skip and --max-bad-cases."
    )
