"""The 32 cancer types of TCGA that the paper pretrains on, and the cohorts it merges them into.

TCGA has a 33rd, LAML (acute myeloid leukaemia): a disease of the blood, without slides of tissue.
Other types are allowed wherever a cancer type stands; these are the ones known by name.
"""

from typing import Final

CANCER_TYPES: Final[dict[str, str]] = {
    "ACC": "Adrenocortical carcinoma",
    "BLCA": "Bladder urothelial carcinoma",
    "BRCA": "Breast invasive carcinoma",
    "CESC": "Cervical squamous cell carcinoma and endocervical adenocarcinoma",
    "CHOL": "Cholangiocarcinoma",
    "COAD": "Colon adenocarcinoma",
    "DLBC": "Lymphoid neoplasm diffuse large B-cell lymphoma",
    "ESCA": "Esophageal carcinoma",
    "GBM": "Glioblastoma multiforme",
    "HNSC": "Head and neck squamous cell carcinoma",
    "KICH": "Kidney chromophobe",
    "KIRC": "Kidney renal clear cell carcinoma",
    "KIRP": "Kidney renal papillary cell carcinoma",
    "LGG": "Brain lower grade glioma",
    "LIHC": "Liver hepatocellular carcinoma",
    "LUAD": "Lung adenocarcinoma",
    "LUSC": "Lung squamous cell carcinoma",
    "MESO": "Mesothelioma",
    "OV": "Ovarian serous cystadenocarcinoma",
    "PAAD": "Pancreatic adenocarcinoma",
    "PCPG": "Pheochromocytoma and paraganglioma",
    "PRAD": "Prostate adenocarcinoma",
    "READ": "Rectum adenocarcinoma",
    "SARC": "Sarcoma",
    "SKCM": "Skin cutaneous melanoma",
    "STAD": "Stomach adenocarcinoma",
    "TGCT": "Testicular germ cell tumors",
    "THCA": "Thyroid carcinoma",
    "THYM": "Thymoma",
    "UCEC": "Uterine corpus endometrial carcinoma",
    "UCS": "Uterine carcinosarcoma",
    "UVM": "Uveal melanoma",
}

COHORTS: Final[dict[str, tuple[str, ...]]] = {
    "CRC": ("COAD", "READ"),
    "GBMLGG": ("GBM", "LGG"),
}
"""Cohorts that are split and evaluated as one: name → the cancer types in it."""

PAPER_COHORTS: Final[tuple[str, ...]] = (
    "BRCA",
    "CRC",
    "GBMLGG",
    "HNSC",
    "KIRC",
    "LUAD",
    "LUSC",
    "SKCM",
    "UCEC",
)
"""The cohorts of more than 400 cases from which the paper holds validation and test cases back."""

_GROUPS = {code: name for name, codes in COHORTS.items() for code in codes}
_SPELLINGS = {name.lower(): code for code, name in CANCER_TYPES.items()} | {
    code.lower(): code for code in CANCER_TYPES
}


def cohort_group(cancer_type: str) -> str:
    """The cohort a cancer type is split and evaluated in: its own, but for the merged ones."""
    return _GROUPS.get(cancer_type, cancer_type)


def cancer_code(text: str) -> str:
    """The code of a known type given by code or name in any case; other types as written."""
    return _SPELLINGS.get(" ".join(text.lower().split()), text.strip())
