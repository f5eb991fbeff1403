"""`mstar view`: a slide in the browser, patch scores over it.

    mstar view --slide a.svs --scores P/a/scores.parquet              serves it until Ctrl-C
    mstar view --slide a.svs --scores P/a/scores.parquet --export V   a folder; open V/index.html

Research software: not for decisions about a patient.
"""

from mstar.errors import InterruptedRunError
from mstar.evidence.viewer.config import ViewConfig
from mstar.evidence.viewer.content import ViewContent
from mstar.evidence.viewer.export import Exported, export
from mstar.evidence.viewer.gather import gather, scores_of, slide_path
from mstar.evidence.viewer.page import INDEX, page_files
from mstar.evidence.viewer.serve import ViewServer
from mstar.evidence.viewer.tiles import TileMaker
from mstar.schema import RESEARCH_ONLY
from mstar.slides.reader import open_slide
from mstar.storage import objects
from mstar.training.exit_codes import ExitCode

__all__ = ["ViewConfig", "run"]

_SHOWN = 3


def run(config: ViewConfig) -> int:
    """Serve or export; returns the exit code."""
    scores = scores_of(config)
    slide = open_slide(slide_path(config, scores))
    content = gather(config, scores, slide)
    print("\n".join(_told(config, content)), flush=True)
    tiles = TileMaker(slide, content.zoom, quality=config.quality, threads=config.threads)
    try:
        if config.dry_run:
            print("Nothing was written.")
            return ExitCode.COMPLETE
        if config.export:
            return _exported(config, export(config.export, content, tiles, threads=config.threads))
        return _serve(config, content, tiles)
    finally:
        tiles.close()


def _serve(config: ViewConfig, content: ViewContent, tiles: TileMaker) -> int:
    """Serves until told to stop, which is the way it ends."""
    with ViewServer(page_files(content), tiles, config.port) as server:
        print(f"  open        {server.url}\n  Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except (KeyboardInterrupt, InterruptedRunError):
            print(f"view: ended; {tiles.num_made:,} tiles were made", flush=True)
    return ExitCode.COMPLETE


def _exported(config: ViewConfig, done: Exported) -> int:
    print(f"  tiles       {done.num_tiles:,} ({done.num_new:,} new)")
    for name, why in list(done.unreadable.items())[:_SHOWN]:
        print(f"  unreadable  {name}: {why[:160]}")
    if len(done.unreadable) > _SHOWN:
        print(f"              and {len(done.unreadable) - _SHOWN:,} more; they are grey")
    print(f"  open        {objects.join(config.export, INDEX)}", flush=True)
    return ExitCode.EXCLUSIONS if done.unreadable else ExitCode.COMPLETE


def _told(config: ViewConfig, content: ViewContent) -> list[str]:
    zoom = content.zoom
    lines = [f"view: {content.slide_id}: {zoom.width_l0:,} × {zoom.height_l0:,} px"]
    lines.append(f"  patches     {len(content.coords_l0):,}")
    lines += [f"  scores      {one.scores.name} ({one.source})" for one in content.layers]
    if content.nearest is not None:
        found = content.nearest
        lines.append(
            f"  sentences   {found.num_chosen_from:,} of {found.num_sentences:,} of "
            f"{config.reports} ({found.space}); they are shown to whoever opens the page"
        )
    if config.export:
        lines.append(
            f"  export      {config.export}: {len(zoom):,} tiles down to 1/{zoom.downsample}"
        )
    return [*lines, f"  {RESEARCH_ONLY}"]
