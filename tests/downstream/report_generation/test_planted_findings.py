"""Reports of a generated cohort name its planted findings above chance within cancer type.

The features are vectors of known truth (`support.report_cohort`); of the reports the findings that
slides show are kept, as the paper keeps them. Shuffled: each case has
the features of another of its cancer type, so that nothing but the type can be learnt.
"""

from pathlib import Path

import pytest
import torch

from mstar.downstream.config import Study
from mstar.downstream.family_files import conclude_family
from mstar.downstream.family_job import FamilyJob, FamilySources
from mstar.downstream.prediction_parts import evaluated_parts
from mstar.downstream.predictions import read_predictions
from mstar.downstream.report_generation.options import HistGenOptions
from mstar.downstream.statistics.bootstrap import Estimate, fold_estimate
from support.report_cohort import SMALL, report_cohort

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def gain_of(root: Path, *, shuffled: bool) -> dict[str, Estimate]:
    """Fact metrics of the test part, with intervals over patients."""
    torch.set_num_threads(1)
    cohort = report_cohort(root, cases=500, shuffled=shuffled)
    findings = f"{cohort.folder}/truth/reports_shown.csv"
    options = HistGenOptions(
        **SMALL, epochs=20, lr=2e-3, lr_factor=0.9, batch_slides=8, max_tokens=110,
        vocabulary_size=800, reports=findings, length_power=1.0,
    )  # fmt: skip
    done = conclude_family(
        FamilyJob(
            study=Study(task_id="reports", encoder="planted", head="histgen"),
            data=cohort.data,
            roots=(cohort.store,),
            folder=str(root / "study"),
            options=options,
            sources=FamilySources(cohort=cohort.folder),
            cache_dir=str(root / "cache"),
        )
    )
    parts = evaluated_parts(read_predictions(done.predictions["test"]))
    names = ("fact_recall", "fact_recall_by_chance", "fact_gain", "bleu_1", "bleu_4", "rouge_l",
             "meteor")  # fmt: skip
    found = {name: fold_estimate(name, parts) for name in names}
    for name, one in found.items():
        print(f"shuffled={shuffled} {name} {one.value:.4f} [{one.low:.4f}, {one.high:.4f}]")
    return found


def test_planted_findings_are_named_beyond_what_the_cancer_type_tells(tmp_path: Path) -> None:
    found = gain_of(tmp_path, shuffled=False)
    assert found["fact_gain"].low > 0.0
    assert found["fact_recall"].value > found["fact_recall_by_chance"].value + 0.04
    assert found["bleu_1"].value > 0.2


def test_shuffled_pairs_name_them_by_chance(tmp_path: Path) -> None:
    found = gain_of(tmp_path, shuffled=True)
    assert found["fact_gain"].low < 0.0 < found["fact_gain"].high
    assert abs(found["fact_gain"].value) < 0.06
