"""A finished study of a family on disk: its predictions, and `study.json` last."""

import math

from mstar import __version__
from mstar.config import to_dict, to_json
from mstar.downstream.families import run_family
from mstar.downstream.family_job import FamilyJob, FamilyOutcome
from mstar.downstream.family_sources import stages_digest
from mstar.downstream.piece_records import mean_scores
from mstar.downstream.pieces import Concluded
from mstar.downstream.predictions import PredictionFacts, write_predictions
from mstar.downstream.study_files import DONE
from mstar.storage import objects


def conclude_family(job: FamilyJob) -> Concluded:
    """Run a study of a family and write what came of it."""
    outcome = run_family(job)
    files = {}
    for part, predictions in outcome.predictions.items():
        files[part] = objects.join(job.folder, f"predictions-{part}.parquet")
        write_predictions(files[part], predictions)
    facts = outcome.predictions[job.part].facts
    _write_record(job, outcome, facts, files)
    objects.delete_tree(job.work)
    return Concluded(
        folder=job.folder,
        trial=-1,
        config=dict(facts.config),
        mean_score=outcome.mean_score,
        predictions=files,
        models=outcome.models,
        figures=outcome.figures,
        scores={n: v for n, v in outcome.scores.items() if math.isfinite(v)} | mean_scores(files),
        facts=_tags(job, facts),
    )


def _write_record(
    job: FamilyJob, outcome: FamilyOutcome, facts: PredictionFacts, files: dict[str, str]
) -> None:
    prefix = job.folder.rstrip("/") + "/"
    record = {
        "mstar_version": __version__,
        "study": to_dict(job.study),
        "family": job.data.task.kind,
        "config": dict(facts.config),
        "sources": to_dict(job.sources),
        "stages": stages_digest(job.data.task.kind, job.study.head, job.sources),
        "made_by": [store.record.config for store in job.stores()],
        "unit": job.data.task.unit,
        "class_names": list(job.data.class_names),
        "seeds": list(job.seeds),
        "digests": dict(facts.digests),
        "parts": {part: uri.removeprefix(prefix) for part, uri in files.items()},
        "models": [uri.removeprefix(prefix) for uri in outcome.models],
        "figures": [uri.removeprefix(prefix) for uri in outcome.figures],
        "scores": dict(outcome.scores),
        "data_source": job.data.data_source,
        "leaked_patients": job.data.leaked_patients,
        "match": str(job.data.match),
        "extra": {**facts.extra, **outcome.extra},
    }
    objects.write_whole(objects.join(job.folder, DONE), to_json(record).encode())


def _tags(job: FamilyJob, facts: PredictionFacts) -> dict[str, object]:
    """What the tags of its MLflow run say."""
    return {
        **{f"digest.{name}": value for name, value in facts.digests.items()},
        "family": job.data.task.kind,
        "data_source": job.data.data_source,
        "samples": len(job.data.samples),
        "leaked_patients": job.data.leaked_patients,
        "split_source": job.data.split_source,
        "label_source": job.data.label_source,
        "trained_on": job.data.task.trained_on or "",
    }
