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
from jaxtyping import Float32
from torch import Tensor

from mstar.data.tables import write_table
from mstar.data.task_data import TaskData
from mstar.data.tasks import Task
from mstar.downstream.bags import PackedBags
from mstar.downstream.families import FamilyJob, FamilyOutcome, FamilySources
from mstar.downstream.fold_views import part_of
from mstar.downstream.language.encoders import PatchSide, SlideSide, TextSide
from mstar.downstream.language.options import MiZeroOptions, SlideTextOptions
from mstar.downstream.language.pooling import class_scores
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
    text, unknown = _text_vectors(job, prompts)
    classes = class_vectors(text, wordings)  # [wording, class, dim]
    bags = job.bags()
    by_top = _slide_scores(job, bags, torch.from_numpy(classes).to(job.device))
    options, fold = job.options, job.data.folds[0]
    top = options.top if isinstance(options, MiZeroOptions) else 0
    main = by_top[top][:, 0]
    probabilities = _probabilities(main, options)
    _write_tops(job, {t: _probabilities(rows[:, 0], options) for t, rows in by_top.items()})
    spread = _write_prompts(job, wordings, by_top[top])
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


def _text_vectors(
    job: FamilyJob, prompts: Prompts
) -> tuple[Float32[np.ndarray, "sentence dim"], float]:
    side = TextSide(job.sources.stage1, job.device)
    texts = [sentence.text for sentence in prompts.sentences()]
    ids = side.token_ids(texts, [f"{prompts.uri}: prompt {text!r}" for text in texts])
    return side.vectors(ids), side.unknown_share(ids)


def _slide_scores(
    job: FamilyJob, bags: PackedBags, classes: Float32[Tensor, "wording label dim"]
) -> dict[int, Float32[np.ndarray, "sample wording label"]]:
    """Number of patches → scores; 0 where the slide vector is scored."""
    places, options = job.data.folds[0].test.tolist(), job.options
    if isinstance(options, SlideTextOptions):
        side = SlideSide(job.sources.stage1, window=options.window, device=job.device)
        rows = [classes @ side.vector(bags.bag(at), bags.ids[at]) for at in places]
        return {0: torch.stack(rows).cpu().numpy()}
    patch_side = PatchSide(
        job.sources.stage1, job.sources.stage2, space=options.space, window=options.window,
        device=job.device,
    )  # fmt: skip
    tops, vote = options.all_tops, options.pool == "vote"
    found = [
        class_scores(patch_side.vectors(bags.bag(at)), classes, tops, vote=vote).cpu().numpy()
        for at in places
    ]
    return {top: np.stack([rows[at] for rows in found]) for at, top in enumerate(tops)}


def _probabilities(
    scores: Float32[np.ndarray, "sample label"], options: Any
) -> Float32[np.ndarray, "sample label"]:
    if isinstance(options, MiZeroOptions) and options.pool == "vote":
        return scores
    return torch.softmax(torch.from_numpy(scores) * options.scale, dim=1).numpy()


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
