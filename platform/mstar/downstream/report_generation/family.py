"""A study of report generation in a sweep: train on each fold and seed, write, score, show.

    <study>/models/<fold>-s<seed>.safetensors, .json     weights, sizes, vocabulary
    <study>/reports-<part>.csv      case_id, fold, seed, ended, tokens, generated, reference
    <study>/samples-<part>.html     texts beside their references, without a network
    <study>/reports_left_out.csv    cases without a report, with the reason
    <study>/sealed/                 which model opened the test part

A fit that is finished is not trained again after a kill. An external task trains nothing: the
models of the internal study write the reports of its slides.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mstar.config import fingerprint, to_dict
from mstar.data.report_vocabulary import ReportVocabulary, bert_vocabulary, learn_vocabulary
from mstar.data.task_data import TaskData
from mstar.data.tasks import Task
from mstar.downstream.evaluate import SealedTest, run_name
from mstar.downstream.family_job import FamilyJob, FamilyOutcome, FamilySources
from mstar.downstream.model_files import SUFFIX
from mstar.downstream.population import train_population
from mstar.downstream.report_generation.facts import find_facts
from mstar.downstream.report_generation.fit import ReportTask
from mstar.downstream.report_generation.options import LEARNT, HistGenOptions
from mstar.downstream.report_generation.outcome import (
    ReportStudy,
    Scored,
    make_outcome,
    score_part,
    write_left_out,
)
from mstar.downstream.report_generation.texts import join_reports, read_cohort_reports
from mstar.downstream.report_generation.writing import (
    Writer,
    find_writers,
    load_writer,
    save_writer,
)
from mstar.downstream.statistics.generation import KIND
from mstar.downstream.stream import BagSource
from mstar.errors import ConfigError, TrainingError
from mstar.storage import objects


def check(task: Task, sources: FamilySources, options: HistGenOptions, data: TaskData) -> None:
    """Raises what is wrong with reports, vocabulary or packages before anything runs."""
    for package in ("sacrebleu", "rouge_score", "nltk"):
        try:
            __import__(package)
        except ImportError as error:
            raise ConfigError(
                f"report generation: package {package} is missing ({error}). Install it with "
                "pip; `mstar doctor` checks all three."
            ) from error
    join_reports(data, read_cohort_reports(sources.cohort, options.reports))
    if options.vocabulary != LEARNT:
        bert_vocabulary(options.vocabulary)


def run(job: FamilyJob) -> FamilyOutcome:
    """Run the study."""
    options = job.options
    assert isinstance(options, HistGenOptions)
    reports = join_reports(job.data, read_cohort_reports(job.sources.cohort, options.reports))
    study = ReportStudy(
        job=replace(job, data=reports.data),
        options=options,
        reports=reports,
        facts=find_facts(options.facts or objects.join(job.sources.cohort, "truth")),
        bags=replace(job, data=reports.data).bags(),
    )
    write_left_out(job.folder, reports)
    return _run_external(study) if job.models_of else _run_internal(study)


def _run_internal(study: ReportStudy) -> FamilyOutcome:
    job, source = study.job, BagSource(study.bags, study.job.device)
    writers, models = [], []
    for fold, seed in study.runs:
        writer = _trained(study, source, fold, seed)
        name = run_name(study.data.folds[fold].name, seed)
        models.append(objects.join(job.folder, "models", name + SUFFIX))
        save_writer(models[-1], writer)
        writers.append(writer)
    parts: dict[str, list[Scored]] = {"val": [], "test": []}
    for writer, (fold, seed) in zip(writers, study.runs, strict=True):
        parts["val"].append(score_part(study, writer, source, "val", fold, seed))
        if len(study.places("test", fold)):
            sealed = SealedTest(
                study.data, source, study=job.study, fold=fold, seed=seed, out=job.folder
            )
            sealed.seal(writer.fit)
            parts["test"].append(score_part(study, writer, source, "test", fold, seed))
    return make_outcome(study, {p: s for p, s in parts.items() if s}, writers, tuple(models))


def _run_external(study: ReportStudy) -> FamilyOutcome:
    source = BagSource(study.bags, study.job.device)
    writers = find_writers(study.job.models_of)
    scored = [
        score_part(study, writer, source, "external", 0, writer.fit.seed)
        for writer in writers
        if writer.fit.fold == writers[0].fit.fold
    ]
    return make_outcome(study, {"external": scored}, writers, ())


def _trained(study: ReportStudy, source: BagSource, fold: int, seed: int) -> Writer:
    """A model of one fold and seed, found again after a kill."""
    job, options = study.job, study.options
    cut = study.data.folds[fold]
    texts = [study.reports.texts[at] for at in cut.train.tolist()]
    digests = [study.data.digest, study.bags.digest, cut.train.tolist(), cut.val.tolist(), texts]
    key = fingerprint([to_dict(options), cut.name, seed, digests])
    uri = objects.join(job.work, "fits", f"{run_name(cut.name, seed)}-{key}{SUFFIX}")
    if objects.exists(uri):
        return load_writer(uri)
    vocabulary = _vocabulary(options, texts)
    task = ReportTask(options=options, vocabulary=vocabulary, texts=study.reports.texts)
    (fit,) = train_population(
        study.data,
        study.bags,
        [options.trial],
        fold=fold,
        seed=seed,
        device=job.device,
        source=source,
        fused=False,
        make_fit=task.make_fit,
    )
    if fit.failed:
        raise TrainingError(f"study {job.study.key}, fold {cut.name}, seed {seed}: {fit.failed}")
    writer = Writer(
        fit=fit, options=options, vocabulary=vocabulary, facts=_model_facts(study, texts)
    )
    save_writer(uri, writer)
    return writer


def _vocabulary(options: HistGenOptions, texts: Sequence[str]) -> ReportVocabulary:
    """Of the training split, or BERT's."""
    if options.vocabulary != LEARNT:
        return bert_vocabulary(options.vocabulary)
    return learn_vocabulary(texts, size=options.vocabulary_size, lower_case=options.lower_case)


def _model_facts(study: ReportStudy, texts: Sequence[str]) -> dict[str, Any]:
    return {
        "study": to_dict(study.job.study),
        "training": KIND,
        "reports_trained_on": len(texts),
        "unit": study.data.task.unit,
        "made_by": list(study.bags.made_by),
        "digests": {"labels": study.data.digest, "features": study.bags.digest},
    }
