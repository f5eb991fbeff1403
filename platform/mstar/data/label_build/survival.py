"""Time and event of an endpoint, by case."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mstar.data.label_build.attributes import UNKNOWN
from mstar.data.label_build.endpoints import COHORT, ENDPOINTS, EVENTS, EndpointColumns
from mstar.data.label_build.findings import CONTRADICTION, normal
from mstar.data.label_build.population import Member
from mstar.data.label_build.settings import LabelSettings
from mstar.data.label_build.sources import Sheet, Sources
from mstar.data.tables import bad_cell
from mstar.errors import ConfigError

Outcome = tuple[float, int]
_REDACTION = "Redaction"


@dataclass(slots=True, kw_only=True)
class Survival:
    """outcomes: case → (months, event); reasons: case → why it has none."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_survival(
    sources: Sources, endpoint: str, settings: LabelSettings, members: Sequence[Member]
) -> Survival:
    """One endpoint of every case, from the first source that is there.

    Raises:
        ConfigError: no source of the endpoint is there.
        TableError: a time is no number, or a status is not known.
    """
    tried = _sources_of(sources, endpoint, settings)
    for name in tried:
        if name == COHORT:
            found = _of_cohort(members)
            if found.outcomes:
                return found
            continue
        columns = ENDPOINTS[endpoint][name]
        sheets = sources.with_columns((columns.time, columns.status))
        if sheets:
            found = _of_sheets(sources, sheets, columns, settings)
            found.notes.append(f"{endpoint} of {name}: {columns.time}, {columns.status}")
            return found
    wanted = "; ".join(
        f"{name}: {ENDPOINTS[endpoint][name].time} and {ENDPOINTS[endpoint][name].status}"
        for name in tried
        if name != COHORT
    )
    raise ConfigError(
        f"{sources.folder}: expected a table with the columns of {endpoint} ({wanted}), got none. "
        "platform/docs/labels.md says where it comes from."
    )


def _sources_of(sources: Sources, endpoint: str, settings: LabelSettings) -> list[str]:
    """The sources to try, in order."""
    if endpoint == "RFS":
        return [settings.rfs_event]
    if not sources.dataset.barcodes:
        return list(ENDPOINTS[endpoint])
    if endpoint == "DFS":
        return [settings.dfs_source]
    chosen = settings.os_source
    return ["cdr", "cbioportal", COHORT] if chosen == "auto" else [chosen]


def _of_cohort(members: Iterable[Member]) -> Survival:
    found = Survival(notes=["OS of the cohort's cases.csv"])
    for member in members:
        if member.os_months is None or member.os_event is None:
            found.reasons[member.case_id] = "no survival time or status"
        else:
            _add(found, member.case_id, (member.os_months, member.os_event))
    return found


def _of_sheets(
    sources: Sources, sheets: Sequence[Sheet], columns: EndpointColumns, settings: LabelSettings
) -> Survival:
    found = Survival()
    rows: dict[str, list[tuple[int, Outcome | str]]] = {}
    for sheet in sheets:
        redaction = sheet.find(_REDACTION)
        for row, text in enumerate(sheet.columns[sheet.id_column]):
            key = sources.key(text)
            if key is None:
                continue
            redacted = redaction is not None and sheet.columns[redaction][row] is not None
            if redacted and settings.redacted == "drop":
                outcome: Outcome | str = "redacted by TCGA-CDR"
            else:
                outcome = _outcome(sheet, columns, row)
            rows.setdefault(key.name, []).append((key.rank, outcome))
    for case, several in rows.items():
        best = min(rank for rank, _ in several)
        distinct = {outcome for rank, outcome in several if rank == best}
        outcomes = [outcome for outcome in distinct if isinstance(outcome, tuple)]
        if len(outcomes) > 1:
            found.reasons[case] = CONTRADICTION
        elif outcomes:
            _add(found, case, outcomes[0])
        else:
            found.reasons[case] = sorted(str(reason) for reason in distinct)[0]
    return found


def _add(found: Survival, case: str, outcome: Outcome) -> None:
    months, _ = outcome
    if months > 0:
        found.outcomes[case] = outcome
    else:
        found.reasons[case] = "time 0" if months == 0 else "a negative time"


def _outcome(sheet: Sheet, columns: EndpointColumns, row: int) -> Outcome | str:
    """Months and event of one row, or why it has none."""
    event = _event(sheet, columns.status, row)
    months = _number(sheet, columns.time, row)
    if event == 1 and columns.event_time:
        months = _number(sheet, columns.event_time, row)
    elif columns.also_event is not None:
        name, value = columns.also_event
        own = sheet.find(name)
        dead = own is not None and normal(sheet.columns[own][row] or "") == value
        event = 1 if dead and event is not None else event
    if event is None or months is None:
        missing = "status" if event is None else "time"
        return "no survival time or status" if event is months else f"no survival {missing}"
    return months / columns.per_month, event


def _cell(sheet: Sheet, name: str, row: int) -> str | None:
    own = sheet.find(name)
    cell = sheet.columns[own][row] if own else None
    return None if cell is None or normal(cell) in UNKNOWN else cell.strip()


def _number(sheet: Sheet, name: str, row: int) -> float | None:
    cell = _cell(sheet, name, row)
    if cell is None or cell.startswith("#"):  # #N/A of a workbook
        return None
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise bad_cell(sheet.uri, row, name, "a number", cell, "Correct the cell.")
    return number


def _event(sheet: Sheet, name: str, row: int) -> int | None:
    cell = _cell(sheet, name, row)
    if cell is None or cell.startswith("#"):
        return None
    event = EVENTS.get(normal(cell))
    if event is None:
        expected = "1, 0, 1:DECEASED, 0:LIVING, DiseaseFree, Recurred/Progressed, yes or no"
        raise bad_cell(sheet.uri, row, name, expected, cell, "Correct the cell.")
    return event
