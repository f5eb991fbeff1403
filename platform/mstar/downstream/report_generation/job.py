"""`mstar report write`: a trained model writes the reports of slides that have none.

    <out>/texts/<case_id>.json   one report, with the digests of model and features that it is of
    <out>/reports.csv            case_id, text, warning: as `mstar cohort build --reports` takes it

Run it again and only what is missing, or was written by another model or search, is written.
Cases whose slides have no features are left out, counted and named: exit code 3.
"""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from mstar.config import fingerprint, to_dict, to_json
from mstar.data.cases import read_cases
from mstar.data.label_tables import Sample
from mstar.data.tables import write_table
from mstar.downstream.bag_files import drop_unused, shared_root
from mstar.downstream.bags import load_bags
from mstar.downstream.model_files import SUFFIX, model_digest
from mstar.downstream.report_generation.job_config import ReportWriteConfig
from mstar.downstream.report_generation.texts import shortened
from mstar.downstream.report_generation.writing import (
    Writer,
    find_writers,
    load_writer,
    write_reports,
)
from mstar.downstream.stream import BagSource
from mstar.features.store import FeatureStore
from mstar.models.histgen import DecodingConfig
from mstar.schema import RESEARCH_ONLY
from mstar.storage import objects
from mstar.storage.ids import quoted
from mstar.training.exit_codes import ExitCode
from mstar.training.progress import ProgressReporter
from mstar.training.tracker import NullTracker, ended
from mstar.training.tracking import SpoolTracker, start_tracking

__all__ = ["ReportWriteConfig", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is to be written.

    key: of model and search: texts of another one are written anew.
    absent: cases whose slides have no features.
    """

    writer: Writer
    decoding: DecodingConfig
    key: str
    samples: tuple[Sample, ...]
    missing: tuple[Sample, ...]
    absent: tuple[str, ...]


def run(config: ReportWriteConfig) -> int:
    """Write what is missing; returns the exit code (`mstar.training.exit_codes`)."""
    if config.threads:
        torch.set_num_threads(config.threads)
    stores = [FeatureStore.open(root) for root in config.features.split(",") if root]
    work = _plan(config, stores)
    print("\n".join(_plan_lines(config, work)), flush=True)
    if config.dry_run:
        print("dry run: nothing was written")
        return ExitCode.COMPLETE
    began_s, tracker = time.monotonic(), _tracker(config)
    with nullcontext() if isinstance(tracker, NullTracker) else ended(tracker):
        _write_missing(config, work, stores)
        texts = {sample.case_id: _found(config.out, sample.case_id) for sample in work.samples}
        _write_table(config.out, texts)
        unfinished = sum(not found["ended"] for found in texts.values())
        empty = [case for case, found in texts.items() if not found["text"]]
        counts = {"reports": len(texts), "unfinished": unfinished, "empty": len(empty)}
        tracker.log_metrics({name: float(value) for name, value in counts.items()}, step=0)
    print(
        f"{objects.join(config.out, 'reports.csv')}: {len(texts):,} reports, "
        f"{len(work.missing):,} written by this run in {time.monotonic() - began_s:.1f} s; "
        f"{unfinished:,} cut at {work.decoding.max_new_tokens} tokens"
        + (f"; {len(empty):,} without a word: {shortened(empty)}" if empty else "")
        + f"\n  {RESEARCH_ONLY}"
    )
    return ExitCode.EXCLUSIONS if work.absent else ExitCode.COMPLETE


def _plan(config: ReportWriteConfig, stores: Sequence[FeatureStore]) -> _Work:
    """The model, and which of its reports are not there."""
    is_file = config.model.endswith(SUFFIX)
    writer = load_writer(config.model) if is_file else find_writers(config.model)[0]
    own = writer.options.decoding
    decoding = replace(
        own,
        beam=config.beam or own.beam,
        max_new_tokens=config.max_new_tokens or own.max_new_tokens,
    )
    key = fingerprint([model_digest(writer.fit), to_dict(decoding)])
    known = {slide for store in stores for slide in store.done_ids()}
    every = _samples(config.cases, known)
    samples = tuple(s for s in every if s.slides and known.issuperset(s.slides))
    kept = {sample.case_id for sample in samples}
    return _Work(
        writer=writer,
        decoding=decoding,
        key=key,
        samples=samples,
        missing=tuple(s for s in samples if not _is_written(config.out, s.case_id, key)),
        absent=tuple(s.case_id for s in every if s.case_id not in kept),
    )


def _samples(cases: str, known: set[str]) -> list[Sample]:
    """The cases of a table, or each slide by itself."""
    if not cases:
        pairs: list[tuple[str, tuple[str, ...]]] = [(slide, (slide,)) for slide in sorted(known)]
    else:
        pairs = [(case.case_id, case.slides) for case in read_cases(cases)]
    return [
        Sample(case_id=case_id, slides=slides, row=at + 1, patient=case_id)
        for at, (case_id, slides) in enumerate(pairs)
    ]


def _plan_lines(config: ReportWriteConfig, work: _Work) -> list[str]:
    lines = [
        f"report write: {config.model} ({len(work.writer.vocabulary):,} tokens), beam "
        f"{work.decoding.beam}, at most {work.decoding.max_new_tokens} tokens",
        f"  {len(work.samples):,} cases with features, {len(work.missing):,} reports to write",
    ]
    if work.absent:
        lines.append(f"  left out: {len(work.absent):,} (no features: {shortened(work.absent)})")
    return lines


def _write_missing(config: ReportWriteConfig, work: _Work, stores: Sequence[FeatureStore]) -> None:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with ProgressReporter("report write", num_slides=len(work.missing)) as progress:
        for start in range(0, len(work.missing), config.cases_at_once):
            part = work.missing[start : start + config.cases_at_once]
            bags = load_bags(part, stores, cache_root=config.cache_dir)
            source = BagSource(bags, device)
            written = write_reports(work.writer, source, np.arange(len(part)), work.decoding)
            for sample, one in zip(part, written, strict=True):
                record = {**to_dict(one), "key": work.key, "features": bags.digest}
                objects.write_whole(_uri(config.out, sample.case_id), to_json(record).encode())
            progress.update(slides_done=start + len(part))
            del bags, source
            drop_unused(shared_root())  # memory of the machine, which outlives the process


def _tracker(config: ReportWriteConfig) -> SpoolTracker | NullTracker:
    if not config.tracking:
        return NullTracker()
    return start_tracking("report write", config, out=config.out, uri=config.tracking_uri)


def _uri(out: str, case_id: str) -> str:
    return objects.join(out, "texts", f"{quoted(case_id)}.json")


def _found(out: str, case_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(objects.read_bytes(_uri(out, case_id)))
    return found


def _is_written(out: str, case_id: str, key: str) -> bool:
    return objects.exists(_uri(out, case_id)) and _found(out, case_id)["key"] == key


def _write_table(out: str, texts: dict[str, dict[str, object]]) -> None:
    columns = {
        "case_id": pa.array(list(texts), pa.string()),
        "text": pa.array([str(found["text"]) for found in texts.values()], pa.string()),
        "warning": pa.array([RESEARCH_ONLY] * len(texts), pa.string()),
    }
    write_table(objects.join(out, "reports.csv"), pa.table(columns))
