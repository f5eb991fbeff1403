"""Which column says what a case is, and which of its values is which class.

Values are compared in lower case with single spaces. A value that is in no row of an attribute is
of no class of the task: its case is dropped, and counted under the value.
"""

from dataclasses import dataclass, field
from typing import Final

UNKNOWN: Final = frozenset(
    {
        "[not available]",
        "[not evaluated]",
        "[not applicable]",
        "[unknown]",
        "[discrepancy]",
        "[completed]",
        "not available",
        "not evaluated",
        "not_tested",
        "not tested",
        "unknown",
        "not reported",
        "nolbl",
        "-",
        ".",
        "?",
    }
)
UNCLEAR: Final = frozenset({"equivocal", "indeterminate", "borderline"})
"""Tested, without a result; a second column may settle it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One thing that is known of a case or a slide.

    columns: names of the column, the best first; the first that a table has is taken.
    values: value → class.
    patterns: (regular expression, class) tried in order where no value fits; class "": of none.
    settle: columns that decide when the first says equivocal or indeterminate, if that is asked.
    slide_names: (regular expression, class): what names of slides say where no table has them.
    each_table: every table has a column of its own, the first that it has of these.
    """

    columns: tuple[str, ...]
    values: dict[str, str] = field(default_factory=dict)
    patterns: tuple[tuple[str, str], ...] = ()
    settle: tuple[str, ...] = ()
    slide_names: tuple[tuple[str, str], ...] = ()
    each_table: bool = False


_SIGNS = {
    **dict.fromkeys(("positive", "pos", "+", "1", "yes"), "positive"),
    **dict.fromkeys(("negative", "neg", "0", "no"), "negative"),
}
_ONCOTREE = ("ONCOTREE_CODE", "CANCER_TYPE_DETAILED", "histological_type")

ATTRIBUTES: Final[dict[str, Attribute]] = {
    "breast_histology": Attribute(
        columns=_ONCOTREE,
        values={
            "idc": "IDC",
            "breast invasive ductal carcinoma": "IDC",
            "infiltrating ductal carcinoma": "IDC",
            "ilc": "ILC",
            "breast invasive lobular carcinoma": "ILC",
            "infiltrating lobular carcinoma": "ILC",
        },
    ),
    "glioma_histology": Attribute(
        columns=_ONCOTREE,
        values={
            **dict.fromkeys(
                ("gb", "gbm", "glioblastoma", "glioblastoma multiforme", "glioblastoma (gbm)"), "GB"
            ),
            **dict.fromkeys(("untreated primary (de novo) gbm", "treated primary gbm"), "GB"),
            **dict.fromkeys(("aastr", "anaplastic astrocytoma"), "AASTR"),
            **dict.fromkeys(("odg", "oligodendroglioma"), "ODG"),
        },
    ),
    "ebrains_histology": Attribute(
        columns=("diagnosis",),
        patterns=(
            (r"^(glioblastoma|giant cell glioblastoma|gliosarcoma)\b", "GB"),
            (r"^anaplastic astrocytoma\b", "AASTR"),
            (r"^oligodendroglioma\b", "ODG"),
        ),
    ),
    "ebrains_idh": Attribute(
        columns=("diagnosis",),
        patterns=(
            (r"^glioblastoma, idh-wildtype", ""),
            (r"idh-mutant", "positive"),
            (r"idh-wildtype", "negative"),
        ),
    ),
    "stomach_histology": Attribute(
        columns=_ONCOTREE,
        values={
            "tstad": "tubular",
            "tubular stomach adenocarcinoma": "tubular",
            "ssrcc": "signet_ring",
            "signet ring cell carcinoma of the stomach": "signet_ring",
            "stad": "STAD_NOS",
            "stomach adenocarcinoma": "STAD_NOS",
        },
    ),
    "lauren": Attribute(
        columns=("LAUREN_CLASS", "Lauren Class", "Lauren.Class"),
        values={"diffuse": "diffuse", "intestinal": "intestinal", "mixed": "mixed"},
    ),
    "er": Attribute(
        columns=(
            "ER_STATUS_BY_IHC",
            "breast_carcinoma_estrogen_receptor_status",
            "ER_STATUS",
            "ER",
        ),
        values=_SIGNS,
    ),
    "pr": Attribute(
        columns=(
            "PR_STATUS_BY_IHC",
            "breast_carcinoma_progesterone_receptor_status",
            "PR_STATUS",
            "PR",
        ),
        values=_SIGNS,
    ),
    "her2": Attribute(
        columns=(
            "IHC_HER2",
            "HER2_STATUS_BY_IHC",
            "lab_proc_her2_neu_immunohistochemistry_receptor_status",
            "HER2_STATUS",
            "HER2",
        ),
        values=_SIGNS,
        settle=(
            "HER2_FISH_STATUS",
            "lab_procedure_her2_neu_in_situ_hybrid_outcome_type",
        ),
    ),
    "pam50": Attribute(
        columns=("PAM50", "PAM50_SUBTYPE", "BRCA_Subtype_PAM50", "SUBTYPE"),
        values={
            **dict.fromkeys(("basal", "basal-like", "brca_basal"), "TNBC"),
            **dict.fromkeys(("her2", "her2-enriched", "brca_her2"), "HER2"),
            **dict.fromkeys(("luma", "luminal a", "brca_luma"), "LumA"),
            **dict.fromkeys(("lumb", "luminal b", "brca_lumb"), "LumB"),
        },
    ),
    "cms": Attribute(
        columns=("CMS_final_network_plus_RFclassifier_in_nonconsensus_samples",),
        values={f"cms{number}": f"CMS{number}" for number in range(1, 5)},
    ),
    "cms_network": Attribute(
        columns=("CMS_network",),
        values={f"cms{number}": f"CMS{number}" for number in range(1, 5)},
    ),
    "cms_rf": Attribute(
        columns=("CMS_RFclassifier",),
        values={f"cms{number}": f"CMS{number}" for number in range(1, 5)},
    ),
    "idh": Attribute(
        columns=("IDH_STATUS", "IDH status", "IDH.status"),
        values={
            **dict.fromkeys(("mutant", "mut", "mutated", "idhmut"), "positive"),
            **dict.fromkeys(("wt", "wildtype", "wild type", "idhwt"), "negative"),
        },
    ),
    "hpv": Attribute(
        columns=("HPV_STATUS_P16", "hpv_association_p16", "hpv_status_by_p16_testing"),
        values=_SIGNS,
    ),
    "isup": Attribute(
        columns=("isup_grade",), values={str(grade): str(grade) for grade in range(6)}
    ),
    "metastasis": Attribute(
        columns=("stage", "type", "label"),
        values={
            **dict.fromkeys(("normal", "negative"), "normal"),
            **dict.fromkeys(("tumor", "tumour", "micro", "macro", "itc"), "metastasis"),
        },
        slide_names=((r"^normal_\d+$", "normal"), (r"^tumor_\d+$", "metastasis")),
        each_table=True,
    ),
    "ovary": Attribute(
        columns=("label",),
        values={name.lower(): name for name in ("HGSC", "EC", "CC", "LGSC", "MC")},
    ),
    "squamous": Attribute(
        columns=("histologic_type",),
        values={
            "scc_conventional-keratinizing": "SCC_conventional_keratinizing",
            "scc_conventional-nonkeratinizing": "SCC_conventional_nonkeratinizing",
            "scc_basaloid": "SCC_basaloid",
        },
    ),
    "t_stage": Attribute(
        columns=("pT_stage",), patterns=tuple((rf"^pt{n}[a-d]?$", f"T{n}") for n in range(1, 5))
    ),
}
