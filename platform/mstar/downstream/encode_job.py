"""`mstar encode`: features, reports and RNA → one vector each, as tables others can read.

    mstar encode --features F --aggregator A --cohort C --level case --out V

Samples are done in pieces, each written whole, so that a run that was ended goes on where it was.
The tables are put together at the end; `encode.json`, written last, says what made them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

import mstar
from mstar.config import differences, fingerprint
from mstar.data.cases import SLIDES_JOINED_BY
from mstar.downstream import encode_files as files
from mstar.downstream.encode_config import EncodeConfig
from mstar.downstream.encode_picture import draw_table, umap_version
from mstar.downstream.encode_samples import Sample, Table, tables_of
from mstar.downstream.encode_vectors import Encoded, SampleEncoder, encoder_of, provenance_of
from mstar.errors import ConfigError, MstarError, StoreMismatchError
from mstar.features.store import FeatureStore
from mstar.storage import objects
from mstar.training.exit_codes import exit_code
from mstar.training.tracker import NullTracker, Tracker, ended
from mstar.training.tracking import start_tracking

__all__ = ["EncodeConfig", "run"]

RECORD, PARTS = "encode.json", "parts"
PIECE = 64
FAILURES_SHOWN = 5


@dataclass(slots=True, kw_only=True)
class Done:
    """A finished table.

    failures: sample → why it has no vector.
    written: files beside Parquet, by format.
    """

    table: Table
    vectors: pa.Table | None
    failures: dict[str, str]
    new: int = 0
    written: dict[str, int] = field(default_factory=dict)


def run(config: EncodeConfig) -> int:
    """Encode what is missing, write the tables; returns the exit code.

    Raises:
        ConfigError: UMAP is asked for and cannot be drawn.
    """
    if config.umap == "on" and not umap_version():
        raise ConfigError(
            "--umap on: umap-learn is not installed. Run `pip install mstar-platform[pictures]`, "
            "or leave --umap out."
        )
    tables = tables_of(config)
    provenance = {table.name: provenance_of(config, table) for table in tables}
    before = _record_before(config)
    for table in tables:
        _refuse_other(config, table, provenance[table.name], before)
    print("\n".join(_plan_lines(config, tables)), flush=True)
    if config.dry_run:
        return exit_code(0, 1, config.max_failures)
    tracker: Tracker = NullTracker()
    if config.tracking:
        tracker = start_tracking("encode", config, out=config.out)
    with ended(tracker):
        done = [_encode(config, table, provenance[table.name], before) for table in tables]
        for one in done:
            _write(config, one, provenance[one.table.name], tracker)
        record = _json(_record(config, done, provenance, before))
        objects.write_whole(objects.join(config.out, RECORD), record)
        tracker.log_metrics({f"{d.table.name}.vectors": float(_count(d)) for d in done}, step=0)
    objects.delete_tree(objects.join(config.out, PARTS))
    print("\n".join(_summary_lines(config, done)), flush=True)
    failed = sum(len(one.failures) for one in done)
    total = sum(len(one.table.samples) for one in done)
    return exit_code(failed, total, config.max_failures)


def _record_before(config: EncodeConfig) -> dict[str, Any]:
    """What the folder says of itself; nothing when it is new."""
    uri = objects.join(config.out, RECORD)
    found: dict[str, Any] = json.loads(objects.read_bytes(uri)) if objects.exists(uri) else {}
    return found


def _refuse_other(
    config: EncodeConfig, table: Table, provenance: dict[str, Any], before: dict[str, Any]
) -> None:
    """Raises StoreMismatchError when the folder holds vectors that were made otherwise."""
    known = before.get("tables", {}).get(table.name)
    if known is None:
        return
    lines = differences(known["provenance"], json.loads(json.dumps(provenance)))
    if lines:
        raise StoreMismatchError(
            f"{config.out}: holds {table.name} that were made otherwise: {'; '.join(lines)}. "
            "Choose another --out."
        )


def _encode(
    config: EncodeConfig, table: Table, provenance: dict[str, Any], before: dict[str, Any]
) -> Done:
    """The vectors of a table: what is there already, and the rest."""
    place = objects.join(config.out, f"{table.name}.parquet")
    rows: list[pa.Table] = []
    failures: dict[str, str] = {}
    wanted = {sample.name: SLIDES_JOINED_BY.join(sample.slides) for sample in table.samples}
    if objects.exists(place):
        rows.append(_still_wanted(files.read_parquet(place)[0], wanted))
    have = set(rows[0].column("name").to_pylist()) if rows else set()
    if not config.retry_failed:
        earlier = before.get("tables", {}).get(table.name, {}).get("failures", {})
        failures |= {name: why for name, why in earlier.items() if name in wanted}
    todo = [s for s in table.samples if s.name not in have and s.name not in failures]
    new = 0
    encoder: SampleEncoder | None = None
    for piece in _pieces(todo):
        uri = _piece_uri(config, table, piece, provenance)
        if not objects.exists(uri):
            encoder = encoder or encoder_of(config, table)
            _write_piece(uri, piece, encoder(piece))
        made, bad = _read_piece(uri)
        rows += [made] if made is not None else []
        failures |= bad
        new += 0 if made is None else len(made)
    merged = pa.concat_tables(rows).sort_by("name") if rows else None
    return Done(table=table, vectors=merged, failures=failures, new=new)


def _still_wanted(kept: pa.Table, wanted: dict[str, str]) -> pa.Table:
    """The rows of samples that are wanted and still have the same slides."""
    pairs = zip(kept.column("name").to_pylist(), kept.column("slides").to_pylist(), strict=True)
    keep = [wanted.get(name) == slides for name, slides in pairs]
    return kept.replace_schema_metadata(None).filter(pa.array(keep, pa.bool_()))


def _pieces(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    for start in range(0, len(samples), PIECE):
        yield samples[start : start + PIECE]


def _piece_uri(
    config: EncodeConfig, table: Table, piece: Sequence[Sample], provenance: dict[str, Any]
) -> str:
    """Named by all that decides it, so that no other run's is ever taken."""
    digest = fingerprint({"provenance": provenance, "samples": [s.name for s in piece]})
    return objects.join(config.out, PARTS, table.name, f"{digest}.parquet")


def _write_piece(uri: str, piece: Sequence[Sample], found: Sequence[Encoded | Exception]) -> None:
    """The vectors of a piece and, in its metadata, why the others have none."""
    rows, failures = [], {}
    for sample, one in zip(piece, found, strict=True):
        if isinstance(one, Encoded):
            rows.append(_row(sample, one))
        else:
            known = isinstance(one, MstarError)
            failures[sample.name] = str(one) if known else f"{type(one).__name__}: {one}"
    dim = len(rows[0]["vector"]) if rows else 1
    table = files.table_of(rows, dim) if rows else files.schema_of(dim).empty_table()
    files.write_parquet(uri, table, failures)


def _read_piece(uri: str) -> tuple[pa.Table | None, dict[str, str]]:
    table, failures = files.read_parquet(uri)
    table = table.replace_schema_metadata(None)
    return (table if len(table) else None), failures


def _row(sample: Sample, one: Encoded) -> dict[str, Any]:
    return {
        "name": sample.name,
        "case_id": sample.case_id,
        "slides": SLIDES_JOINED_BY.join(sample.slides),
        "cancer_type": sample.cancer_type,
        "site": sample.site,
        "patches": one.patches,
        "windows": one.windows,
        "vector": one.vector,
    }


def _write(config: EncodeConfig, done: Done, provenance: dict[str, Any], tracker: Tracker) -> None:
    """The files of one table, and its picture."""
    if done.vectors is None:
        return
    name, formats = done.table.name, config.chosen_formats
    stated = {**provenance, "table": name, "mstar": mstar.__version__}
    places = {}
    if config.picture and len(done.vectors) > 1:
        vectors, types = files.vectors_of(done.vectors), done.vectors["cancer_type"].to_pylist()
        seed = None if config.umap == "off" else config.seed
        places = draw_table(config.out, name, vectors, types, umap_seed=seed, tracker=tracker)
    # always: what a later run keeps is read from it
    files.write_parquet(objects.join(config.out, f"{name}.parquet"), done.vectors, stated)
    if "h5ad" in formats:
        uri = objects.join(config.out, f"{name}.h5ad")
        files.write_anndata(uri, done.vectors, stated, places=places)
    of_slides = done.table.modality == "wsi"
    if "trident" in formats and of_slides and config.level == "slide":
        store = FeatureStore.open(config.features)
        done.written["trident"] = files.write_trident(config.out, done.vectors, store)
    if "patho-bench" in formats and of_slides:
        made = files.write_patho_bench(config.out, done.vectors, config.level)
        done.written["patho-bench"] = made


def _record(
    config: EncodeConfig,
    done: Sequence[Done],
    provenance: dict[str, dict[str, Any]],
    before: dict[str, Any],
) -> dict[str, Any]:
    """Of these tables and of those that earlier runs made."""
    tables = {
        name: table for name, table in before.get("tables", {}).items() if name not in provenance
    } | {
        one.table.name: {
            "vectors": _count(one),
            "dim": files.vectors_of(one.vectors).shape[1] if one.vectors is not None else 0,
            "failures": dict(sorted(one.failures.items())),
            "slides_without_features": one.table.missing,
            "provenance": provenance[one.table.name],
        }
        for one in done
    }
    return {"mstar": mstar.__version__, "tables": tables, "formats": list(config.chosen_formats)}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _count(done: Done) -> int:
    return 0 if done.vectors is None else len(done.vectors)


def _plan_lines(config: EncodeConfig, tables: Sequence[Table]) -> Iterator[str]:
    yield f"encode: {', '.join(f'{len(t.samples):,} {t.name}' for t in tables)} → {config.out}"
    for table in tables:
        if table.missing:
            yield f"  {table.name}: {table.missing:,} slides of the cohort have no features"


def _summary_lines(config: EncodeConfig, done: Sequence[Done]) -> Iterator[str]:
    failed = sum(len(one.failures) for one in done)
    yield f"encode: complete{f' but for {failed:,} that failed' if failed else ''}"
    for one in done:
        extra = "".join(f", {n:,} files for {name}" for name, n in one.written.items())
        dim = files.vectors_of(one.vectors).shape[1] if one.vectors is not None else 0
        yield f"  {one.table.name}: {_count(one):,} vectors of {dim} ({one.new:,} new){extra}"
        for name in list(one.failures)[:FAILURES_SHOWN]:
            yield f"    failed {name}: {one.failures[name]}"
    if config.picture and config.umap == "auto" and not umap_version():
        yield "  pictures: PCA; for UMAP, install the extra `pictures` (umap-learn)"
    yield f"  output {config.out}: {', '.join(config.chosen_formats)}"
