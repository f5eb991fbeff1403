"""`mstar predict`: a finished study applied to new slides.

    <out>/features/              features of the slides that no given store had, and its ledger
    <out>/predictions.csv        one row a case (`rows.py`), .parquet beside it
    <out>/failures.csv           slides and cases without a prediction, and why
    <out>/predict.json           the call, the model, the temperature, counts

Both tables are written whole, and last.
"""

import csv
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mstar import __version__
from mstar.api import Bag, Head, load_head
from mstar.config import to_dict, to_json
from mstar.errors import FeatureError
from mstar.predict.config import PredictConfig
from mstar.predict.features import Wanted, wanted
from mstar.predict.rows import WARNING, cases_of, row_of, stamp, temperature_of
from mstar.predict.same_features import embed_config, recorded
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode, exit_code


def run(config: PredictConfig) -> int:
    """Run the job; returns its exit code."""
    head = load_head(config.model)
    expected = recorded(head)
    if config.run.dry_run:
        return _preview(config, head, expected)
    temperature = temperature_of(config.model, head)
    slides = wanted(config, expected)
    rows, failed = predict_all(config, head, slides, temperature)
    write(config, head, rows, failed, temperature)
    _say(config, head, rows, failed, temperature)
    num_total = len(rows) + len(failed)
    return exit_code(len(failed), num_total, config.run.max_failures)


def predict_all(
    config: PredictConfig, head: Head, slides: Wanted, temperature: float | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the cases, and name → why of those that have none."""
    unit = config.unit if config.unit != "auto" else str(head.models[0].facts.get("unit", "case"))
    cases = cases_of(slides.store_of, slides.case_of, by_case=unit == "case")
    rows, failed = [], dict(slides.failed)
    for name, names in cases.items():
        lost = [s for s in slides.failed if slides.case_of.get(s) == name and unit == "case"]
        try:
            bag = Bag.of(slides.store_of, *names)
        except FeatureError as error:
            failed[name] = str(error)
            continue
        row = row_of(name, bag, head.predict(bag), head, temperature)
        rows.append({**row, "slides_without_features": ";".join(lost)})
    return rows, failed


def write(
    config: PredictConfig,
    head: Head,
    rows: list[dict[str, Any]],
    failed: dict[str, str],
    temperature: float | None,
) -> None:
    """Write the tables, whole; predict.json last."""
    table = pa.Table.from_pylist(rows)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    objects.write_whole(objects.join(config.out, "predictions.parquet"), sink.getvalue())
    _write_csv(objects.join(config.out, "predictions.csv"), table.column_names, rows)
    lost = [{"name": name, "reason": reason} for name, reason in failed.items()]
    _write_csv(objects.join(config.out, "failures.csv"), ["name", "reason"], lost)
    record = {
        "config": to_dict(config),
        "model": {**stamp(head), "uris": [model.uri for model in head.models]},
        "temperature": temperature,
        "cases": len(rows),
        "failed": len(failed),
        "mstar_version": __version__,
        "warning": WARNING,
    }
    objects.write_whole(objects.join(config.out, "predict.json"), to_json(record).encode())


def _write_csv(uri: str, columns: list[str], rows: list[dict[str, Any]]) -> None:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    objects.write_whole(uri, sink.getvalue().encode())


def _preview(config: PredictConfig, head: Head, expected: Any) -> int:
    print(to_json(config))
    print(f"{config.model}: {len(head.models)} models of {stamp(head)['task']}")
    if config.slides is not None:
        print(to_json(embed_config(config, expected, objects.join(config.out, "features"))))
    print("Nothing was written.")
    return ExitCode.COMPLETE


def _say(
    config: PredictConfig,
    head: Head,
    rows: list[dict[str, Any]],
    failed: dict[str, str],
    temperature: float | None,
) -> None:
    made = stamp(head)
    print(f"predict: {made['task']} by {made['head']} on {made['encoder']}")
    print(f"  cases       {len(rows):,} predicted, {len(failed):,} without")
    for name, reason in list(failed.items())[:5]:
        print(f"              {name}: {reason[:160]}")
    print(f"  models      {len(head.models)}: {made['models']}")
    if head.classes:
        told = "none: no validation predictions" if temperature is None else f"{temperature:.3f}"
        print(f"  temperature {told}")
    print(f"  output      {objects.join(config.out, 'predictions.csv')}, .parquet")
    print(f"  {WARNING}")
