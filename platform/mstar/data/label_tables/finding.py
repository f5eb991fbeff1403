"""Where the label table of a task lies in a folder of label tables.

<labels>/<task_id>.csv (.tsv, .parquet, .csv.gz, .tsv.gz)
<labels>/<task_id>/k=all.tsv      Patho-Bench, with its config.yaml beside it
"""

from collections.abc import Mapping

from mstar.errors import TableError
from mstar.storage import objects

SUFFIXES = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
_PATHO_BENCH = "/k=all.tsv"


def find_label_tables(labels: str) -> Mapping[str, str]:
    """Task id → address of its label table.

    Raises:
        TableError: a task has two tables.
    """
    found: dict[str, str] = {}
    for info in objects.list_files(labels):
        task_id = _task_of(info.rel)
        if task_id is None:
            continue
        uri = objects.join(labels, info.rel)
        if task_id in found:
            raise TableError(
                f"{labels}: expected one label table of {task_id}, got {found[task_id]} and {uri}. "
                "Keep one of them."
            )
        found[task_id] = uri
    return found


def _task_of(rel: str) -> str | None:
    """The task that a file of the folder belongs to by its name."""
    if rel.endswith(_PATHO_BENCH):
        return rel.removesuffix(_PATHO_BENCH).rpartition("/")[2]
    suffix = next((end for end in sorted(SUFFIXES, key=len) if rel.endswith(end)), None)
    if suffix is None or "/" in rel:
        return None
    return rel.removesuffix(suffix)
