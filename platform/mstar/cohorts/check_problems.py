"""What can be wrong with a cohort: one row for each kind, and the collector of what was found."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mstar.training.exit_codes import ExitCode

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of problem.

    severity: an error is data that cannot be used as the case table says; a warning may be meant.
    what: of the things counted, for a plural.
    """

    severity: Severity
    what: str
    way_out: str


KINDS: Mapping[str, Kind] = {
    "unreadable_table": Kind(
        severity="error", what="tables that cannot be read", way_out="Correct the table."
    ),
    "duplicate_case": Kind(
        severity="error",
        what="cases with more than one row (the first was taken)",
        way_out="Merge the rows in cases.csv.",
    ),
    "shared_slide": Kind(
        severity="error",
        what="slides that two cases claim",
        way_out="Give each slide to the case it is of.",
    ),
    "two_cases_of_one_patient": Kind(
        severity="error",
        what="patients with two cases, who could be trained and tested on",
        way_out="Merge them into one case with all their slides.",
    ),
    "unlisted_slide": Kind(
        severity="error",
        what="slides of cases that slides.csv lacks",
        way_out="Add them to slides.csv or take them out of cases.csv.",
    ),
    "unusable_slide": Kind(
        severity="error", what="rows of slides.csv that cannot be used", way_out="Correct the rows."
    ),
    "missing_slide_file": Kind(
        severity="error",
        what="slides whose file is not there",
        way_out="Copy them, or correct path.",
    ),
    "slide_file_gone": Kind(
        severity="warning",
        what="slides whose file is not there (their features are)",
        way_out="Nothing to do until stage 2 or heat maps need the pixels.",
    ),
    "slide_of_other_case": Kind(
        severity="error",
        what="slides that slides.csv gives to another case than cases.csv",
        way_out="Correct case_id in slides.csv, or slides in cases.csv.",
    ),
    "slide_without_case": Kind(
        severity="warning",
        what="slides of no case",
        way_out="Add them to a case, or leave them unused.",
    ),
    "missing_features": Kind(
        severity="error",
        what="slides of cases without features",
        way_out="Run `mstar embed` again; its failures/ says why they failed.",
    ),
    "unreadable_features": Kind(
        severity="error",
        what="feature files that cannot be opened",
        way_out="Delete them and run `mstar embed` again.",
    ),
    "other_features": Kind(
        severity="error",
        what="feature files of other dims or type than the rest",
        way_out="Delete them and run `mstar embed` again.",
    ),
    "slide_without_patches": Kind(
        severity="warning",
        what="slides without a patch",
        way_out="Look at their tissue mask with `mstar grid`, or leave them unused.",
    ),
    "missing_report": Kind(
        severity="error",
        what="report keys of cases that reports.csv lacks",
        way_out="Add the reports, or empty the cells in cases.csv.",
    ),
    "empty_report": Kind(
        severity="error",
        what="reports of cases without any text",
        way_out="Fill them in, or empty the cells in cases.csv.",
    ),
    "report_without_case": Kind(
        severity="warning",
        what="reports of no case",
        way_out="Name them in cases.csv, or leave them unused.",
    ),
    "missing_rna": Kind(
        severity="error",
        what="RNA keys of cases that expression/ lacks",
        way_out="Run `mstar cohort build` with the table that has them, or empty the cells.",
    ),
    "zero_rna": Kind(
        severity="error",
        what="RNA rows of zeros only",
        way_out="Look at the sample in the source table, or empty the cells in cases.csv.",
    ),
    "not_finite_rna": Kind(
        severity="error",
        what="RNA rows with NaN or infinity",
        way_out="Run `mstar cohort build` again.",
    ),
    "rna_without_case": Kind(
        severity="warning",
        what="RNA rows of no case",
        way_out="Name them in cases.csv, or leave them unused.",
    ),
    "case_without_modality": Kind(
        severity="warning",
        what="cases with neither slide, report nor RNA that can be used",
        way_out="Leave them out.",
    ),
    "unknown_split": Kind(
        severity="error",
        what="names in column split that are no part and no split",
        way_out="Write train, val, test, or the name of a file in splits/.",
    ),
    "bad_registry": Kind(
        severity="error",
        what="split files that cannot be relied on",
        way_out="Put them back as they were made, or run `mstar cohort split` again.",
    ),
    "case_not_in_registry": Kind(
        severity="error",
        what="cases that the split registry lacks",
        way_out="Run `mstar cohort split C --preset mstar --extend`.",
    ),
    "registry_case_unknown": Kind(
        severity="error",
        what="cases of the split registry that cases.csv lacks",
        way_out="Add them, or make the registry anew.",
    ),
    "registry_of_other_table": Kind(
        severity="warning",
        what="case tables that changed since the split registry was made (the cases are the same)",
        way_out="Make the registry anew if cancer types or survival changed.",
    ),
    "split_contradicts_registry": Kind(
        severity="error",
        what="cases whose column split differs from the split registry",
        way_out="Empty column split: the registry counts.",
    ),
    "seen_in_pretraining": Kind(
        severity="error",
        what="validation or test cases of label tables that pretraining sees",
        way_out="Make the registry with these tables among its --tasks before pretraining.",
    ),
    "label_without_case": Kind(
        severity="warning",
        what="cases of label tables that cases.csv lacks",
        way_out="Correct the ids; such rows are of an external cohort at best.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """All that was found of one kind; ids are sorted, for tables they are the messages."""

    kind: str
    ids: tuple[str, ...]

    @property
    def severity(self) -> Severity:
        """Of its kind."""
        return KINDS[self.kind].severity


@dataclass(slots=True)
class Findings:
    """Collects what is found, each thing once."""

    _ids: dict[str, set[str]] = field(default_factory=dict)

    def add(self, kind: str, ids: Iterable[str]) -> None:
        """Note things of one kind; none is no problem."""
        assert kind in KINDS, kind
        new = set(ids)
        if new:
            self._ids.setdefault(kind, set()).update(new)

    def ids(self, kind: str) -> set[str]:
        """What was found of a kind so far."""
        return self._ids.get(kind, set())

    def problems(self) -> tuple[Problem, ...]:
        """Errors before warnings, in the order of the table."""
        found = [
            Problem(kind=kind, ids=tuple(sorted(self._ids[kind])))
            for kind in KINDS
            if self.ids(kind)
        ]
        return tuple(sorted(found, key=lambda problem: problem.severity != "error"))


def exit_code(problems: Iterable[Problem], *, strict: bool) -> ExitCode:
    """The code of a check: USAGE when a table cannot be read, EXCLUSIONS when data is unusable.

    strict: warnings count as errors.
    """
    counted = [p for p in problems if strict or p.severity == "error"]
    if any(problem.kind == "unreadable_table" for problem in counted):
        return ExitCode.USAGE
    return ExitCode.EXCLUSIONS if counted else ExitCode.COMPLETE
