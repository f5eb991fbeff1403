"""Prediction files: what a study said about every sample, and what one must know to read it.

One Parquet file per study and part. Columns:

    task, encoder, head          text     the study
    fold, seed                   text, integer
    part                         text     val, test or external
    case_id, patient, slides     text     `patient` is the unit of resampling; slides joined by `;`
    label                        int32    class code, null in tasks without classes
    time_months, event           float64, bool   null in classification tasks
    scores                       list<float32>   class probabilities; one risk (higher: worse); or
                                         measures of the sample (retrieval, report generation)

Everything else lies in the file's metadata as JSON under `mstar` (see `PredictionFacts`).
Intervals, tests and curves are computed from these files and nothing else.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from mstar import __version__
from mstar.config import to_dict
from mstar.downstream.statistics.evaluated import Evaluated
from mstar.errors import TableError
from mstar.storage import objects

PARTS = ("val", "test", "external")
NO_LABEL = -1  # in memory; null in the file
SCHEMA_VERSION = 1
_METADATA = b"mstar"

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("task", "encoder", "head", "fold")),
        ("seed", pa.int64()),
        *((name, pa.string()) for name in ("part", "case_id", "patient", "slides")),
        ("label", pa.int32()),
        ("time_months", pa.float64()),
        ("event", pa.bool_()),
        ("scores", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionFacts:
    """What made the predictions.

    kind: classification or survival; or retrieval, report_generation: scores are then measures of
        each sample (`mstar.downstream.statistics.measured`).
    metric: the task's own.
    data_source: real or generated.
    class_names: in label order; empty in survival tasks.
    config: the configuration that was chosen.
    digests: of labels, splits, features and code's inputs, by name.
    protocol: honest or paper-compat; `warning` says why numbers of the second read high.
    trials: configurations that competed for the place.
    leaked_patients: patients in more than one part of a published split.
    follow_up: fold → longest time in the training part, months (survival).
    median_risk: `fold/seed` → median risk of the training part (survival).
    val_scores: `fold/seed` → selection score of the model.
    trained_on: the task whose models these are, where it is another one.
    extra: whatever else a job wants to keep.
    """

    kind: str
    metric: str
    data_source: str
    class_names: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    mstar_version: str = __version__
    protocol: str = "honest"
    warning: str = ""
    trials: int = 1
    leaked_patients: int = 0
    follow_up: Mapping[str, float] = field(default_factory=dict)
    median_risk: Mapping[str, float] = field(default_factory=dict)
    val_scores: Mapping[str, float] = field(default_factory=dict)
    trained_on: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """The predictions of one study on one part; one row per (fold, seed, sample).

    label: NO_LABEL in tasks without classes; time_months: NaN and event: False in those without
        times.
    """

    task: str
    encoder: str
    head: str
    part: str
    fold: tuple[str, ...]
    seed: Int64[np.ndarray, " row"]
    case_id: tuple[str, ...]
    patient: tuple[str, ...]
    slides: tuple[tuple[str, ...], ...]
    label: Int32[np.ndarray, " row"]
    time_months: Float64[np.ndarray, " row"]
    event: Bool[np.ndarray, " row"]
    scores: Float32[np.ndarray, "row score"]
    facts: PredictionFacts

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.case_id)

    @property
    def key(self) -> str:
        """The study."""
        return f"{self.task}/{self.encoder}/{self.head}"

    def runs(self) -> list[tuple[str, int, Int64[np.ndarray, " row"]]]:
        """Each model's rows: fold, seed and their positions, in the order of the file."""
        found: dict[tuple[str, int], list[int]] = {}
        for row, key in enumerate(zip(self.fold, self.seed.tolist(), strict=True)):
            found.setdefault(key, []).append(row)
        return [(fold, seed, np.asarray(rows)) for (fold, seed), rows in found.items()]

    def evaluated(self) -> list[Evaluated]:
        """Each model's rows as metrics take them, in the order of the file."""
        survival = self.facts.kind == "survival"
        classes = self.facts.kind == "classification"
        return [
            Evaluated(
                patients=tuple(self.patient[row] for row in rows.tolist()),
                scores=self.scores[rows],
                labels=self.label[rows] if classes else None,
                times=self.time_months[rows] if survival else None,
                events=self.event[rows] if survival else None,
                follow_up=self.facts.follow_up.get(fold, float("inf")),
                fold=fold,
                seed=seed,
            )
            for fold, seed, rows in self.runs()
        ]


def write_predictions(uri: str, predictions: Predictions) -> None:
    """Write the file whole; equal predictions give equal bytes."""
    assert predictions.part in PARTS
    sink = io.BytesIO()
    metadata = {"schema_version": SCHEMA_VERSION, **to_dict(predictions.facts)}
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    table = _table(predictions).replace_schema_metadata({_METADATA: text.encode()})
    pq.write_table(table, sink, compression="zstd")
    objects.write_whole(uri, sink.getvalue())


def read_predictions(uri: str) -> Predictions:
    """Read a file that `write_predictions` wrote.

    Raises:
        TableError: it is something else, or mixes studies or parts.
    """
    try:
        table = pq.read_table(io.BytesIO(objects.read_bytes(uri)))
    except FileNotFoundError as error:
        raise TableError(f"{uri}: no such file. Give a file or folder of `mstar sweep`.") from error
    except pa.ArrowInvalid as error:
        raise TableError(f"{uri}: expected a Parquet file, got {error}. Give another.") from error
    facts = _facts(uri, (table.schema.metadata or {}).get(_METADATA))
    if missing := [name for name in SCHEMA.names if name not in table.column_names]:
        raise TableError(f"{uri}: expected the columns {missing} of a prediction file, got none.")
    columns = {name: table.column(name).to_pylist() for name in SCHEMA.names}
    scores = columns["scores"]
    if len({len(row) for row in scores}) != 1:
        raise TableError(f"{uri}: expected rows with equally many scores, and at least one row.")
    return Predictions(
        **{name: _same(uri, name, columns[name]) for name in ("task", "encoder", "head", "part")},
        fold=tuple(columns["fold"]),
        seed=np.asarray(columns["seed"], np.int64),
        case_id=tuple(columns["case_id"]),
        patient=tuple(columns["patient"]),
        slides=tuple(tuple(text.split(";")) for text in columns["slides"]),
        label=np.asarray([NO_LABEL if x is None else x for x in columns["label"]], np.int32),
        time_months=np.asarray(
            [np.nan if x is None else x for x in columns["time_months"]], np.float64
        ),
        event=np.asarray([bool(x) for x in columns["event"]], np.bool_),
        scores=np.asarray(scores, np.float32),
        facts=facts,
    )


def _table(predictions: Predictions) -> pa.Table:
    rows = len(predictions)
    survival = predictions.facts.kind == "survival"
    arrays: dict[str, Sequence[Any]] = {
        **{name: [getattr(predictions, name)] * rows for name in ("task", "encoder", "head")},
        "part": [predictions.part] * rows,
        "fold": predictions.fold,
        "seed": predictions.seed.tolist(),
        "case_id": predictions.case_id,
        "patient": predictions.patient,
        "slides": [";".join(slides) for slides in predictions.slides],
        "label": [None if x == NO_LABEL else x for x in predictions.label.tolist()],
        "time_months": predictions.time_months.tolist() if survival else [None] * rows,
        "event": predictions.event.tolist() if survival else [None] * rows,
        "scores": predictions.scores.tolist(),
    }
    return pa.table({name: arrays[name] for name in SCHEMA.names}, schema=SCHEMA)


def _facts(uri: str, text: bytes | None) -> PredictionFacts:
    if text is None:
        raise TableError(f"{uri}: expected a prediction file, got a table without its metadata.")
    found = json.loads(text)
    if found["schema_version"] > SCHEMA_VERSION:
        raise TableError(
            f"{uri}: expected schema {SCHEMA_VERSION} at most, got {found['schema_version']}. "
            "Update mstar."
        )
    known = {item.name for item in fields(PredictionFacts)}
    values = {name: value for name, value in found.items() if name in known}
    return PredictionFacts(**{**values, "class_names": tuple(values["class_names"])})


def _same(uri: str, name: str, values: Sequence[str]) -> str:
    if len(set(values)) != 1:
        raise TableError(
            f"{uri}: expected one {name} in the file, got {sorted(set(values))[:5]}. Write a file "
            "per study and part."
        )
    return values[0]
