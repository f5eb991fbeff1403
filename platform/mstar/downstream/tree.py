"""The MLflow tree of a sweep: the sweep, its studies, their trials.

    sweep                        settings, what is left out, the summary
    └── task/encoder/head        its winner: settings, scores, predictions, models, figures, digests
        └── t003                 settings, and one batch of metrics per epoch

Runs have ids of ours that follow from the sweep's and the study's name, so that a sweep which goes
on after a kill says everything again and nothing is there twice. Only the driver says anything, to
the spool of the sweep; a tracker process sends it on.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mstar.config import fingerprint
from mstar.downstream.pieces import Concluded, FitRecord
from mstar.downstream.search import FAILED, TrialEnd
from mstar.downstream.study_run import StudyRun
from mstar.storage import objects
from mstar.training.tracker import TreeTracker

NAMES = ("train_loss", "val_loss", "val_score")  # of the columns of a fit's history
SCORE = "score"


class SweepTree:
    """Says to a tracker what the studies have done."""

    def __init__(self, tracker: TreeTracker) -> None:
        """Say it to the run of the sweep."""
        self._tracker = tracker
        self._begun: set[str] = set()
        self._told: set[str] = set()

    def tell(self, run: StudyRun) -> None:
        """Say what is new of a study: its trials that ended, and its own end."""
        if not self._tracker.run_id:
            return
        own = self.study_id(run)
        if own not in self._begun:
            self._begun.add(own)
            self._begin(run, own)
        for end in run.search.ended.values():
            self._tell_trial(run, own, end)
        if run.done:
            self._end(run, own)

    def study_id(self, run: StudyRun) -> str:
        """Our id of a study's run."""
        return fingerprint([self._tracker.run_id, run.plan.study.key])

    def _begin(self, run: StudyRun, own: str) -> None:
        plan, study = run.plan, run.plan.study
        params = {
            "task": study.task_id,
            "encoder": study.encoder,
            "head": study.head,
            "protocol": plan.protocol.name,
            "seeds": len(plan.seeds),
            "folds": len(plan.folds),
            "trials": run.search.samples,
            "budgets": plan.budgets,
            "trained_on": plan.models_of.task_id if plan.models_of else "",
        }
        names = {name: params[name] for name in ("task", "encoder", "head", "protocol")}
        self._tracker.log_run(
            own,
            name=study.key,
            status="RUNNING",
            params=params,
            tags={"mstar.kind": "study"} | names,
        )

    def _tell_trial(self, run: StudyRun, parent: str, end: TrialEnd) -> None:
        own = f"{parent}-t{end.trial:04d}"
        if own in self._told:
            return
        self._told.add(own)
        fits = run.by_trial[end.trial]
        reasons = [fit.failed for fit in fits if fit.failed]
        ended = "failed" if reasons else "full length" if end.full else "halved"
        tags = {"mstar.kind": "trial", "mstar.ended": ended}
        if reasons:
            tags["mstar.reason"] = reasons[0]
        self._tracker.log_run(
            own,
            parent=parent,
            name=f"t{end.trial:03d}",
            status="FAILED" if reasons else "FINISHED",
            params={"trial": end.trial, **_params(end)},
            tags=tags,
            metrics=trial_metrics(fits, end.score),
            duration_s=sum(fit.seconds for fit in fits),
        )

    def _end(self, run: StudyRun, own: str) -> None:
        name = run.plan.study.key
        if run.concluded is None:
            tags = {"mstar.reason": run.failed}
            self._tracker.log_run(own, name=name, status="FAILED", tags=tags)
            return
        done = run.concluded
        with _local_files(done) as files:
            self._tracker.log_run(
                own,
                name=name,
                status="FINISHED",
                params={"best": dict(done.config)},
                tags={"mstar.winner": f"t{done.trial:03d}", "mstar.folder": done.folder}
                | {f"mstar.{name}": value for name, value in done.facts.items()},
                metrics=study_metrics(run, done),
                files=files,
            )


def study_metrics(run: StudyRun, done: Concluded) -> list[tuple[str, float, int]]:
    """Scores of a study's winner, and how many trials there were."""
    metrics = [("trials", float(len(run.search.ended)), 0)]
    if done.mean_score is not None:
        metrics.append((SCORE, done.mean_score, 0))
    return metrics + [(name, value, 0) for name, value in done.scores.items()]


def trial_metrics(fits: Sequence[FitRecord], score: float) -> list[tuple[str, float, int]]:
    """Metrics per epoch, a mean over the folds and seeds that got so far, and the score."""
    metrics = []
    for epoch in range(max((len(fit.history) for fit in fits), default=0)):
        rows = [fit.history[epoch] for fit in fits if epoch < len(fit.history)]
        for column, name in enumerate(NAMES):
            values = [v for row in rows if (v := row[column]) is not None and math.isfinite(v)]
            if values:
                metrics.append((name, sum(values) / len(values), epoch))
    if score > FAILED:
        metrics.append((SCORE, score, 0))
    return metrics


def _params(end: TrialEnd) -> dict[str, object]:
    names = [name for name in type(end.config).__slots__]
    return {name: getattr(end.config, name) for name in names}


@contextmanager
def _local_files(done: Concluded) -> Iterator[list[tuple[Path, str]]]:
    """The files of a winner on this machine, each with its folder among the artifacts."""
    wanted = [(uri, "") for uri in done.predictions.values()]
    wanted += [(uri, "models") for uri in done.models]
    wanted += [(uri, "figures") for uri in done.figures]
    with tempfile.TemporaryDirectory(prefix="mstar-winner-") as scratch:
        files = []
        for number, (uri, folder) in enumerate(wanted):
            if objects.is_local(uri):
                files.append((objects.local_path(uri), folder))
                continue
            path = Path(scratch, str(number), uri.rpartition("/")[2])
            path.parent.mkdir()
            path.write_bytes(objects.read_bytes(uri))
            files.append((path, folder))
        yield files
