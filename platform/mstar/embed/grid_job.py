"""The grid job: slides in; per slide a grid file, an overview picture and its contours out."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from mstar.embed.config import GridJobConfig, grid_settings
from mstar.embed.grids import build_grid, write_overview
from mstar.embed.live import Live
from mstar.embed.overviews import log_overviews
from mstar.embed.pipeline import PoolShape, ignore, run_bundles
from mstar.embed.plan import BYTES_PER_PATCH, Bundle
from mstar.embed.results import Tally
from mstar.embed.running import collect_leftovers, job_run, print_dry_run
from mstar.errors import SkippedSlideError
from mstar.features.store import GridStore
from mstar.schema import Grid, SlideRef
from mstar.slides.geojson import write_regions
from mstar.slides.reader import open_slide
from mstar.storage.cache import SlideCache, default_cache_dir
from mstar.storage.objects import join
from mstar.training.cluster import ClusterShape, ray_session
from mstar.training.custody import Custody, Verdict

SLIDES_PER_BUNDLE_BYTES = 4_000_000_000  # a few large slides a bundle: some seconds of work


def run(config: GridJobConfig) -> int:
    """Run the job; returns its exit code (`mstar.training.exit_codes`)."""
    if config.run.dry_run:
        return print_dry_run(config, GridStore)
    with (
        ray_session(config.run.address) as cluster,
        job_run("grid", config, num_nodes=cluster.num_nodes) as job,
    ):
        store = GridStore.open_or_create(config.out, grid_settings(config))
        collect_leftovers(config.out)
        code = job.go(
            target_patches=SLIDES_PER_BUNDLE_BYTES // BYTES_PER_PATCH,
            done_ids=store.done_ids,
            run_plan=partial(_run_plan, config, job.run_id, cluster),
        )
        log_overviews(job.tracker, config.out)
        return code


def _run_plan(
    config: GridJobConfig, run_id: str, cluster: ClusterShape, plan_uri: str, live: Live
) -> Iterator[Tally]:
    workers = config.run.workers or max(1, int(cluster.num_cpus) - cluster.num_nodes)
    shape = PoolShape(workers=workers, num_cpus=config.run.cpus_per_worker or 1.0)
    yield from run_bundles(plan_uri, partial(GridWorker, config, run_id), shape, live)


class GridWorker:
    """Makes grids in one process."""

    def __init__(self, config: GridJobConfig, run_id: str) -> None:
        """Open the store and the records."""
        self._config = config
        self._store = GridStore.open_or_create(config.out, grid_settings(config))
        self._custody = Custody(
            config.out, run_id=run_id, lease_s=config.run.lease_s, is_done=self._store.has
        )
        folder = config.run.cache_dir or default_cache_dir()
        self._cache = SlideCache(folder, max_bytes=int(config.run.cache_gb * 1e9))

    def run(self, bundle: Bundle, so_far: Live = ignore) -> Tally:
        """Make the grids of a bundle's slides; a slide's trouble is recorded, the others go on."""
        tally, fetched = Tally(), self._cache.bytes_fetched
        for slide in bundle.slides:
            self._take(slide, tally)
            tally.slide_bytes += slide.size_bytes or 0
            so_far(tally)
        tally.bytes_fetched = float(self._cache.bytes_fetched - fetched)
        return tally

    def _take(self, slide: SlideRef, tally: Tally) -> None:
        # Slides are read one at a time here, so every one of them is read alone.
        verdict = self._custody.take(slide, alone=True)
        tally.present += verdict is Verdict.DONE
        tally.elsewhere += verdict is Verdict.ELSEWHERE
        tally.failed += verdict is Verdict.QUARANTINED
        if verdict is Verdict.TAKEN:
            self._do(slide, tally)

    def _do(self, slide: SlideRef, tally: Tally) -> None:
        try:
            grid = self._make(slide)
        except Exception as error:  # one slide's trouble stays that slide's
            self._custody.fail(slide, stage="grid", error=error)
            skipped = isinstance(error, SkippedSlideError)
            tally.skipped += skipped
            tally.failed += not skipped
        else:
            self._custody.finish(slide)
            tally.done += 1
            tally.patches += len(grid)
            tally.warned += "mpp_warning" in grid.provenance

    def _make(self, slide: SlideRef) -> Grid:
        with ExitStack() as stack:
            opened = open_slide(stack.enter_context(self._cache.stage(slide.uri)))
            stack.callback(opened.close)
            made = build_grid(slide, opened, self._config)
            write_overview(self._config.out, slide.slide_id, opened, made)
        contours = join(self._config.out, f"{slide.slide_id}.geojson")
        write_regions(contours, made.tissue.polygons, name=slide.slide_id)
        self._store.write(slide.slide_id, made.grid)  # last: it is what says done
        return made.grid
