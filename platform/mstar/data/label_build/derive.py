"""The derivations: from the tables of a data set to the labels of a task, one function a kind."""

import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mstar.data.label_build.findings import Finding, attribute_of, by_case, find_all, of_slide_name
from mstar.data.label_build.gene_status import read_alterations
from mstar.data.label_build.population import Member, slide_key
from mstar.data.label_build.recipes import Derivation
from mstar.data.label_build.settings import MEDIAN, LabelSettings
from mstar.data.label_build.sources import Sources
from mstar.data.label_build.survival import read_survival
from mstar.data.labels import ClassLabel, Label, SurvivalLabel
from mstar.data.tasks import Task
from mstar.errors import ConfigError

IDH_GENES: Final = ("IDH1", "IDH2")
TMB_COLUMNS: Final = ("TMB_NONSYNONYMOUS", "TMB (nonsynonymous)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """All that a derivation looks at.

    members: cases of the data set, of the task's cancer types.
    genes: every gene that any chosen task asks for, so that a MAF is read once.
    """

    task: Task
    recipe: Derivation
    sources: Sources
    members: Sequence[Member]
    settings: LabelSettings
    excluded: Collection[str] = ()
    genes: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Derived:
    """The labels of a task, and what became of the rest.

    dropped: reason → samples (slides in a task of slides, else cases).
    notes: which columns and rules they come from.
    """

    labels: list[Label] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def derive(context: Context) -> Derived:
    """The labels of one task.

    Raises:
        ConfigError: a table or column that it needs is not there.
        TableError: a table is not what it should be.
    """
    return DERIVATIONS[context.recipe.derivation](context)


def _mutation(context: Context) -> Derived:
    """Mutated where any of the genes is, of the wild type where none is and all are sequenced."""
    genes = tuple(context.recipe.arguments["gene"].split("+"))
    return _of_genes(context, genes)


def _of_genes(context: Context, genes: Sequence[str]) -> Derived:
    alterations = read_alterations(context.sources, context.settings, {*context.genes, *genes})
    wild, mutated = _two_classes(context.task)

    def finding(member: Member) -> Finding:
        status = alterations.status(member.case_id, genes)
        if status is None:
            return Finding(reason="not sequenced")
        return Finding(label=mutated if status else wild)

    made = _by_member(context, finding)
    made.notes += alterations.notes
    silent = sum(alterations.has_silent_only(m.case_id, genes) for m in context.members)
    made.notes += [f"{silent:,} cases with silent mutations alone"] if silent else []
    return made


def _burden(context: Context) -> Derived:
    """High from the cut-off on."""
    burdens, notes = _burdens(context)
    values = [burdens[m.case_id] for m in context.members if m.case_id in burdens and m.slides]
    if context.settings.tmb_cutoff == MEDIAN:
        cut = statistics.median(values) if values else 0.0
        notes.append(f"median {cut:.4g} mutations/Mb: above it is high")
    else:
        cut = float(context.settings.tmb_cutoff)
        notes.append(f"high from {cut:g} mutations/Mb on")
    low, high = _two_classes(context.task)
    is_median = context.settings.tmb_cutoff == MEDIAN

    def finding(member: Member) -> Finding:
        burden = burdens.get(member.case_id)
        if burden is None:
            return Finding(reason="not sequenced")
        return Finding(label=high if burden > cut or (burden == cut and not is_median) else low)

    made = _by_member(context, finding)
    made.notes += notes
    return made


def _burdens(context: Context) -> tuple[dict[str, float], list[str]]:
    """Mutations per megabase of each case: as a table has them, else counted."""
    sources, settings = context.sources, context.settings
    for name in TMB_COLUMNS:
        if sources.with_columns((name,)):
            return read_burden_column(sources, name), [f"column {name}"]
    alterations = read_alterations(sources, settings, set(context.genes))
    counts = alterations.burdens()
    notes = [*alterations.notes, f"non-silent mutations / {settings.tmb_megabases:g} Mb"]
    return {case: count / settings.tmb_megabases for case, count in counts.items()}, notes


def read_burden_column(sources: Sources, name: str) -> dict[str, float]:
    """Case → the burden that a table states, of the sample that counts first."""
    rows: dict[str, tuple[int, str, float]] = {}
    for sheet in sources.with_columns((name,)):
        own = sheet.find(name) or name
        for text, cell in zip(sheet.columns[sheet.id_column], sheet.columns[own], strict=True):
            key = sources.key(text)
            if key is None or cell is None:
                continue
            try:
                value = float(cell)
            except ValueError:
                continue
            row = (key.rank, text or "", value)
            rows[key.name] = min(row, rows.get(key.name, row))
    return {case: value for case, (_, _, value) in rows.items()}


def _survival(context: Context) -> Derived:
    """Time and event of an endpoint; times of 0 and below are of nobody that was observed."""
    endpoint = context.recipe.arguments["endpoint"]
    found = read_survival(context.sources, endpoint, context.settings, context.members)
    needs_rna = "rna" in context.recipe.arguments
    made = Derived(notes=list(found.notes))
    for member in context.members:
        reason = _left_out(context, member, member.slides)
        reason = reason or ("no gene expression" if needs_rna and not member.has_rna else "")
        outcome = found.outcomes.get(member.case_id)
        reason = reason or found.reasons.get(member.case_id, "" if outcome else "in no table")
        if reason or outcome is None:
            made.dropped[reason] += 1
            continue
        months, event = outcome
        made.labels.append(
            SurvivalLabel(
                case_id=member.case_id, slides=member.slides, time_months=months, event=event
            )
        )
    return made


def _category(context: Context) -> Derived:
    """The class that a column's value stands for."""
    name, settings = context.recipe.arguments["attribute"], context.settings
    if name == "idh" and settings.idh_source == "mutations":
        return _of_genes(context, IDH_GENES)
    attribute = attribute_of(name, settings)
    found, columns = find_all(context.sources, attribute, settings)
    missing = Finding(reason="in no table")
    notes = [f"column {column}" for column in dict.fromkeys(columns)]
    if context.sources.dataset.keyed == "case":
        made = _by_member(context, lambda member: found.get(member.case_id, missing))
        made.notes += notes
        return made
    key = slide_key(context.sources.dataset)

    def of_slide(slide: str) -> Finding:
        return found.get(key(slide)) or of_slide_name(attribute, key(slide)) or missing

    made = _by_slide(context, of_slide)
    made.notes += notes
    return made


def _cancer_type(context: Context) -> Derived:
    """The cancer type of the case table is the class."""
    made = _by_member(context, lambda member: Finding(label=member.cancer_type))
    made.notes.append("cancer_type of cases.csv")
    return made


DERIVATIONS: Final[Mapping[str, Callable[[Context], Derived]]] = {
    "mutation": _mutation,
    "burden": _burden,
    "survival": _survival,
    "category": _category,
    "cancer_type": _cancer_type,
}


def _by_member(context: Context, finding: Callable[[Member], Finding]) -> Derived:
    """A sample a case, or a sample a slide with the label of its case."""
    made = Derived()
    for member in context.members:
        found = finding(member)
        for slides in _samples(context, member):
            _add(context, made, member, slides, found)
    return made


def _by_slide(context: Context, finding: Callable[[str], Finding]) -> Derived:
    """A sample a slide, or a sample a case whose slides agree."""
    made = Derived()
    for member in context.members:
        for slides in _samples(context, member):
            kept = [slide for slide in slides if not _excluded(context, slide)]
            found = {slide: finding(slide) for slide in kept}
            one = by_case(found, kept, Finding(reason="excluded by exclude.csv"))
            labelled = tuple(slide for slide in kept if found[slide].label is not None)
            _add(context, made, member, labelled or slides, one)
    return made


def _samples(context: Context, member: Member) -> Iterable[tuple[str, ...]]:
    if context.task.unit == "slide" and member.slides:
        return [(slide,) for slide in member.slides]
    return [member.slides]


def _add(
    context: Context, made: Derived, member: Member, slides: tuple[str, ...], found: Finding
) -> None:
    reason = _left_out(context, member, slides) or found.reason
    if not reason and found.label not in context.task.class_names:
        reason = f"no class of the task: {found.label}"
    if reason or found.label is None:
        made.dropped[reason] += 1
        return
    made.labels.append(ClassLabel(case_id=member.case_id, slides=slides, label=found.label))


def _left_out(context: Context, member: Member, slides: tuple[str, ...]) -> str:
    """Why a sample is none whatever its label; empty when it is one."""
    if not slides:
        return "no slide"
    if _excluded(context, member.case_id) or all(_excluded(context, slide) for slide in slides):
        return "excluded by exclude.csv"
    return ""


def _excluded(context: Context, name: str) -> bool:
    return name in context.excluded or slide_key(context.sources.dataset)(name) in context.excluded


def _two_classes(task: Task) -> tuple[str, str]:
    if len(task.class_names) != 2:
        raise ConfigError(
            f"task {task.task_id}: expected two classes, the second of mutated or high, got "
            f"{', '.join(task.class_names) or 'none'}. Name them in a task table of your own."
        )
    return task.class_names[0], task.class_names[1]
