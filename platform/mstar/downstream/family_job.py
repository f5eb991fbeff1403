"""One study of a family: what it is given, and what comes of it (contract: `families.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from mstar.config import to_dict
from mstar.data.task_data import TaskData
from mstar.downstream.bags import PackedBags, load_bags
from mstar.downstream.config import Study
from mstar.downstream.evaluate import Scored, join_scored
from mstar.downstream.fold_views import part_of
from mstar.downstream.predictions import PredictionFacts, Predictions
from mstar.features.store import FeatureStore
from mstar.storage import objects


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySources:
    """What a sweep has besides labels and features; empty: not given.

    cohort: folder with cases.csv, reports.csv, expression/.
    stage1: folder that `mstar stage1 --out` wrote: aggregator, text and gene encoder, tokenizer.
    stage2: folder that `mstar stage2 --out` wrote: the projection.
    prompts: folder or file of prompts; the package's own where it has none of a task.
    """

    cohort: str = ""
    stage1: str = ""
    stage2: str = ""
    prompts: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyJob:
    """One study to be run.

    study: its names; `study.head` is the method.
    data: samples, folds, patients, digests.
    roots: addresses of the encoder's feature stores.
    folder: of the study's files. models_of: of the study whose models are tested; "" for none.
    options: the method's dataclass.
    device: cpu or cuda. cache_dir: for packed bags and staged files; None for the default.
    figures: whether to draw.
    """

    study: Study
    data: TaskData
    roots: tuple[str, ...]
    folder: str
    options: Any
    sources: FamilySources
    seeds: tuple[int, ...] = (1,)
    models_of: str = ""
    device: str = "cpu"
    cache_dir: str | None = None
    figures: bool = True

    @property
    def work(self) -> str:
        """Folder for what an interrupted run goes on from."""
        return objects.join(self.folder, "work")

    @property
    def part(self) -> str:
        """Name of the part that is scored: test, or external."""
        return "external" if self.data.task.trained_on else "test"

    def stores(self) -> list[FeatureStore]:
        """The encoder's feature stores."""
        return [FeatureStore.open(root) for root in self.roots]

    def bags(self) -> PackedBags:
        """The features of `data.samples`, in their order."""
        return load_bags(self.data.samples, self.stores(), cache_root=self.cache_dir)

    def facts(self, kind: str, features: str = "", **more: Any) -> PredictionFacts:
        """What prediction files say of the study.

        Args:
            kind: of the scores: classification, retrieval or report_generation.
            features: digest of the bags.
            more: fields of `PredictionFacts`, added to these or in their place; `digests` and
                `extra` are added to.
        """
        data = self.data
        digests = {"labels": data.digest, "splits": data.split_digest, "features": features}
        extra = {
            "dropped": dict(data.dropped),
            "split_source": data.split_source,
            "label_source": data.label_source,
            "unit": data.task.unit,
        }
        base: dict[str, Any] = {
            "kind": kind,
            "metric": data.task.metric,
            "data_source": data.data_source,
            "class_names": data.class_names,
            "config": {"method": self.study.head, **to_dict(self.options)},
            "leaked_patients": data.leaked_patients,
            "trained_on": data.task.trained_on or "",
        }
        base |= {name: value for name, value in more.items() if name not in ("digests", "extra")}
        base["digests"] = digests | dict(more.get("digests", {}))
        base["extra"] = extra | dict(more.get("extra", {}))
        return PredictionFacts(**base)

    def predictions(
        self,
        part: str,
        scores: Mapping[tuple[int, int], Float32[np.ndarray, "sample score"]],
        facts: PredictionFacts,
        *,
        places: Int64[np.ndarray, " sample"] | None = None,
    ) -> Predictions:
        """A prediction table.

        Args:
            part: val, test or external.
            scores: (position of the fold, seed) → a row for each sample of that fold's part, in
                the order of the fold.
            facts: of `facts`.
            places: positions among the samples that the rows are of, where they are not all of the
                fold's part.
        """
        scored = []
        for (fold, seed), rows in scores.items():
            cut = self.data.folds[fold]
            whole = cut.val if part == "val" else cut.test
            own = part_of(self.data, part, whole if places is None else places)
            scored.append(Scored(fold=cut.name, seed=seed, part=own, scores=rows))
        return join_scored(self.study, self.data, part, scored, facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyOutcome:
    """What came of a study.

    predictions: part → table; test or external, and val where there is one.
    mean_score: validation score of what was chosen; None where nothing was.
    models, figures, files: addresses below the study's folder, for MLflow.
    scores: more numbers for MLflow, name → value; the parts' own metrics are added.
    extra: for study.json.
    """

    predictions: Mapping[str, Predictions]
    mean_score: float | None = None
    models: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
