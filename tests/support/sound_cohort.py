"""A small cohort of which nothing is wrong, for what looks at cohorts."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mstar.cohorts.check import CheckConfig
from mstar.data.cases import Case, write_cases
from mstar.data.rna.config import ExpressionConfig
from mstar.data.rna.expression import preprocess_expression
from mstar.data.splits.registry import SplitRegistry, SplitRow, cases_digest, write_registry
from mstar.features.store import FeatureStore
from support.feature_files import CONFIG, toy_features, toy_grid, toy_provenance

GENES = ("TP53", "EGFR", "KRAS", "ACTB")
# case → cancer type, slides, report?, RNA?, part
ROWS = {
    "P1": ("BRCA", ("s1a", "s1b"), True, True, "train"),
    "P2": ("BRCA", ("s2",), True, False, "test"),
    "P3": ("BRCA", ("s3",), False, True, "val"),
    "P4": ("LUAD", (), True, True, ""),
    "P5": ("LUAD", ("s5",), True, True, ""),
    "P6": ("LUAD", ("s6",), False, False, "train"),
}
PATCHES = {"s1a": 12, "s1b": 5, "s2": 7, "s3": 3, "s5": 9, "s6": 4}


@dataclass(frozen=True)
class Made:
    """A cohort on disk and its features."""

    folder: Path
    features: Path

    @property
    def config(self) -> CheckConfig:
        return CheckConfig(cohort=str(self.folder), features=str(self.features))

    def copied(self, folder: Path) -> Made:
        """A copy to break."""
        shutil.copytree(self.folder, folder / "C")
        shutil.copytree(self.features, folder / "F")
        return Made(folder / "C", folder / "F")


def write_sound_cohort(root: Path) -> Made:
    """Six cases, some without a modality, of which nothing is wrong."""
    made = Made(root / "C", root / "F")
    (made.folder / "slides").mkdir(parents=True)
    cases = [
        Case(
            case_id=name,
            cancer_type=cancer,
            slides=slides,
            report=name if report else None,
            rna=name if rna else None,
        )
        for name, (cancer, slides, report, rna, _) in ROWS.items()
    ]
    write_cases(str(made.folder / "cases.csv"), cases)
    write_slides(made.folder, cases)
    lines = [f"{c.case_id},Invasive carcinoma of case {c.case_id}." for c in cases if c.report]
    (made.folder / "reports.csv").write_text("\n".join(["case_id,text", *lines]) + "\n")
    write_expression(root, made.folder, [case.case_id for case in cases if case.rna])
    write_split_registry(made.folder, cases)
    (made.folder / "labels").mkdir()
    (made.folder / "labels" / "t1.csv").write_text(
        "case_id,slides,label,split,data_source\nP1,s1a,a,train,real\nP2,s2,b,test,real\n"
    )
    (made.folder / "cohort.json").write_text(json.dumps({"data_source": "generated"}))
    write_store(made.features)
    return made


def write_slides(folder: Path, cases: list[Case]) -> None:
    rows = ["path,slide_id,mpp,case_id"]
    for case in cases:
        for slide in case.slides:
            (folder / "slides" / f"{slide}.svs").write_bytes(b"not looked into")
            rows.append(f"slides/{slide}.svs,{slide},0.5,{case.case_id}")
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")


def write_expression(root: Path, folder: Path, cases: list[str]) -> None:
    values = np.random.default_rng(0).integers(1, 5000, (len(GENES), len(cases)))
    frame = pd.DataFrame(values, columns=cases)
    frame.insert(0, "Hugo_Symbol", GENES)
    frame.to_csv(root / "rna.tsv", sep="\t", index=False)
    config = ExpressionConfig(unit="rsem", transform="none")
    preprocess_expression(str(root / "rna.tsv"), str(folder / "expression"), config)


def write_split_registry(folder: Path, cases: list[Case], **fields: Any) -> None:
    rows = tuple(
        SplitRow(
            case_id=case.case_id,
            cohort=case.cancer_type,
            part=ROWS[case.case_id][4] if case.case_id in ROWS else "",
            pretraining=case.case_id in ROWS and ROWS[case.case_id][4] in ("", "train"),
        )
        for case in cases
    )
    settings = {"name": "mstar", "seed": 0, "cases_digest": cases_digest(cases)} | fields
    write_registry(str(folder), SplitRegistry(rows=rows, **settings))


def write_store(root: Path) -> None:
    store = FeatureStore.open_or_create(str(root), CONFIG)
    for slide, num in PATCHES.items():
        grid, features = toy_grid(slide, num), toy_features(num)
        store.write(slide, grid, features, toy_provenance(store.fingerprint))
