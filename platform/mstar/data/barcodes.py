"""TCGA barcodes, parsed: which patient, tumour or normal tissue, slide or aliquot a name is of.

    TCGA-A2-A0T2                                   participant A0T2 of tissue source site A2
    TCGA-A2-A0T2-01                                a sample of type 01 (SAMPLE_TYPES)
    TCGA-A2-A0T2-01A-11R-A084-07                   vial A, portion 11, analyte R, plate, center
    TCGA-A2-A0T2-01A-21-1898-20                    a portion sent out whole: no analyte
    TCGA-A2-A0T2-01Z-00-DX1.<UUID>.svs             diagnostic slide 1 (paraffin)
    TCGA-A2-A0T2-01A-01-TSA.<UUID>.svs             top (TS), middle (MS) or bottom (BS) frozen slide
    TCGA.A2.A0T2.01A                               as R writes them

The grammar is that of the GDC's page "TCGA Barcode" and its code tables. What does not fit as a
whole is no barcode: nothing is cut out of a longer name.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

SAMPLE_TYPES: Final[dict[str, str]] = {
    "01": "primary solid tumour",
    "02": "recurrent solid tumour",
    "03": "primary blood-derived cancer, peripheral blood",
    "04": "recurrent blood-derived cancer, bone marrow",
    "05": "additional new primary",
    "06": "metastasis",
    "07": "additional metastasis",
    "08": "human tumour original cells",
    "09": "primary blood-derived cancer, bone marrow",
    "10": "normal blood",
    "11": "normal solid tissue",
    "12": "normal buccal cells",
    "13": "normal cells, immortalised by EBV",
    "14": "normal bone marrow",
    "15": "sample type 15",
    "16": "sample type 16",
    "20": "control analyte",
    "40": "recurrent blood-derived cancer, peripheral blood",
    "50": "cell line",
    "60": "xenograft of a primary tumour",
    "61": "xenograft of a cell line",
    "99": "sample type 99",
}
SECTIONS: Final[dict[str, str]] = {
    "DX": "diagnostic",
    "TS": "top, frozen",
    "MS": "middle, frozen",
    "BS": "bottom, frozen",
}
ANALYTES: Final[dict[str, str]] = {
    "D": "DNA",
    "G": "DNA amplified by GenomePlex",
    "H": "RNA by mirVana",
    "R": "RNA",
    "T": "total RNA",
    "W": "DNA amplified by Repli-G",
    "X": "DNA amplified by Repli-G, second reaction",
}

_GRAMMAR = re.compile(
    rf"""
    (?P<project>TCGA) (?P<dash>[-.]) (?P<site>[A-Z0-9]{{2}})
    (?P=dash) (?P<participant>[A-Z0-9]{{4}})
    (?: (?P=dash) (?P<sample_type>{"|".join(SAMPLE_TYPES)}) (?P<vial>[A-Z])?
      (?: (?P=dash) (?P<portion>[0-9]{{2}})
        (?: (?P=dash) (?P<section>{"|".join(SECTIONS)}) (?P<section_number>[A-Z]|[0-9]{{1,2}})
          | (?P<analyte>[{"".join(ANALYTES)}])?
            (?: (?P=dash) (?P<plate>[A-Z0-9]{{4}}) (?: (?P=dash) (?P<center>[A-Z0-9]{{2}}) )? )?
        )
      )?
    )?
    (?: \. (?P<uuid>[0-9a-fA-F]{{8}} (?: -[0-9a-fA-F]{{4}} ){{3}} -[0-9a-fA-F]{{12}}) )?
    (?: \. (?i:svs|tiff?|ndpi|mrxs|scn|dcm|h5|pt|pdf|txt|xml|json|csv|tsv|gz|zip) ){{0,2}}
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Barcode:
    """The parts of a TCGA barcode; what a shorter one does not say is None.

    section, section_number: of a slide: a key of SECTIONS, and the letter or number after it.
    analyte, plate, center: of an aliquot.
    uuid: of the file, in lower case.
    """

    project: str
    site: str
    participant: str
    sample_type: str | None = None
    vial: str | None = None
    portion: str | None = None
    analyte: str | None = None
    section: str | None = None
    section_number: str | None = None
    plate: str | None = None
    center: str | None = None
    uuid: str | None = None

    @property
    def patient(self) -> str:
        """The case, as `TCGA-A2-A0T2`."""
        return f"{self.project}-{self.site}-{self.participant}"

    @property
    def is_tumor(self) -> bool:
        """Whether the sample is of a tumour: types 01 to 09."""
        return self.sample_type is not None and self.sample_type < "10"


def parse_barcode(text: str) -> Barcode | None:
    """The barcode that a name is, with or without the file's UUID and extension; None if none."""
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        return None
    parts: dict[str, Any] = match.groupdict()
    del parts["dash"]
    parts["uuid"] = parts["uuid"] and parts["uuid"].lower()
    return Barcode(**parts)


def parse_file_name(path: str) -> Barcode | None:
    """The barcode in the last step of a path, an address or a slide id with folders."""
    return parse_barcode(path.rpartition("/")[2])
