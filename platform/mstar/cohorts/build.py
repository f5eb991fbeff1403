"""The build job: slides, reports, expression and a clinical table → a cohort folder.

    sources ─▶ digests ─▶ selection (counted) ─▶ slides.csv, reports.csv, expression/, cases.csv
            ─▶ cohort.json, last: what made the folder, from what, and what was left out and why

Nothing in the folder is a cohort before cohort.json is there. Run it again with the same sources
and settings and it does nothing; with others it is refused, since splits and features may have
been made from what is there.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

import mstar
from mstar.cohorts.build_config import BuildConfig
from mstar.cohorts.build_record import RECORD, digest_of, read_record, record_uri, write_record
from mstar.cohorts.build_summary import summary_lines
from mstar.cohorts.join import Selection, select
from mstar.config import differences, to_dict
from mstar.data.cases import Case, read_cases, write_cases
from mstar.data.modalities import pair_counts
from mstar.data.reports import write_reports
from mstar.data.rna.expression import preprocess_expression
from mstar.data.tables import write_table
from mstar.errors import CohortError, ConfigError, TableError
from mstar.schema import SlideRef
from mstar.storage import objects
from mstar.storage.manifest import BadRow, read_slides
from mstar.training.exit_codes import ExitCode

__all__ = ["BuildConfig", "run", "slides_table"]

GENE_FILES = ("gene_vectors", "gene_list", "gene_map")
SLIDES, CASES, REPORTS, EXPRESSION = "slides.csv", "cases.csv", "reports.csv", "expression"


def run(config: BuildConfig) -> int:
    """Build the cohort; returns the exit code (`mstar.training.exit_codes`)."""
    out = absolute(config.out)
    entries = list(read_slides(config.slides, slide_mpp=config.slide_mpp)) if config.slides else []
    settings, sources = _settings(config), _sources(config, entries, out)
    record = read_record(out)
    if record is not None:
        _refuse_another(out, record, settings, sources)
        return _conclude(record, out, "complete already, nothing to do")
    selection = select(config, entries)
    record = _record(settings, sources, selection)
    if config.dry_run:
        return _conclude(record, out, "dry run, nothing written")
    record["expression"] = _write(config, selection, out)
    record["outputs"] = _digests(out, config)
    write_record(out, record)
    return _conclude(record, out, "complete")


def _conclude(record: Mapping[str, Any], out: str, verdict: str) -> int:
    print("\n".join(summary_lines(record, out, verdict)), flush=True)
    return ExitCode.COMPLETE


def absolute(uri: str) -> str:
    """The address of a folder as it is in every process."""
    uri = uri.rstrip("/") or "/"
    return os.path.abspath(objects.local_path(uri)) if objects.is_local(uri) else uri


def _settings(config: BuildConfig) -> dict[str, Any]:
    """What decides the cohort beside its sources."""
    apart = {"out", "clinical", "slides", "reports", "rna", "dry_run"}
    settings = {name: value for name, value in to_dict(config).items() if name not in apart}
    for name in (*GENE_FILES, "scratch"):
        del settings["expression"][name]
    return settings


def _sources(
    config: BuildConfig, entries: Sequence[SlideRef | BadRow], out: str
) -> dict[str, list[dict[str, str]]]:
    """Where each source is (relative when in the folder), and the digest of its content."""
    files = {"clinical": config.clinical_uris, "rna": config.rna_uris}
    files["reports"] = (config.reports,) if config.reports else ()
    for name in GENE_FILES:
        uri = getattr(config.expression, name)
        files[name] = (uri,) if uri else ()
    found = {
        name: [{"uri": _place(uri, out), "sha256": digest_of(uri)} for uri in uris]
        for name, uris in files.items()
        if uris
    }
    if config.slides:
        digest = _slides_digest(entries, out)
        found["slides"] = [{"uri": _place(config.slides, out), "sha256": digest}]
    return found


def _place(uri: str, out: str) -> str:
    inside = absolute(uri).startswith(out + "/")
    return reference(absolute(uri), out) if inside else uri


def _slides_digest(entries: Sequence[SlideRef | BadRow], out: str) -> str:
    """Of what the manifest or the listing says, whatever the order; not of the slides' pixels."""
    lines = sorted(
        repr((entry.slide_id, entry.uri, entry.reason))
        if isinstance(entry, BadRow)
        else repr((entry.slide_id, reference(entry.uri, out), entry.mpp, entry.case_id))
        for entry in entries
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def reference(uri: str, out: str) -> str:
    """A slide's path as slides.csv has it: relative where it lies in the cohort's folder."""
    return uri.removeprefix(out + "/")


def _refuse_another(
    out: str, record: Mapping[str, Any], settings: dict[str, Any], sources: dict[str, Any]
) -> None:
    def contents(of: Mapping[str, Any]) -> dict[str, str]:
        digests = {name: sorted(file["sha256"][:16] for file in of[name]) for name in of}
        return {f"contents of {name}": ", ".join(digests[name]) for name in of}

    lines = differences(record["settings"], settings)
    lines += differences(contents(record["sources"]), contents(sources))
    if lines:
        raise CohortError(
            f"{out} holds a cohort that was built otherwise: {'; '.join(lines)}. Choose another "
            f"--out, or delete {CASES} and {record_uri(out)} to build it anew."
        )


def _record(
    settings: dict[str, Any], sources: dict[str, Any], selection: Selection
) -> dict[str, Any]:
    """What cohort.json says, but for the digests of the outputs."""
    cases = selection.cases
    types = [case.cancer_type for case in cases]
    counts = to_dict(pair_counts(cases)) | {
        "slides": sum(len(case.slides) for case in cases),
        "with_survival": sum(case.os_months is not None for case in cases),
        "sites": len({case.site for case in cases if case.site}),
        "cancer_types": {name: types.count(name) for name in sorted(set(types))},
    }
    return {
        "job": "cohort build",
        "mstar_version": mstar.__version__,
        "data_source": settings["data_source"],
        "settings": settings,
        "sources": sources,
        "counts": counts,
        "exclusions": selection.exclusions.to_dict(),
        "expression": None,
        **selection.notes,
    }


def _write(config: BuildConfig, selection: Selection, out: str) -> Any:
    """Everything but cohort.json; cases.csv last, since it names what the other files hold.

    Returns:
        What became of the expression tables, None without any.
    """
    summary = None
    _refuse_strangers(config, selection, out)
    if config.slides and not _is(config.slides, out, SLIDES):
        write_table(objects.join(out, SLIDES), slides_table(selection.slides, out))
    if selection.reports is not None:
        write_reports(objects.join(out, REPORTS), selection.reports)
    if config.rna_uris:
        folder = objects.join(out, EXPRESSION)
        keep = selection.samples
        summary = preprocess_expression(config.rna_uris, folder, config.expression, keep=keep)
    write_cases(objects.join(out, CASES), selection.cases)
    return to_dict(summary)


def slides_table(slides: Mapping[str, list[SlideRef]], out: str) -> pa.Table:
    """The manifest of the chosen slides, sorted by case, then slide."""
    rows = [(case_id, slide) for case_id, chosen in slides.items() for slide in chosen]
    return pa.table(
        {
            "path": pa.array([reference(slide.uri, out) for _, slide in rows], pa.string()),
            "slide_id": pa.array([slide.slide_id for _, slide in rows], pa.string()),
            "mpp": pa.array([slide.mpp for _, slide in rows], pa.float64()),
            "case_id": pa.array([case_id for case_id, _ in rows], pa.string()),
        }
    )


def _refuse_strangers(config: BuildConfig, selection: Selection, out: str) -> None:
    """Nothing that this job did not make is written over."""
    if config.reports and _is(config.reports, out, REPORTS):
        raise ConfigError(f"--reports {config.reports} would be written over. Keep it elsewhere.")
    if config.slides and _is(config.slides, out, SLIDES) and not _manifest_fits(selection):
        raise ConfigError(
            f"--slides {config.slides} would be written over, for it names other slides than the "
            "cohort takes, or no case_id. Keep it elsewhere."
        )
    cases = objects.join(out, CASES)
    if objects.exists(cases) and not _holds(cases, selection.cases):
        raise CohortError(
            f"{cases} is there with other cases, and no {RECORD} says what made it. Delete it, or "
            "choose another --out."
        )


def _holds(uri: str, cases: Sequence[Case]) -> bool:
    """Whether a table is the one to be written: a build that was killed may have left it."""
    try:
        return read_cases(uri) == cases
    except TableError:
        return False


def _manifest_fits(selection: Selection) -> bool:
    """Whether the manifest given is the one that the cohort needs."""
    pairs = [(case_id, slide) for case_id, of in selection.slides.items() for slide in of]
    named = all(slide.case_id == case_id for case_id, slide in pairs)
    return named and not selection.exclusions.of("slides")


def _is(source: str, out: str, name: str) -> bool:
    return absolute(source) == objects.join(out, name)


def _digests(out: str, config: BuildConfig) -> dict[str, str]:
    """Name → sha256 of every file that was written."""
    names = [CASES]
    names += [SLIDES] if config.slides else []
    names += [REPORTS] if config.reports else []
    if config.rna_uris:
        infos = objects.list_files(objects.join(out, EXPRESSION))
        names += [f"{EXPRESSION}/{info.rel}" for info in infos]
    return {name: digest_of(objects.join(out, name)) for name in sorted(names)}
