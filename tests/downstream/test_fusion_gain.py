"""Does fusion gain what there is to gain? Hazards planted on both sides, or on one alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mstar.downstream.bags import load_bags
from mstar.downstream.config import Study, TrialConfig
from mstar.downstream.prediction_parts import evaluated_parts
from mstar.downstream.predictions import read_predictions
from mstar.downstream.statistics.compare import Difference, paired_difference
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.downstream.statistics.metrics import value_of
from mstar.downstream.studies import plan_sweep
from mstar.downstream.study import run_study
from mstar.downstream.sweep_config import FUSION_ARMS, SweepConfig
from mstar.features.store import FeatureStore
from mstar.models.heads import FUSION_HEADS
from support.planted_fusion import FusionPlan, plant_fusion

PLAN = FusionPlan(cases=1000, shares=(0.35, 0.15))
MARGIN = 0.05  # C-index by which fusion may be behind the better arm, with 500 test cases
SMALL: Mapping[str, dict[str, Any]] = {
    "mcat": {"dim": 64, "feed_forward": 128},
    "porpoise": {"hidden": 64, "dim": 64},
    "motcat": {"dim": 64, "feed_forward": 128},
    "cmta": {"dim": 64, "gene_hidden": 64, "landmarks": 32},
    "snn": {"dim": 64},
    "abmil": {"hidden": 64, "attention_dim": 32},
}
"""Narrow heads: the vectors have 16 numbers, the vocabulary 72 genes."""


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Evaluated]]]:
    """Task → head → what its model, chosen on validation, said about the test part."""
    root = tmp_path_factory.mktemp("gain")
    plan = plan_sweep(SweepConfig(**plant_fusion(root, PLAN)))
    store = FeatureStore.open(str(root / "F"))
    return {
        data.task.task_id: {
            head: evaluated_parts(
                read_predictions(
                    run_study(
                        Study(task_id=data.task.task_id, encoder="enc", head=head),
                        data,
                        load_bags(data.samples, store, cache_root=str(root / "cache")),
                        [trial(head)],
                        out=str(root / "out"),
                    ).predictions["test"]
                )
            )
            for head in SMALL
        }
        for data in plan.tasks.values()
    }


def trial(head: str) -> TrialConfig:
    """The same for all, arms too; more than one bag a step, and fewer epochs, to be quick."""
    return TrialConfig(head=head, head_options=SMALL[head], lr=5e-4, batch_bags=8, epochs=20)


def difference(found: Mapping[str, list[Evaluated]], head: str, arm: str) -> Difference:
    shown = paired_difference("c_index", found[head], found[arm], resamples=2000)
    own = value_of("c_index", found[head][0])
    print(f"{head} {own:.3f} - {arm}: {shown.value:+.3f} [{shown.low:+.3f}, {shown.high:+.3f}]")
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("head", FUSION_HEADS)
def test_fusion_beats_both_arms_where_both_sides_tell(
    head: str, tested: dict[str, dict[str, list[Evaluated]]]
) -> None:
    for arm in FUSION_ARMS:
        found = difference(tested["fusion_both"], head, arm)
        assert found.low > 0
        assert found.value > 0.03


@pytest.mark.slow
@pytest.mark.parametrize("head", FUSION_HEADS)
@pytest.mark.parametrize(
    ("task", "better", "worse"),
    [("fusion_slides", "abmil", "snn"), ("fusion_genes", "snn", "abmil")],
)
def test_fusion_is_as_good_as_the_better_arm_where_one_side_tells(
    head: str, task: str, better: str, worse: str, tested: dict[str, dict[str, list[Evaluated]]]
) -> None:
    """The whole interval lies within the margin; the arm that is told nothing is at chance."""
    found = difference(tested[task], head, better)
    assert -MARGIN < found.low
    assert found.high < MARGIN
    assert value_of("c_index", tested[task][better][0]) > 0.65
    assert abs(value_of("c_index", tested[task][worse][0]) - 0.5) < 0.06
