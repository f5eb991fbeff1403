"""`mstar cohort generate`: a small but complete cohort whose truth is known, from a seed.

    out/sources/   clinical.csv, reports_raw.csv     out/rna.tsv     genes × cases, counts
    out/slides/    pyramidal SVS                     out/slides.csv  the manifest
    out/truth/     see `generated.truth`             out/labels/, out/tasks.csv, out/signatures.csv
    and what `mstar cohort build` makes of these: cases.csv, reports.csv, expression/, cohort.json

Tables come first, slides after them, the build last. Everything is written whole and follows from
the settings, so a run that was stopped goes on where it was, and equal settings give equal bytes.
"""

import time
from collections.abc import Sequence

import pyarrow as pa

from mstar.cohorts import build
from mstar.cohorts.generated import (
    expression,
    facts,
    labels,
    reports,
    signatures,
    slide_pool,
    truth,
)
from mstar.cohorts.generated.config import GenerateConfig
from mstar.cohorts.generated.factors import CaseFactors, SlideFactors, iter_cases, slides_of
from mstar.config import to_json
from mstar.data.rna.config import ExpressionConfig
from mstar.data.tables import write_table
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode
from mstar.training.progress import ProgressReporter, format_duration

__all__ = ["GenerateConfig", "run"]

MANIFEST, RNA = "slides.csv", "rna.tsv"
CLINICAL, REPORTS = "sources/clinical.csv", "sources/reports_raw.csv"
_CLINICAL_COLUMNS = ("case_id", "cancer_type", "site", "os_months", "os_event")


def run(config: GenerateConfig) -> int:
    """Generate the cohort; returns the exit code (`mstar.training.exit_codes`)."""
    start_s = time.monotonic()
    labels.chosen_tasks(config.labels)  # a wrong id is told before the work
    cases = list(iter_cases(config))  # about 1 KB a case; all the rest is streamed
    slides = [slide for case in cases for slide in slides_of(config, case)]
    if config.dry_run:
        print("\n".join([to_json(config), *_plan_lines(config, cases, slides)]), flush=True)
        return ExitCode.COMPLETE
    truth.claim_folder(config)
    task_ids = write_tables(config, cases)
    num_painted = paint(config, slides)
    write_manifest(config, slides)
    code = build.run(build_config(config, cases))
    seconds = time.monotonic() - start_s
    lines = _summary_lines(config, slides, num_painted, task_ids, seconds)
    print("\n".join(lines), flush=True)
    return code


def write_tables(config: GenerateConfig, cases: Sequence[CaseFactors]) -> list[str]:
    """Write everything but slides, the large tables only where absent; returns the task ids."""
    out = config.out
    columns = {name: [getattr(case, name) for case in cases] for name in _CLINICAL_COLUMNS}
    write_table(objects.join(out, CLINICAL), pa.table(columns))
    truth.write_case_truth(out, cases)
    facts.write_facts(out, config, cases)
    if not objects.exists(objects.join(out, REPORTS)):
        reports.write_reports(objects.join(out, REPORTS), config, cases)
    if not objects.exists(objects.join(out, RNA)):
        expression.write_expression(out, config, cases)
    signatures.write_signatures(out, config)
    return labels.write_labels(out, config, cases)


def paint(config: GenerateConfig, slides: Sequence[SlideFactors]) -> int:
    """Paint the slides that are not there, then join their truth; returns how many it painted."""
    missing = slide_pool.missing_slides(config.out, slides)
    num_cells = 0
    with ProgressReporter("generate", num_slides=len(missing)) as progress:
        for done, cells in enumerate(slide_pool.paint_slides(config, missing), 1):
            num_cells += cells
            progress.update(slides_done=done, patches_done=num_cells)
    if missing or not objects.exists(truth.patches_uri(config.out)):
        truth.join_cells(config.out, slides)
    return len(missing)


def write_manifest(config: GenerateConfig, slides: Sequence[SlideFactors]) -> None:
    """Write slides.csv, whose paths are relative to it."""
    rows = sorted(slides, key=lambda slide: slide.slide_id)
    columns = {
        "path": pa.array([f"slides/{slide.slide_id}.svs" for slide in rows], pa.string()),
        "slide_id": pa.array([slide.slide_id for slide in rows], pa.string()),
        "mpp": pa.array([slide.mpp for slide in rows], pa.float64()),
        "case_id": pa.array([slide.case.case_id for slide in rows], pa.string()),
    }
    write_table(objects.join(config.out, MANIFEST), pa.table(columns))


def build_config(config: GenerateConfig, cases: Sequence[CaseFactors]) -> build.BuildConfig:
    """What `mstar cohort build` is called with."""

    def source(name: str, *, there: bool) -> str | None:
        return objects.join(config.out, name) if there else None

    return build.BuildConfig(
        out=config.out,
        clinical=objects.join(config.out, CLINICAL),
        slides=source(MANIFEST, there=any(case.num_slides for case in cases)),
        reports=source(REPORTS, there=any(case.has_report for case in cases)),
        rna=source(RNA, there=any(case.has_rna for case in cases)),
        ids="plain",
        data_source="generated",
        expression=ExpressionConfig(unit="rsem", transform="none"),
    )


def _plan_lines(
    config: GenerateConfig, cases: Sequence[CaseFactors], slides: Sequence[SlideFactors]
) -> list[str]:
    num_labels = len(labels.planted_tasks(config)) + len(labels.chosen_tasks(config.labels))
    return [
        f"would make {len(cases):,} cases in {config.out}:",
        f"  slides       {len(slides):,} of about {config.slide_px:,} px a side, "
        f"painted by {slide_pool.num_workers(config)} processes",
        f"  reports      {sum(case.has_report for case in cases):,}",
        f"  expression   {sum(case.has_rna for case in cases):,} cases, {config.num_genes:,} genes",
        f"  label tables {num_labels:,}",
    ]


def _summary_lines(
    config: GenerateConfig,
    slides: Sequence[SlideFactors],
    num_painted: int,
    task_ids: Sequence[str],
    seconds: float,
) -> list[str]:
    infos = objects.list_files(objects.join(config.out, "slides"), suffix=".svs")
    size_mb = sum(info.size_bytes for info in infos) / 1e6
    return [
        f"generate: {config.out} from seed {config.seed} in {format_duration(seconds)}",
        f"  slides/      {len(slides):,}, {size_mb:,.1f} MB; {num_painted:,} painted by this run",
        f"  labels/      {len(task_ids):,}: {', '.join(task_ids[:4])}"
        + (" …" if len(task_ids) > 4 else ""),
        "  truth/       cases.csv, genes.csv, patches.parquet: what a method should find",
        f"  next         mstar embed --slides {objects.join(config.out, MANIFEST)} …",
    ]
