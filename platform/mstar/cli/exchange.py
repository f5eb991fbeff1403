"""`mstar export` and `mstar import`: runs the exchange and says what became of the slides."""

from collections.abc import Iterator

from mstar.features.exchange_report import ExchangeReport
from mstar.features.exporting import ExportConfig, run_export
from mstar.features.importing import ImportConfig, run_import
from mstar.training.exit_codes import ExitCode

__all__ = ["ExportConfig", "ImportConfig", "export_features", "import_features"]

MAX_FAILURES_SHOWN = 10


def export_features(config: ExportConfig) -> int:
    """Runs `mstar export` and returns its exit code."""
    return conclude("export", run_export(config))


def import_features(config: ImportConfig) -> int:
    """Runs `mstar import` and returns its exit code."""
    return conclude("import", run_import(config))


def conclude(job: str, report: ExchangeReport) -> int:
    """Prints the end of a job and returns its exit code."""
    print("\n".join(summary_lines(job, report)), flush=True)
    return ExitCode.EXCLUSIONS if report.failures else ExitCode.COMPLETE


def summary_lines(job: str, report: ExchangeReport) -> Iterator[str]:
    """What was done, what was not, and why."""
    num_failed = len(report.failures)
    verdict = f"complete but for {num_failed:,} failed slides" if num_failed else "complete"
    yield f"{job}: {verdict}"
    yield (
        f"  slides    {report.written:,} written, {report.already:,} there already, "
        f"{len(report.empty):,} without patches"
    )
    yield f"  output    {report.out} ({report.layout})"
    for text, num_slides in report.warnings.items():
        yield f"  warning   {text} ({num_slides:,} slides)"
    for slide_id in list(report.failures)[:MAX_FAILURES_SHOWN]:
        yield f"  failed    {slide_id}: {report.failures[slide_id]}"
    if num_failed > MAX_FAILURES_SHOWN:
        yield f"            … and {num_failed - MAX_FAILURES_SHOWN:,} more"
