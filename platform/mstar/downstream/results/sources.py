"""The predictions to report, found in folders, and what a sweep left out with its reasons."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from mstar.data.tables import Column, read_table
from mstar.downstream.prediction_parts import cases_digest
from mstar.downstream.predictions import Predictions, read_predictions
from mstar.errors import ConfigError, TableError
from mstar.storage import objects

LEFT_OUT = "left_out.csv"
REPORTED = ("test", "external")
_FILES = "predictions-*.parquet"
_VALIDATION = "predictions-val.parquet"  # of parts that chose the model: no result
_COLUMNS = (
    Column(name="task", aliases=("task_id",)),
    Column(name="reason"),
    Column(name="encoder", required=False, nullable=True),
    Column(name="head", required=False, nullable=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A task, or one study of it, that is not in the table."""

    task: str
    reason: str
    encoder: str = ""
    head: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """One prediction file."""

    uri: str
    predictions: Predictions

    @property
    def key(self) -> tuple[str, ...]:
        """What there may be one of."""
        p = self.predictions
        return (p.task, p.part, p.encoder, p.head, p.facts.protocol, p.facts.data_source)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """Everything that the sources hold."""

    sources: tuple[Source, ...]
    left_out: tuple[LeftOut, ...]


def read_runs(runs: Sequence[str]) -> Found:
    """The prediction files below some folders, and their lists of what was left out.

    Raises:
        ConfigError: two different files are of one study, or there is none.
        TableError: a file is not what it should be.
    """
    sources: list[Source] = []
    left_out: list[LeftOut] = []
    for root in runs:
        uris = prediction_files(root)
        sources += [read_source(uri) for uri in uris]
        listed = objects.join(root, LEFT_OUT)
        if root not in uris and objects.exists(listed):
            left_out += read_left_out(listed)
        elif not uris:
            raise ConfigError(
                f"{root}: expected files named {_FILES}, got none. Give the --out of `mstar "
                "sweep`, or wait until a study is finished."
            )
    return Found(sources=only_ones(sources), left_out=tuple(dict.fromkeys(left_out)))


def prediction_files(root: str) -> list[str]:
    """Files of test and external predictions below a folder, or the file itself, sorted."""
    if root.endswith(".parquet"):
        return [root]
    found = (info.uri for info in objects.list_files(root, suffix=".parquet"))
    return sorted(uri for uri in found if is_reported(uri))


def is_reported(uri: str) -> bool:
    """Whether the name is that of test or external predictions."""
    name = uri.rsplit("/", 1)[-1]
    return fnmatch(name, _FILES) and name != _VALIDATION


def read_source(uri: str) -> Source:
    """One prediction file.

    Raises:
        TableError: it is none, or of the validation part.
    """
    predictions = read_predictions(uri)
    if predictions.part not in REPORTED:
        raise TableError(
            f"{uri}: expected predictions of a test or external part, got {predictions.part}: the "
            "model was chosen on it. Give the study's folder."
        )
    return Source(uri=uri, predictions=predictions)


def read_left_out(uri: str) -> list[LeftOut]:
    """The list that a sweep wrote: columns task, reason [, encoder, head]."""
    rows = read_table(uri, _COLUMNS).to_pylist()
    return [LeftOut(**{name: value or "" for name, value in row.items()}) for row in rows]


def only_ones(sources: Iterable[Source]) -> tuple[Source, ...]:
    """The sources, a study once; copies of a file are passed over.

    Raises:
        ConfigError: two files say different things of one study.
    """
    kept: dict[tuple[str, ...], Source] = {}
    for source in sources:
        before = kept.setdefault(source.key, source)
        if before is not source and not _same(before.predictions, source.predictions):
            raise ConfigError(
                f"{source.uri}: expected one result of {source.predictions.key}, got another in "
                f"{before.uri}. Give one of the two, or other names to the features."
            )
    return tuple(kept[key] for key in sorted(kept))


def _same(one: Predictions, other: Predictions) -> bool:
    return (
        cases_digest(one) == cases_digest(other)
        and one.scores.shape == other.scores.shape
        and bool((one.scores == other.scores).all())
    )
