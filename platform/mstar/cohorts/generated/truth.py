"""The truth of a generated cohort, written beside it.

    truth/generate.json    the settings that every byte follows from
    truth/cases.csv        the latent factors of every case
    truth/facts.csv, fact_phrases.csv, reports_shown.csv   the same as findings (see `facts`)
    truth/genes.csv        which gene follows which factor, and in which direction
    truth/patches.parquet  every cell of every slide: where it is, how much of it is tissue, and
                           whether it is one of those that would show the mutation or the pathway

Cells are chosen alike in all cases: a flagged cell of a case without the mutation looks like any
other, so a method's weights can be compared between the classes. While slides are being painted,
the cells of each wait in truth/cells/<slide_id>.parquet, written before the slide.
"""

import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import mstar
from mstar.cohorts.generated.cells import SIGNALS, TruthCells
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, SlideFactors
from mstar.config import differences, to_dict, to_json
from mstar.data.tables import write_table
from mstar.errors import CohortError
from mstar.storage import objects

CASE_FACTORS = (
    "case_id", "site", "cancer_type", "grade", "mutation", "pathway", "hazard",
    "os_months", "os_event", "num_slides", "has_report", "has_rna",
)  # fmt: skip
PATCHES = pa.schema(
    {
        "slide_id": pa.string(),
        "case_id": pa.string(),
        "x_l0": pa.int64(),
        "y_l0": pa.int64(),
        "size_l0_px": pa.int64(),
        "tissue": pa.float32(),
        **{f"signal_{name}": pa.bool_() for name in SIGNALS},
    }
)
_SLIDES_PER_GROUP = 256
_CHANGE_NO_BYTE = ("out", "workers", "dry_run", "labels")


def claim_folder(config: GenerateConfig) -> None:
    """Note the settings in the folder, or find the same ones noted.

    Raises:
        CohortError: the folder holds a cohort of other settings.
    """
    uri = objects.join(config.out, "truth", "generate.json")
    settings = {k: v for k, v in to_dict(config).items() if k not in _CHANGE_NO_BYTE}
    settings["mstar_version"] = mstar.__version__
    if objects.write_whole(uri, to_json(settings).encode(), if_absent=True):
        return
    changed = differences(json.loads(objects.read_bytes(uri)), settings)
    if changed:
        raise CohortError(
            f"{config.out} holds a generated cohort of other settings: {'; '.join(changed)}. "
            "Choose another --out, or delete the folder."
        )


def write_case_truth(folder: str, cases: Sequence[CaseFactors]) -> None:
    """Write the latent factors of every case."""
    columns = {
        name: [int(v) if isinstance(v := getattr(case, name), bool) else v for case in cases]
        for name in CASE_FACTORS
    }
    write_table(objects.join(folder, "truth", "cases.csv"), pa.table(columns))


def write_cells(folder: str, slide: SlideFactors, cells: TruthCells) -> None:
    """Write the truth of one slide, to be joined to the others' when all are painted."""
    count = len(cells)
    columns = {
        "slide_id": [slide.slide_id] * count,
        "case_id": [slide.case.case_id] * count,
        "x_l0": cells.x_l0,
        "y_l0": cells.y_l0,
        "size_l0_px": [cells.size_px] * count,
        "tissue": cells.tissue,
        **{f"signal_{name}": getattr(cells, name) for name in SIGNALS},
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=PATCHES), sink)
    objects.write_whole(cells_uri(folder, slide.slide_id), sink.getvalue())


def slides_with_cells(folder: str) -> set[str]:
    """Slides whose truth is known, joined already or waiting."""
    waiting = objects.list_files(objects.join(folder, "truth", "cells"), suffix=".parquet")
    names = {Path(info.rel).stem for info in waiting}
    return names | set(_joined(folder, ["slide_id"])["slide_id"].unique().to_pylist())


def join_cells(folder: str, slides: Sequence[SlideFactors]) -> int:
    """Join the cells of all slides, in the slides' order, into one table; returns its rows."""
    read = _reader(folder)
    num_rows = 0
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "patches.parquet")
        with pq.ParquetWriter(path, PATCHES, compression="zstd") as writer:
            for start in range(0, len(slides), _SLIDES_PER_GROUP):
                group = [read(s.slide_id) for s in slides[start : start + _SLIDES_PER_GROUP]]
                writer.write_table(pa.concat_tables(group).combine_chunks())
                num_rows += sum(map(len, group))
        objects.put_file(path, patches_uri(folder))
    objects.delete_tree(objects.join(folder, "truth", "cells"))
    return num_rows


def patches_uri(folder: str) -> str:
    """Where the truth of the patches is."""
    return objects.join(folder, "truth", "patches.parquet")


def cells_uri(folder: str, slide_id: str) -> str:
    """Where the cells of a slide wait."""
    return objects.join(folder, "truth", "cells", f"{slide_id}.parquet")


def _reader(folder: str) -> Callable[[str], pa.Table]:
    """Slide → its cells: those that wait, else those joined by an earlier run."""
    joined = _joined(folder)
    first: dict[str, tuple[int, int]] = {}
    for row, slide_id in enumerate(joined["slide_id"].to_pylist()):
        start, count = first.get(slide_id, (row, 0))
        first[slide_id] = (start, count + 1)

    def read(slide_id: str) -> pa.Table:
        uri = cells_uri(folder, slide_id)
        if objects.exists(uri):
            return pq.read_table(io.BytesIO(objects.read_bytes(uri)))
        return joined.slice(*first[slide_id])

    return read


def _joined(folder: str, columns: list[str] | None = None) -> pa.Table:
    """The table of an earlier run, without rows when there is none."""
    uri = patches_uri(folder)
    if not objects.exists(uri):
        return PATCHES.empty_table()
    return pq.read_table(io.BytesIO(objects.read_bytes(uri)), columns=columns)
