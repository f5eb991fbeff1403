"""Ways to break a sound cohort, so that nothing else of it is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mstar.data.cases import Case, read_cases, write_cases
from mstar.features.files import write_features, write_grid
from support.feature_files import toy_features, toy_grid, toy_provenance
from support.sound_cohort import Made, write_split_registry


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text().replace('"', "")  # no cell here needs its quotes
    assert text.count(old) == 1, (old, text)
    path.write_text(text.replace(old, new))


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line + "\n")


def change_case(made: Made, case_id: str, **fields: Any) -> None:
    """Change a case and make the registry fit, so that nothing else is wrong."""
    uri = str(made.folder / "cases.csv")
    cases = [
        replace(case, **fields) if case.case_id == case_id else case for case in read_cases(uri)
    ]
    write_cases(uri, cases)
    renew_registry(made, cases)


def renew_registry(made: Made, cases: list[Case], **fields: Any) -> None:
    for name in ("splits.csv", "splits.json"):
        (made.folder / name).unlink()
    write_split_registry(made.folder, cases, **fields)


def set_rna(made: Made, case_id: str, value: float) -> None:
    path = made.folder / "expression" / "values.npy"
    values = np.load(path)
    rows = pd.read_csv(made.folder / "expression" / "rows.csv").case_id.tolist()
    values[rows.index(case_id)] = value
    np.save(path, values)


def share_slide(made: Made) -> None:
    edit(made.folder / "cases.csv", "P3,BRCA,s3", "P3,BRCA,s3;s2")
    cases = read_cases(str(made.folder / "cases.csv"), allow_shared_slides=True)
    renew_registry(made, cases)


def two_cases_of_a_patient(made: Made) -> None:
    uri = str(made.folder / "cases.csv")
    ids = {"P4": "TCGA-A2-A0T2", "P6": "TCGA-A2-A0T2-06A"}
    cases = [replace(c, case_id=ids.get(c.case_id, c.case_id)) for c in read_cases(uri)]
    write_cases(uri, cases)
    edit(made.folder / "slides.csv", "0.5,P6", "0.5,TCGA-A2-A0T2-06A")
    renew_registry(made, cases)


def odd_features(made: Made) -> None:
    (made.features / "s5.h5").unlink()
    write_features(
        made.features / "s5.h5", toy_grid("s5", 9), toy_features(9, 16), toy_provenance()
    )


def empty_features(made: Made) -> None:
    (made.features / "s1b.h5").unlink()
    write_features(made.features / "s1b.h5", toy_grid("s1b", 0), toy_features(0), toy_provenance())


def grid_among_features(made: Made) -> None:
    (made.features / "s5.h5").unlink()
    write_grid(made.features / "s5.h5", toy_grid("s5", 9))


def bare_case(made: Made) -> None:
    change_case(made, "P6", slides=())
    edit(made.folder / "slides.csv", "slides/s6.svs,s6,0.5,P6\n", "")


def other_part(made: Made) -> None:
    cases = [
        replace(case, split="val") if case.case_id == "P2" else case for case in cases_of(made)
    ]
    write_cases(str(made.folder / "cases.csv"), cases)
    renew_registry(made, cases)


def cases_of(made: Made) -> list[Case]:
    return read_cases(str(made.folder / "cases.csv"))


def drop_case_from_registry(made: Made) -> None:
    renew_registry(made, cases_of(made)[:-1])


def add_case_to_registry(made: Made) -> None:
    renew_registry(made, [*cases_of(made), Case(case_id="P7", cancer_type="LUAD")])


def registry_of_other_table(made: Made) -> None:
    edit(made.folder / "cases.csv", "P6,LUAD", "P6,LUSC")


def edit_further_split(made: Made) -> None:
    (made.folder / "splits").mkdir()
    (made.folder / "splits" / "kfold.csv").write_text("fold,case_id,part\n0,P1,train\n")
