"""Which dialect a label table is in, told by its header, and its rows."""

from mstar.data.label_tables.authors import (
    is_classification,
    is_survival,
    read_classification,
    read_survival,
)
from mstar.data.label_tables.clam import is_clam, read_clam
from mstar.data.label_tables.patho_bench import is_patho_bench, read_patho_bench
from mstar.data.label_tables.samples import (
    ONE_FOLD,
    LabelRow,
    Rows,
    folds_of,
    shared,
    split_slides,
)
from mstar.data.labels import CLASS_COLUMNS, DATA_SOURCES, SURVIVAL_COLUMNS
from mstar.data.tables import Column, column_names, read_table
from mstar.data.tasks import Task
from mstar.errors import TableError

DIALECTS = {
    "mstar": "case_id, slides, label or time_months and event [, split, data_source, patient_id]",
    "mstar-classification": "case, slide, label, then fold or fold1, fold2 …",
    "mstar-survival": "Study, ID, Event, Status, WSI, split",
    "mstar-multimodal": "Study, ID, Event, Status, WSI, RNA, split",
    "clam": "case_id, slide_id, label, with splits_0.csv … in a folder beside it",
    "patho-bench": "case_id, slide_id, a label, fold_0 … (TSV)",
}


def read_rows(uri: str, task: Task, splits: str | None = None) -> Rows:
    """The rows of a label table, whatever its dialect.

    Args:
        uri: the table.
        task: says whether classes or survival are looked for.
        splits: folder of CLAM's splits.

    Raises:
        TableError: the header is of no dialect, or a cell is not what it should be.
    """
    names = column_names(uri)
    if is_survival(names):
        return read_survival(uri)
    if shared(names, ("case_id", "slides")):
        return _read_own(uri, task)
    if is_patho_bench(names):
        return read_patho_bench(uri, task)
    if is_clam(names) and not any(name.lower().startswith("fold") for name in names):
        return read_clam(uri, splits)
    if is_classification(names):
        return read_classification(uri)
    known = "; ".join(f"{name}: {columns}" for name, columns in DIALECTS.items())
    raise TableError(
        f"{uri}: expected a header of one of these dialects ({known}), got "
        f"{', '.join(names[:12])}. Rename the columns."
    )


def _read_own(uri: str, task: Task) -> Rows:
    """Our own dialect: of cases one row each, of slides one row a sample."""
    more = (
        Column(name="split", required=False, nullable=True),
        Column(name="data_source", required=False, nullable=True, allowed=DATA_SOURCES),
        Column(name="patient_id", aliases=("patient",), required=False, nullable=True),
    )
    of_kind: tuple[Column, ...]
    of_kind = SURVIVAL_COLUMNS if task.has_survival_labels else CLASS_COLUMNS
    if not task.has_survival_labels and not task.has_class_labels:  # a label says nothing there
        of_kind = tuple(c for c in CLASS_COLUMNS if c.name != "label")
    kept = [c for c in of_kind if c.name not in ("case_id", "split", "data_source")]
    case_id = Column(name="case_id", unique=task.unit == "case")
    table = read_table(uri, [case_id, *kept, *more])
    split = {"split": ONE_FOLD} if "split" in table.column_names else {}
    rows = tuple(
        LabelRow(
            row=row,
            case_id=cells["case_id"],
            slides=split_slides(cells["slides"]),
            label=cells.get("label"),
            time_months=cells.get("time_months"),
            event=None if cells.get("event") is None else str(cells["event"]),
            folds=folds_of(uri, row, cells, split),
            patient=cells.get("patient_id"),
            data_source=cells.get("data_source"),
        )
        for row, cells in enumerate(table.to_pylist())
    )
    given = any(row.folds for row in rows)
    return Rows(dialect="mstar", rows=rows, folds=(ONE_FOLD,) if given else ())
