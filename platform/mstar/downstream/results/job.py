"""`mstar results --runs R --out D`: all that stored predictions allow to say.

    D/results.csv, .parquet, .tex, .md     task × encoder × head
    D/metrics.csv, .parquet                every other metric of every row
    D/folds, averages, ranks, pairs, left_out   .csv, .parquet
    D/index.html                           all of it on one page, without a network

Exit code 0; 3 when predictions were left out because nothing can be computed from them.
"""

from collections.abc import Sequence

import pyarrow as pa

from mstar.data.tables import write_table
from mstar.data.task_registry import read_task_registry
from mstar.downstream.predictions import Predictions
from mstar.downstream.results import across, tables, text_tables
from mstar.downstream.results.config import ResultsConfig
from mstar.downstream.results.differences import Method, Reference
from mstar.downstream.results.estimates import Settings, estimate_groups, group_key
from mstar.downstream.results.mlflow_source import read_mlflow
from mstar.downstream.results.page import PageContent, page, real_rows
from mstar.downstream.results.rows import ResultRow, make_rows
from mstar.downstream.results.sources import Found, LeftOut, Source, only_ones, read_runs
from mstar.downstream.statistics.compare import resamples_needed
from mstar.errors import ConfigError
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode

_LINEAR = ("linear", "cox_linear")  # the plainest heads: what any other should beat


def run(config: ResultsConfig) -> int:
    """Compute, write, print one screen; returns the exit code."""
    found = find_predictions(config)
    content, failed = make_content(config, found)
    written = write_results(config, content)
    print(screen(content, written))
    return int(ExitCode.EXCLUSIONS if failed else ExitCode.COMPLETE)


def find_predictions(config: ResultsConfig) -> Found:
    """The predictions of all sources that the config names."""
    parts = [read_runs(config.runs)] if config.runs else []
    if config.tracking_uri:
        parts.append(read_mlflow(config.tracking_uri, config.experiment, config.run))
    left_out = dict.fromkeys(one for part in parts for one in part.left_out)
    return Found(
        sources=only_ones(source for part in parts for source in part.sources),
        left_out=tuple(left_out),
    )


def make_content(config: ResultsConfig, found: Found) -> tuple[PageContent, list[LeftOut]]:
    """All tables; and which predictions nothing could be computed from.

    Raises:
        ConfigError: the reference is none of the encoders or heads.
    """
    registry = read_task_registry(config.registry, config.own)
    tasks = registry.by_id
    reference = find_reference(config, [source.predictions for source in found.sources])
    settings = Settings(
        reference=reference,
        resamples=config.resamples,
        difference_resamples=config.difference_resamples,
        seed=config.seed,
        all_metrics=config.metrics == "all",
        ordinal=frozenset(name for name, task in tasks.items() if task.kind == "ordinal"),
    )
    groups = estimate_groups(grouped(found.sources), settings, config.workers)
    failed = [
        LeftOut(task=group.task, encoder=method[0], head=method[1], reason=reason)
        for group in groups
        for method, reason in group.failed.items()
    ]
    groups = [group for group in groups if group.estimates]
    cohorts = across.find_cohorts([p for group in groups for p in group.predictions.values()])
    content = PageContent(
        title=config.title,
        rows=make_rows(groups, cohorts, tasks, reference),
        averages=across.average_methods(groups, cohorts),
        ranked=across.rank_over_cohorts(groups, cohorts),
        pairs=across.compare_methods(groups, cohorts),
        left_out=[*found.left_out, *failed],
        tasks=tasks,
        resamples=config.resamples,
        difference_resamples=config.difference_resamples,
        downloads=file_names(config),
    )
    return content, failed


def find_reference(config: ResultsConfig, predictions: Sequence[Predictions]) -> Reference:
    """Whom rows are held against; by name where the config does not say, never by results."""
    encoders = sorted({one.encoder for one in predictions})
    heads = sorted({one.head for one in predictions}, key=lambda h: (h not in _LINEAR, h))
    for flag, wanted, known in (
        ("reference-encoder", config.reference_encoder, encoders),
        ("reference-head", config.reference_head, heads),
    ):
        if wanted and wanted not in known:
            raise ConfigError(f"--{flag} {wanted}: expected one of {', '.join(known) or 'none'}.")
    if config.reference_head:
        heads = [config.reference_head, *(h for h in heads if h != config.reference_head)]
    encoder = config.reference_encoder or (encoders[0] if encoders else "")
    return Reference(encoder=encoder, heads=tuple(heads))


def grouped(sources: Sequence[Source]) -> list[dict[Method, tuple[str, Predictions]]]:
    """The sources by what may be compared, in the order of their keys."""
    groups: dict[tuple[str, ...], dict[Method, tuple[str, Predictions]]] = {}
    for source in sources:
        p = source.predictions
        groups.setdefault(group_key(p), {})[p.encoder, p.head] = (source.uri, p)
    return [groups[key] for key in sorted(groups)]


def write_results(config: ResultsConfig, content: PageContent) -> list[str]:
    """Write every format that is asked for; returns the addresses."""
    made = _tables(content)
    texts = {
        "latex": ("results.tex", text_tables.latex),
        "markdown": ("results.md", text_tables.markdown),
    }
    written = []
    for kind in ("csv", "parquet"):
        for name, table in made.items() if kind in config.formats else ():
            written.append(objects.join(config.out, f"{name}.{kind}"))
            write_table(written[-1], table)
    for kind, (name, make) in texts.items():
        if kind in config.formats:
            written.append(objects.join(config.out, name))
            text = make(content.title, content.rows, content.left_out)
            objects.write_whole(written[-1], text.encode())
    if "html" in config.formats:  # last: it names the others
        written.append(objects.join(config.out, "index.html"))
        objects.write_whole(written[-1], page(content).encode())
    return written


def file_names(config: ResultsConfig) -> list[str]:
    """The tables that lie beside the page."""
    endings = {"csv": "csv", "parquet": "parquet", "latex": "tex", "markdown": "md"}
    return [f"results.{end}" for kind, end in endings.items() if kind in config.formats]


def screen(content: PageContent, written: Sequence[str]) -> str:
    """One screen: counts, best methods, what was left out, where it lies."""
    rows = content.rows
    tasks = {row.predictions.task for row in rows}
    lines = [
        f"{len(rows)} rows: {len(tasks)} tasks in {len({r.cohort for r in rows})} independent "
        f"cohorts, {sum(row.winner for row in rows)} winners"
    ]
    if headline := real_rows(rows, content.tasks):
        lines.append(f"  {headline}")
    if text_tables.any_generated(rows):
        lines.append(f"  {text_tables.GENERATED_NOTE}")
    for one in content.ranked:
        ranks = zip(one.ranking.methods, one.ranking.average_ranks, strict=True)
        best = ", ".join(f"{name} {rank:.2f}" for name, rank in list(ranks)[:4])
        lines.append(f"  average ranks ({one.kind}, {one.data_source}): {best}")
    if content.left_out:
        said = dict.fromkeys(f"    {one.task}: {one.reason[:120]}" for one in content.left_out)
        count = len({one.task for one in content.left_out})
        lines.append(f"  left out, whole or in part: {count} task{'s' if count > 1 else ''}")
        lines += list(said)[:8]
    if too_few := _too_few_resamples(rows, content.difference_resamples):
        lines.append(f"  {too_few}")
    lines += [f"  written   {uri}" for uri in written if uri.endswith((".html", "results.csv"))]
    return "\n".join(lines)


def _tables(content: PageContent) -> dict[str, pa.Table]:
    return {
        "results": tables.result_table(content.rows),
        "metrics": tables.metric_table(content.rows),
        "folds": tables.fold_table(content.rows),
        "averages": tables.average_table(content.averages),
        "ranks": tables.rank_table(content.ranked),
        "pairs": tables.pair_table(content.pairs),
        "left_out": tables.left_out_table(content.left_out),
    }


def _too_few_resamples(rows: Sequence[ResultRow], resamples: int) -> str:
    """A note when no bootstrap p could survive Holm."""
    drawn = [
        row
        for row in rows
        if row.contrast and row.contrast.difference and row.contrast.difference.method != "delong"
    ]
    needed = resamples_needed(len({row.predictions.task for row in rows}))
    if not drawn or resamples >= needed:
        return ""
    return f"note: --difference-resamples {needed} would let a p by bootstrap survive Holm"


__all__ = ["ResultsConfig", "run"]
