"""Zero-shot slide classification: class prompts against patches (MI-Zero) or against the slide.

A class's vector is the mean of its prompts' unit vectors at unit length (prompt ensembling). The
study's row is of the ensemble and of `top` patches, both fixed beforehand. Beside it, for reading
and never for choosing:

    tops.csv         the same for every other number of patches, with intervals
    prompts.csv      each template and each synonym alone, and every single sentence a class drawn
                     at random many times: how much the number depends on the wording
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from mstar.data.tables import write_table
from mstar.data.task_data import TaskData
from mstar.data.tasks import Task
from mstar.downstream.bags import PackedBags
from mstar.downstream.family_job import FamilyJob, FamilyOutcome, FamilySources
from mstar.downstream.fold_views import part_of
from mstar.downstream.language.prompt_scores import PromptScorer, sentence_vectors
from mstar.downstream.language.prompts import Prompts, find_prompts
from mstar.downstream.statistics.bootstrap import interval
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.downstream.statistics.metrics import value_of
from mstar.storage import objects
from mstar.training.seeds import seed_of

METRICS = ("macro_auc", "balanced_accuracy", "weighted_f1")
DRAWS = 200  # of one sentence a class
TOPS_FILE, PROMPTS_FILE = "tops.csv", "prompts.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """One way to say the classes: for each class the positions of its sentences.

    kind: ensemble, template, synonym or draw.
    """

    kind: str
    name: str
    sentences: tuple[tuple[int, ...], ...]


def check(task: Task, sources: FamilySources, options: Any, data: TaskData) -> None:
    """Raises TableError for prompts that are bad or missing, before anything runs."""
    del options, data
    find_prompts(task, sources.prompts)


def run(job: FamilyJob) -> FamilyOutcome:
    """Score every slide of the test part by every wording."""
    prompts = find_prompts(job.data.task, job.sources.prompts)
    wordings = wordings_of(prompts, seed=seed_of("wordings", job.data.task.task_id))
    text, unknown = sentence_vectors(prompts, job.sources.stage1, job.device)
    classes = class_vectors(text, wordings)  # [wording, class, dim]
    bags, fold = job.bags(), job.data.folds[0]
    scorer = PromptScorer(job.sources, job.options, job.device)
    probabilities, by_top = _slide_scores(
        scorer, bags, fold.test, torch.from_numpy(classes).to(job.device)
    )
    _write_tops(job, {t: scorer.probabilities(rows[:, 0]) for t, rows in by_top.items()})
    spread = _write_prompts(job, wordings, by_top[scorer.top])
    facts = job.facts(
        "classification",
        bags.digest,
        digests={"prompts": prompts.digest},
        extra={
            "prompts": prompts.uri,
            "num_prompts": len(prompts.sentences()),
            "unknown_tokens": unknown,
            "wording": spread,
        },
    )
    table = job.predictions(job.part, {(0, 1): probabilities}, facts)
    assert len(fold.test) == len(probabilities)
    return FamilyOutcome(predictions={job.part: table}, scores=spread)


def wordings_of(prompts: Prompts, *, seed: int) -> list[Wording]:
    """The ensemble first, then each template, each synonym, and random single sentences."""
    sentences = prompts.sentences()
    codes = range(len(prompts.class_names))

    def those(wanted: Any) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(at for at, s in enumerate(sentences) if s.class_code == code and wanted(s))
            for code in codes
        )

    every = those(lambda s: True)
    found = [Wording(kind="ensemble", name="all", sentences=every)]
    for place, template in enumerate(prompts.templates):
        own = those(lambda s, place=place: s.template == place)
        found.append(Wording(kind="template", name=template, sentences=own))
    for code, synonyms in enumerate(prompts.synonyms):
        for number, synonym in enumerate(synonyms):
            alone = those(lambda s, n=number, c=code: s.class_code != c or s.synonym == n)
            found.append(Wording(kind="synonym", name=synonym, sentences=alone))
    rng = np.random.default_rng(seed)
    for draw in range(DRAWS):
        drawn = tuple((int(rng.choice(own)),) for own in every)
        found.append(Wording(kind="draw", name=str(draw), sentences=drawn))
    return found


def class_vectors(
    sentences: Float32[np.ndarray, "sentence dim"], wordings: Sequence[Wording]
) -> Float32[np.ndarray, "wording label dim"]:
    """Of each wording and class, the mean of its sentences' unit vectors at unit length."""
    means = np.stack([[sentences[list(own)].mean(0) for own in w.sentences] for w in wordings])
    lengths = np.linalg.norm(means, axis=2, keepdims=True)
    return np.asarray(means / np.maximum(lengths, 1e-12), np.float32)


def _slide_scores(
    scorer: PromptScorer,
    bags: PackedBags,
    places: Int64[np.ndarray, " sample"],
    classes: Float32[Tensor, "wording label dim"],
) -> tuple[
    Float32[np.ndarray, "sample label"], dict[int, Float32[np.ndarray, "sample wording label"]]
]:
    """The study's row; and number of patches → scores of every wording."""
    rows, found = [], []
    for at in places.tolist():
        vectors = scorer.vectors(bags.bag(at), bags.ids[at])
        rows.append(scorer.row(vectors, classes[:1]))
        found.append(scorer.scores(vectors, classes))
    by_top = {top: np.stack([one[at] for one in found]) for at, top in enumerate(scorer.tops)}
    return np.concatenate(rows), by_top


def evaluated_of(job: FamilyJob, scores: Float32[np.ndarray, "sample label"]) -> Evaluated:
    """Scores of the test part as metrics take them."""
    part = part_of(job.data, job.part, job.data.folds[0].test)
    return Evaluated(
        patients=part.patients, scores=scores.astype(np.float64), labels=part.labels, fold="0"
    )


def _write_tops(job: FamilyJob, by_top: dict[int, Float32[np.ndarray, "sample label"]]) -> None:
    """Every number of patches with intervals."""
    rows = []
    for top, scores in by_top.items():
        for metric in METRICS:
            one = interval(metric, evaluated_of(job, scores))
            rows.append({"top": top, "metric": metric, "value": one.value} | _ends(one))
    write_table(objects.join(job.folder, TOPS_FILE), pa.Table.from_pylist(rows))


def _ends(one: Any) -> dict[str, float]:
    return {"low": one.low, "high": one.high}


def _write_prompts(
    job: FamilyJob,
    wordings: Sequence[Wording],
    scores: Float32[np.ndarray, "sample wording label"],
) -> dict[str, float]:
    """Every wording's metrics; returns how far single sentences spread."""
    rows: list[dict[str, Any]] = []
    for at, wording in enumerate(wordings):
        own = evaluated_of(job, scores[:, at])
        metrics = {name: value_of(name, own) for name in METRICS}
        rows.append({"kind": wording.kind, "name": wording.name, **metrics})
    write_table(objects.join(job.folder, PROMPTS_FILE), pa.Table.from_pylist(rows))
    spread: dict[str, Any] = {}
    for name in METRICS[:2]:
        drawn = np.array([row[name] for row in rows if row["kind"] == "draw"])
        low, middle, high = np.nanpercentile(drawn, [5, 50, 95])
        spread |= {f"one_prompt_{name}_p05": float(low), f"one_prompt_{name}_p50": float(middle)}
        spread[f"one_prompt_{name}_p95"] = float(high)
    return spread
