"""`mstar doctor`: is this machine ready, and, with `--slides`, are the slides?

The slides are previewed one line each as they are opened, before a long run finds the one without
mpp after six hours. Exit code 1 when a check fails or a slide cannot be used as it is.
"""

import dataclasses
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from mstar.cli.doctor_checks import CHECKS as MACHINE_CHECKS
from mstar.cli.doctor_checks import Check, Place, run_check
from mstar.cli.doctor_encoders import check_encoder
from mstar.errors import ConfigError, MstarError
from mstar.schema import SlideRef
from mstar.storage.cache import SlideCache, default_cache_dir
from mstar.storage.manifest import BadRow, read_slides
from mstar.training.exit_codes import ExitCode

if TYPE_CHECKING:
    from mstar.slides.reader import SlideDescription

CHECKS = {**MACHINE_CHECKS, "encoder": check_encoder}
CACHE_BYTES = 20 << 30
PREVIEWS_AT_ONCE = 4
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}
ROW = (
    "{slide_id:<32} {size:>15} {mpp:>17} {scanner:<18} "
    "{levels:<14} {compression:<9} {icc:<4}{reader}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig:
    """What to check."""

    slides: str | None = None
    """Slides to preview: file, folder, glob, s3://… or manifest (.csv, .parquet)."""
    slide_mpp: float | None = None
    """Microns per pixel at level 0 of slides that do not state it."""
    limit: int = 0
    """Preview only the first so many slides; 0 previews all. Slides on s3:// are downloaded."""
    out: str = "."
    """Where a job would write, local or s3://…: its disk and MLflow are checked."""
    cache_dir: str | None = None
    """Folder of the slide cache; default MSTAR_CACHE_DIR or below the temporary folder."""
    s3: str | None = None
    """Object store to try, for example s3://bucket/folder; AWS_ENDPOINT_URL alone tries as well."""
    encoder: str = ""
    """Encoder whose weights are looked for; says what to do about gated ones."""
    json: bool = False
    """Print JSON, one object a line: {"check": …} and {"slide": …}."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if self.limit < 0:
            raise ConfigError(f"--limit {self.limit}: expected 0 (all) or a number of slides")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePreview:
    """What a slide says about itself, and what stands in the way of using it.

    problem: why a job would refuse it, empty when it would not.
    warning: what to look at, empty when there is nothing.
    """

    slide_id: str
    uri: str
    mpp: float | None = None
    mpp_source: str = "none"
    width_l0: int = 0
    height_l0: int = 0
    downsamples: tuple[float, ...] = ()
    scanner: str = ""
    objective_power: float | None = None
    compression: str = ""
    has_icc: bool = False
    reader: str = ""
    problem: str = ""
    warning: str = ""


def run(config: DoctorConfig) -> int:
    """Runs all checks and previews; returns the exit code."""
    cache_dir = config.cache_dir or default_cache_dir()
    checks = run_checks(
        Place(out=config.out, cache=cache_dir, s3=config.s3, encoder=config.encoder)
    )
    show_checks(checks, as_json=config.json)
    healthy = all(check.status != "fail" for check in checks)
    if config.slides is not None:
        healthy = preview_slides(config) and healthy
    return ExitCode.COMPLETE if healthy else ExitCode.FAILED


def run_checks(place: Place) -> list[Check]:
    """All checks in the order of their table; they run side by side, most only wait."""
    with ThreadPoolExecutor(max_workers=len(CHECKS)) as pool:
        return list(pool.map(lambda item: run_check(item[0], item[1], place), CHECKS.items()))


def show_checks(checks: list[Check], *, as_json: bool) -> None:
    """Prints the checks as a table, or one JSON object each."""
    if as_json:
        for check in checks:
            print(json.dumps({"check": dataclasses.asdict(check)}, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("check", "", "found", "way out"):
        table.add_column(title, overflow="fold")
    for check in checks:
        # Text, not markup: a path may hold [brackets].
        status = Text(check.status, style=COLOURS[check.status])
        table.add_row(check.name, status, Text(check.found), Text(check.way_out))
    console = Console()
    if not console.is_terminal:  # a log file has no width
        console = Console(width=140)
    console.print(table)


def preview_slides(config: DoctorConfig) -> bool:
    """Prints one line per slide as it comes; True when a job could use them all."""
    num_slides = num_problems = 0
    if not config.json:
        print(f"\n{heading()}")
    for preview in previews(config):
        num_slides += 1
        num_problems += bool(preview.problem)
        show_preview(preview, as_json=config.json)
    if not config.json:
        print(f"slides: {num_slides:,}, with a problem: {num_problems:,}")
    return num_problems == 0


def previews(config: DoctorConfig) -> Iterator[SlidePreview]:
    """Previews in the order of the slides, a few opened at once."""
    assert config.slides is not None
    refs = iter(read_slides(config.slides, slide_mpp=config.slide_mpp))
    refs = islice(refs, config.limit) if config.limit else refs
    cache = SlideCache(config.cache_dir or default_cache_dir(), max_bytes=CACHE_BYTES)
    with ThreadPoolExecutor(max_workers=PREVIEWS_AT_ONCE) as pool:
        # A batch at a time: a cohort may be larger than what should wait in memory.
        while batch := list(islice(refs, 4 * PREVIEWS_AT_ONCE)):
            yield from pool.map(lambda ref: preview_slide(ref, cache), batch)


def preview_slide(ref: SlideRef | BadRow, cache: SlideCache) -> SlidePreview:
    """One slide; whatever stops its being opened is its problem."""
    from mstar.slides.reader import describe

    if isinstance(ref, BadRow):
        return SlidePreview(slide_id=ref.slide_id, uri=ref.uri, problem=ref.reason)
    try:
        with cache.stage(ref.uri) as path:
            return from_description(ref, describe(path))
    except MstarError as error:
        return SlidePreview(slide_id=ref.slide_id, uri=ref.uri, problem=str(error))
    except Exception as error:  # a reader's own error: this slide's problem, not the preview's end
        problem = f"{type(error).__name__}: {error}"
        return SlidePreview(slide_id=ref.slide_id, uri=ref.uri, problem=problem)


def from_description(ref: SlideRef, described: "SlideDescription") -> SlidePreview:
    """A preview from what the reader found; a stated mpp replaces the file's."""
    stated, warning = ref.mpp is not None, described.warning or ""
    mpp = ref.mpp if stated else described.mpp
    way_out = "state it with --slide-mpp or the manifest's mpp column, or see --missing-mpp"
    return SlidePreview(
        slide_id=ref.slide_id,
        uri=ref.uri,
        mpp=mpp,
        mpp_source="stated" if stated else described.mpp_source,
        width_l0=described.width_l0,
        height_l0=described.height_l0,
        downsamples=described.downsamples,
        scanner=described.scanner or described.vendor,
        objective_power=described.objective_power,
        compression=described.compression or "",
        has_icc=described.has_icc,
        reader=described.backend,
        problem=f"{warning.removesuffix('; skipped')}; {way_out}" if mpp is None else "",
        warning="" if stated or mpp is None else warning,
    )


def heading() -> str:
    """The titles of the preview's columns."""
    return ROW.format(
        slide_id="slide",
        size="pixels",
        mpp="mpp",
        scanner="scanner",
        levels="levels",
        compression="coding",
        icc="icc",
        reader="reader",
    )


def show_preview(preview: SlidePreview, *, as_json: bool) -> None:
    """Prints one slide, and what is wrong with it below."""
    if as_json:
        print(json.dumps({"slide": dataclasses.asdict(preview)}, ensure_ascii=False), flush=True)
        return
    if preview.reader:
        print(ROW.format(**columns(preview)), flush=True)
    else:
        print(preview.slide_id)
    for word, text in (("problem", preview.problem), ("warning", preview.warning)):
        if text:
            print(f"    {word}: {text}", flush=True)


def columns(preview: SlidePreview) -> dict[str, Any]:
    """The texts of one row."""
    source = "" if preview.mpp is None else f" ({preview.mpp_source.split('-')[0]})"
    return {
        "slide_id": preview.slide_id,
        "size": f"{preview.width_l0}×{preview.height_l0}",
        "mpp": "missing" if preview.mpp is None else f"{preview.mpp:.4g}{source}",
        "scanner": preview.scanner,
        "levels": " ".join(f"{d:g}" for d in (round(d, 1) for d in preview.downsamples)),
        "compression": preview.compression,
        "icc": "yes" if preview.has_icc else "no",
        "reader": preview.reader,
    }
