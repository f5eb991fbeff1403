"""From slides to a trained head, in this process: a cohort, a grid, features, a study."""

import csv
import io
import uuid
from collections.abc import Mapping
from typing import Literal

from PIL.Image import Image

from mstar.api.heads import Head, load_head
from mstar.downstream.config import Study
from mstar.downstream.study_files import study_folder
from mstar.embed.assembly import EmbedPlan
from mstar.embed.config import EmbedConfig, GridJobConfig
from mstar.embed.grids import MadeGrid, build_grid
from mstar.embed.here import embed_here
from mstar.errors import ConfigError, FeatureError, MstarError
from mstar.features.store import FeatureStore
from mstar.models.patch_encoders import prepare_weights
from mstar.schema import SlideRef
from mstar.slides.grid import GridConfig
from mstar.slides.overview import draw_overview
from mstar.slides.reader import Slide
from mstar.storage import objects
from mstar.storage.ledger import FailureLedger
from mstar.storage.manifest import BadRow, read_slides

PARTS = ("train", "val", "test")
CPU_BATCH, GPU_BATCH = 32, 256


def generate_cohort(out: str, *, cases: int = 24, seed: int = 0, slide_px: int = 1536) -> str:
    """A small cohort with a known truth: `<out>/slides`, `labels`, `truth` and the rest.

    Returns `out`. What is there already is kept; equal settings give equal bytes.

    Raises:
        MstarError: it could not be finished.
    """
    from mstar.cohorts import generate
    from mstar.cohorts.generated.config import GenerateConfig

    settings = GenerateConfig(
        out=out, cases=cases, seed=seed, slide_px=slide_px, slides_per_case_max=1, workers=1
    )
    if code := generate.run(settings):
        raise MstarError(f"{out}: the cohort could not be generated, exit code {code}")
    return out


def lay_grid(
    slide: Slide, *, mpp: float | None = None, config: GridConfig | None = None
) -> MadeGrid:
    """The tissue of a slide (`.tissue`) and the patches on it (`.grid`).

    Args:
        slide: of `open_slide`.
        mpp: microns per pixel at level 0, where the slide does not state it.
        config: resolution, size and place of the patches; 256 px at 0.5 µm when not given.

    Raises:
        MppError: the resolution is not known.
        ConfigError: the slide is too coarse for it.
    """
    name = slide.uri.rstrip("/").rpartition("/")[2].rpartition(".")[0]
    settings = GridJobConfig(
        slides=slide.uri, out="", slide_mpp=mpp, grid=config if config else GridConfig()
    )
    return build_grid(SlideRef(slide_id=name, uri=slide.uri), slide, settings)


def draw_grid(slide: Slide, laid: MadeGrid, *, max_px: int = 1024) -> Image:
    """A picture of the slide with the outlines of its tissue and its patches."""
    return draw_overview(slide, laid.tissue, laid.grid, max_px=max_px)


def embed_slides(
    slides: str,
    out: str,
    *,
    encoder: str = "uni",
    weights: str | None = None,
    grid: GridConfig | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    batch_size: int = 0,
) -> FeatureStore:
    """Features of slides, in this process; slides that are in the store already are left.

    For thousands of slides use `mstar embed`, which runs on a cluster and writes the same files.

    Args:
        slides: a file, folder, pattern or manifest, as for `mstar embed --slides`.
        out: folder of the feature store.
        encoder: name of a patch encoder.
        weights: as for `load_encoder`; its own when not given.
        grid: resolution, size and place of the patches; 256 px at 0.5 µm when not given.
        device: cpu or cuda.
        batch_size: patches per batch; 32 on a CPU, 256 on a GPU when not given.

    Raises:
        FeatureError: a slide failed; says which and why, the others are in the store.
    """
    settings = EmbedConfig(
        slides=slides,
        out=out,
        encoder=encoder,
        weights=weights,
        grid=grid if grid else GridConfig(),
        device=device,
        batch_size=batch_size or (GPU_BATCH if device == "cuda" else CPU_BATCH),
    )
    plan = EmbedPlan(
        config=settings,
        run_id=uuid.uuid4().hex,
        weights=prepare_weights(encoder, weights),
        device=device,
        precision="bfloat16" if device == "cuda" else "float32",
        batch_size=settings.batch_size,
        torch_threads=1,
        reader_threads=2,
    )
    entries = list(read_slides(slides))
    wanted = [entry for entry in entries if isinstance(entry, SlideRef)]
    store, _ = embed_here(plan, wanted)
    failed = {entry.slide_id: entry.reason for entry in entries if isinstance(entry, BadRow)}
    ledger = FailureLedger(objects.join(out, "failures"))
    for slide in wanted:
        if not store.has(slide.slide_id):
            failure = ledger.get(slide.slide_id)
            failed[slide.slide_id] = failure.message if failure else "left out"
    if failed:
        told = "; ".join(f"{name}: {why}" for name, why in list(failed.items())[:3])
        raise FeatureError(f"{out}: {len(failed):,} of {len(entries):,} slides failed: {told}")
    return store


def train_head(
    store: FeatureStore,
    labels: Mapping[str, str],
    parts: Mapping[str, str],
    *,
    out: str,
    task: str = "mine",
    head: str = "abmil",
    epochs: int = 0,
) -> Head:
    """A head trained on slides and their classes; a finished one is read, not trained again.

    The configuration is the paper's. The epoch is chosen on `val`; `test` is scored once, into
    `<out>/<task>/features/<head>/predictions-test.parquet`.

    Args:
        store: the slides' features.
        labels: slide → class.
        parts: slide → train, val or test.
        out: folder for the label table and the study.
        task: its name.
        head: abmil, clam_sb, transmil, … (`platform/docs/heads.md`).
        epochs: passes over the training part; the paper's 30 when not given.

    Raises:
        ConfigError: a part is none of the three, or a slide has a label and no part.
    """
    from mstar.downstream import train_job
    from mstar.downstream.train_config import TrainHeadConfig, TrialChanges

    for slide in labels:
        if parts.get(slide) not in PARTS:
            raise ConfigError(
                f"slide {slide}: expected a part of {', '.join(PARTS)}, got {parts.get(slide)!r}"
            )
    rows = [[slide, slide, name, parts[slide]] for slide, name in labels.items()]
    tables = objects.join(out, "labels")
    _write(objects.join(tables, f"{task}.csv"), ["case_id", "slides", "label", "split"], rows)
    classes = "|".join(sorted(set(labels.values())))
    own = objects.join(out, "tasks", f"{task}.csv")
    header = ["task_id", "kind", "metric", "classes"]
    _write(own, header, [[task, "classification", "macro_auc", classes]])
    settings = TrainHeadConfig(
        task=task, labels=tables, features=f"features={store.root}",
        own=(own,), out=out, head=head, trial=TrialChanges(epochs=epochs or None), device="cpu",
        cache_dir=objects.join(out, "cache"),
    )  # fmt: skip
    train_job.run(settings)
    return load_head(study_folder(out, Study(task_id=task, encoder="features", head=head)))


def _write(uri: str, header: list[str], rows: list[list[str]]) -> None:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerows([header, *rows])
    objects.write_whole(uri, sink.getvalue().encode())
