"""Where the published files of a data set lie below the folder of sources, and what their ids are.

platform/docs/labels.md says where each comes from and which file goes where.
"""

from dataclasses import dataclass
from typing import Final, Literal

_TCGA_IDS = (
    "PATIENT_ID",
    "bcr_patient_barcode",
    "_PATIENT",
    "Patient ID",
    "SAMPLE_ID",
    "Sample ID",
    "sampleID",
    "sample",
    "Case",
    "case_id",
    "patient",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One data set.

    folder: below the folder of sources.
    ids: columns that may hold the id of a row, the best first.
    keyed: what the ids of its tables are of.
    barcodes: whether they are TCGA barcodes, of which the patient counts.
    slide: name of a case's slide where no manifest names slides; `{id}` stands for the case.
    patients: column that says whom a slide is of, in tables keyed by slide.
    headerless: columns of a table that comes without a header, told by its first cell.
    first_cell: regular expression that this cell fits.
    """

    folder: str
    ids: tuple[str, ...]
    keyed: Literal["case", "slide"] = "case"
    barcodes: bool = False
    slide: str = ""
    patients: tuple[str, ...] = ()
    headerless: tuple[str, ...] = ()
    first_cell: str = ""


DATASETS: Final[dict[str, Dataset]] = {
    "TCGA": Dataset(folder="tcga", ids=_TCGA_IDS, barcodes=True),
    "CPTAC-BRCA": Dataset(folder="cptac-brca", ids=("PATIENT_ID", "SAMPLE_ID", "case_id")),
    "CPTAC-LUAD": Dataset(folder="cptac-luad", ids=("PATIENT_ID", "SAMPLE_ID", "case_id")),
    "PANDA": Dataset(folder="panda", ids=("image_id",), keyed="slide", slide="{id}"),
    "CAMELYON": Dataset(
        folder="camelyon",
        ids=("patient", "image", "slide", "slide_id", "image_id"),
        keyed="slide",
        slide="{id}",
        headerless=("image", "type", "tumour", "size"),
        first_cell=r"(?i)(test|normal|tumor)_\d+(\.tif)?",
    ),
    "BCNB": Dataset(folder="bcnb", ids=("Patient ID", "patient_id"), slide="{id}"),
    "UBC-OCEAN": Dataset(folder="ubc-ocean", ids=("image_id",), keyed="slide", slide="{id}"),
    "HANCOCK": Dataset(
        folder="hancock", ids=("patient_id", "case_id"), slide="PrimaryTumor_HE_{id}"
    ),
    "EBRAINS": Dataset(
        folder="ebrains",
        ids=("uuid", "slide_id", "image_id"),
        keyed="slide",
        slide="{id}",
        patients=("pat_id", "patient_id", "pat"),
    ),
}
SLIDES, EXCLUDE = "slides.csv", "exclude.csv"
"""Beside a data set's files: its slides (path, slide_id, case_id), and ids to leave out."""
