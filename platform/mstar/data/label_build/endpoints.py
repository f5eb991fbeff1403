"""Which columns hold the time and the status of an endpoint, source by source."""

from dataclasses import dataclass
from typing import Final

from mstar.data.clinical import DAYS_PER_MONTH

COHORT = "cohort"
"""The overall survival that the cohort's own case table has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointColumns:
    """Where one source keeps one endpoint.

    time: column of the time under observation.
    status: column of what ended it.
    per_month: units of the time in a month.
    event_time: column of the event's time, where it is another one.
    also_event: (column, value) that is an event too, at `time`: death without recurrence.
    """

    time: str
    status: str
    per_month: float = 1.0
    event_time: str = ""
    also_event: tuple[str, str] | None = None


ENDPOINTS: Final[dict[str, dict[str, EndpointColumns]]] = {
    "OS": {
        "cdr": EndpointColumns(time="OS.time", status="OS", per_month=DAYS_PER_MONTH),
        "cbioportal": EndpointColumns(time="OS_MONTHS", status="OS_STATUS"),
        "hancock": EndpointColumns(
            time="days_to_last_information", status="survival_status", per_month=DAYS_PER_MONTH
        ),
    },
    "DFS": {
        "cbioportal": EndpointColumns(time="DFS_MONTHS", status="DFS_STATUS"),
        "cdr-dfi": EndpointColumns(time="DFI.time", status="DFI", per_month=DAYS_PER_MONTH),
        "cdr-pfi": EndpointColumns(time="PFI.time", status="PFI", per_month=DAYS_PER_MONTH),
    },
    "RFS": {
        "recurrence-or-death": EndpointColumns(
            time="days_to_last_information",
            status="recurrence",
            per_month=DAYS_PER_MONTH,
            event_time="days_to_recurrence",
            also_event=("survival_status", "deceased"),
        ),
        "recurrence": EndpointColumns(
            time="days_to_last_information",
            status="recurrence",
            per_month=DAYS_PER_MONTH,
            event_time="days_to_recurrence",
        ),
    },
}
"""Endpoint → source → its columns."""

EVENTS: Final[dict[str, int]] = {
    **dict.fromkeys(
        ("1", "1.0", "1:deceased", "deceased", "dead", "yes", "1:recurred/progressed"), 1
    ),
    **dict.fromkeys(("recurred/progressed", "1:recurred", "1:progressed", "1:event"), 1),
    **dict.fromkeys(("0", "0.0", "0:living", "living", "alive", "no", "0:diseasefree"), 0),
    **dict.fromkeys(("diseasefree", "0:censored", "0:no event"), 0),
}
