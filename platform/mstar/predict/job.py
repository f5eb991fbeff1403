"""`mstar predict`: a finished study applied to new slides.

    <out>/features/              features of the slides that no given store had, and its ledger
    <out>/predictions.csv        one row a case (`models.py`), .parquet beside it
    <out>/failures.csv           slides and cases without a prediction, and why
    <out>/predict.json           the call, the model, counts
    <out>/reports/               of report generation: as `mstar report write` leaves them

Both tables are written whole, and last. The run is in MLflow as those of other jobs are.
"""

import csv
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from mstar import __version__
from mstar.config import to_dict, to_json
from mstar.errors import MstarError
from mstar.predict.config import PredictConfig
from mstar.predict.features import Wanted, wanted
from mstar.predict.models import Asked, Model, open_model
from mstar.predict.rows import cases_of
from mstar.predict.same_features import embed_config, recorded_in
from mstar.schema import RESEARCH_ONLY
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode, exit_code
from mstar.training.tracker import NullTracker, Tracker, ended
from mstar.training.tracking import start_tracking

TEXT_COLUMNS = ("report",)  # not for MLflow: whole reports stay where the user put them


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What came of a call.

    rows: of the cases. failed: name of a slide or case → why it has none. seconds: of it all.
    """

    rows: list[dict[str, Any]]
    failed: dict[str, str]
    seconds: float


def run(config: PredictConfig) -> int:
    """Run the job; returns its exit code."""
    began_s = time.monotonic()
    model = open_model(config)
    expected = recorded_in(model.made_by, of=config.model)
    if config.run.dry_run:
        return _preview(config, model, expected)
    tracker: Tracker = NullTracker()
    if config.run.tracking:
        tracker = start_tracking("predict", config, out=config.out)
    with nullcontext() if isinstance(tracker, NullTracker) else ended(tracker):
        tracker.set_tags({**model.stamp, "warning": RESEARCH_ONLY})
        rows, failed = predict_all(config, model, wanted(config, expected))
        done = Predicted(rows=rows, failed=failed, seconds=time.monotonic() - began_s)
        write(config, model, done)
        _track(tracker, config, done)
    _say(config, model, done)
    return exit_code(len(failed), len(rows) + len(failed), config.run.max_failures)


def predict_all(
    config: PredictConfig, model: Model, slides: Wanted
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the cases, and name → why of those that have none."""
    unit = config.unit if config.unit != "auto" else model.unit
    cases = cases_of(slides.store_of, slides.case_of, by_case=unit == "case")
    asked = [_asked(name, own, slides) for name, own in cases.items()]
    rows, failed = [], dict(slides.failed)
    with _threads(config.threads):
        for one, answer in zip(asked, model.answers(asked), strict=True):
            if isinstance(answer, MstarError):
                failed[one.name] = str(answer)
            else:
                rows.append(_row(one, answer, model, slides, by_case=unit == "case"))
    return rows, failed


def write(config: PredictConfig, model: Model, done: Predicted) -> None:
    """Write the tables, whole; predict.json last."""
    table = pa.Table.from_pylist(done.rows)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    objects.write_whole(objects.join(config.out, "predictions.parquet"), sink.getvalue())
    predictions = objects.join(config.out, "predictions.csv")
    objects.write_whole(predictions, _csv(table.column_names, done.rows))
    objects.write_whole(objects.join(config.out, "failures.csv"), _failures(done))
    objects.write_whole(objects.join(config.out, "predict.json"), _record(config, model, done))


def _asked(name: str, names: list[str], slides: Wanted) -> Asked:
    case_id = slides.case_of.get(names[0], name)
    return Asked(
        name=name,
        rna=slides.rna_of.get(case_id, case_id),
        store_of={slide: slides.store_of[slide] for slide in names},
    )


def _row(
    asked: Asked, answer: dict[str, Any], model: Model, slides: Wanted, *, by_case: bool
) -> dict[str, Any]:
    """All columns of a case."""
    lost = [s for s in slides.failed if by_case and slides.case_of.get(s) == asked.name]
    return {
        "case_id": asked.name,
        "slides": ";".join(asked.store_of),
        **answer,
        **model.stamp,
        "warning": RESEARCH_ONLY,
        "slides_without_features": ";".join(lost),
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many of torch's as asked for: how a matrix product is cut decides its last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _csv(columns: list[str], rows: list[dict[str, Any]]) -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode()


def _failures(done: Predicted) -> bytes:
    lost = [{"name": name, "reason": reason} for name, reason in done.failed.items()]
    return _csv(["name", "reason"], lost)


def _record(config: PredictConfig, model: Model, done: Predicted) -> bytes:
    record = {
        "config": to_dict(config),
        "model": {**model.stamp, "uris": model.uris},
        **model.notes,
        "cases": len(done.rows),
        "failed": len(done.failed),
        "mstar_version": __version__,
        "warning": RESEARCH_ONLY,
    }
    return to_json(record).encode()


def _track(tracker: Tracker, config: PredictConfig, done: Predicted) -> None:
    """Counts, the record, the failures, and the rows without their texts."""
    counts = {"cases": len(done.rows), "failed": len(done.failed), "seconds": done.seconds}
    tracker.log_metrics({name: float(value) for name, value in counts.items()}, step=0)
    names = [name for name in (done.rows[0] if done.rows else {}) if name not in TEXT_COLUMNS]
    uri = objects.join(config.out, "predict.json")
    files = {
        "predictions.csv": _csv(names, done.rows),
        "failures.csv": _failures(done),
        "predict.json": objects.read_bytes(uri),
    }
    with tempfile.TemporaryDirectory(prefix="mstar-predict-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.write_bytes(content)
            tracker.log_artifact(path)


def _preview(config: PredictConfig, model: Model, expected: Any) -> int:
    print(to_json(config))
    print(f"{config.model}: {len(model.uris)} models of {model.stamp['task']}")
    if config.slides is not None:
        print(to_json(embed_config(config, expected, objects.join(config.out, "features"))))
    print("Nothing was written.")
    return ExitCode.COMPLETE


def _say(config: PredictConfig, model: Model, done: Predicted) -> None:
    made = model.stamp
    print(f"predict: {made['task']} by {made['head']} on {made['encoder']}")
    print(f"  cases       {len(done.rows):,} predicted, {len(done.failed):,} without")
    for name, reason in list(done.failed.items())[:5]:
        print(f"              {name}: {reason[:160]}")
    print(f"  models      {len(model.uris)}: {made['models']}")
    if "temperature" in model.notes:
        told = model.notes["temperature"]
        told = "none: no validation predictions" if told is None else f"{told:.3f}"
        print(f"  temperature {told}")
    print(f"  output      {objects.join(config.out, 'predictions.csv')}, .parquet")
    print(f"  {RESEARCH_ONLY}")
