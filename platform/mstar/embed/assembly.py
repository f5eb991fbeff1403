"""From a config to a worker: what is shipped to an actor, and how it puts itself together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mstar.embed.config import EmbedConfig, grid_settings
from mstar.embed.grids import GridSource
from mstar.embed.slide_writer import SlideWriter
from mstar.embed.sources import LocalSource, PatchSource
from mstar.embed.worker import EmbedWorker
from mstar.features.files import FeatureProvenance
from mstar.features.store import FeatureStore
from mstar.features.store_record import read_record
from mstar.models.encoder_spec import RESIZE_KERNELS, EncoderSpec
from mstar.models.encoder_table import find_encoder
from mstar.models.patch_encoders import load_encoder
from mstar.models.transforms import resize_patch
from mstar.models.weights import ResolvedWeights
from mstar.storage.cache import SlideCache, default_cache_dir
from mstar.storage.objects import exists, join
from mstar.training.custody import Custody


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedPlan:
    """A config with everything settled that it leaves open; travels to every worker."""

    config: EmbedConfig
    run_id: str
    weights: ResolvedWeights
    device: str
    precision: str
    batch_size: int
    torch_threads: int
    reader_threads: int

    @property
    def chunk_patches(self) -> int:
        """Patches of a chunk of a split slide, and of a bundle."""
        return self.config.run.bundle_batches * self.batch_size


def store_identity(plan: EmbedPlan, spec: EncoderSpec) -> dict[str, Any]:
    """What a feature store holds: whatever changes a feature, nothing that does not."""
    return {
        "encoder": spec.name,
        "dim": spec.dim,
        "transform": spec.transform,
        "weights_sha256": plan.weights.sha256,
        "code_sha256": spec.code_sha256,
        "licence": spec.licence,
        "precision": plan.precision,
        "dtype": plan.config.dtype,
        "bad_patches": plan.config.bad_patches,
        "grids": brought_grids(plan.config.grids),
        "slides": grid_settings(plan.config),
    }


def brought_grids(root: str | None) -> str | None:
    """What names the grids a caller brings: their settings where we made them, else their place."""
    if root is None or not exists(join(root, "store.json")):
        return root
    return read_record(root).fingerprint


def make_worker(plan: EmbedPlan, readers: Sequence[Any] = ()) -> EmbedWorker:
    """Build a worker in the process that will run it; `readers` are reader actors."""
    config = plan.config
    spec = find_encoder(config.encoder)
    encoder = load_encoder(
        config.encoder,
        weights=plan.weights,
        device=plan.device,
        precision=plan.precision,
        compile=config.compile,
        batch_size=plan.batch_size,
        threads=plan.torch_threads,
    )
    store = FeatureStore.open_or_create(config.out, store_identity(plan, spec))
    local = make_local_source(plan)
    source: PatchSource = local
    if readers:
        from mstar.embed.readers import RemoteSource  # Ray, which embedding here needs not

        source = RemoteSource(readers)
    return EmbedWorker(
        encoder=encoder,
        source=source,
        alone_source=local,
        custody=Custody(
            config.out, run_id=plan.run_id, lease_s=config.run.lease_s, is_done=store.has
        ),
        writer=SlideWriter(
            store=store,
            provenance=provenance(plan, spec, store.fingerprint),
            dim=spec.dim,
            dtype=config.dtype,
        ),
        batch_size=plan.batch_size,
        chunk_patches=plan.chunk_patches,
        read_ahead_rows=2 * plan.batch_size + 32 * plan.reader_threads,
    )


def provenance(plan: EmbedPlan, spec: EncoderSpec, fingerprint: str) -> FeatureProvenance:
    """What every feature file of the run says about itself."""
    return FeatureProvenance(
        encoder=spec.name,
        weights_sha256=plan.weights.sha256,
        transform=spec.transform,
        fingerprint=fingerprint,
        licence=spec.licence,
        precision=plan.precision,
        resize_kernel=RESIZE_KERNELS[spec.interpolation],
    )


def make_local_source(plan: EmbedPlan) -> LocalSource:
    """Reader threads of this process."""
    run = plan.config.run
    folder = run.cache_dir or default_cache_dir()
    spec = find_encoder(plan.config.encoder)
    return LocalSource(
        grids=GridSource(plan.config),
        cache=SlideCache(folder, max_bytes=int(run.cache_gb * 1e9)),
        threads=plan.reader_threads,
        prepare=partial(resize_patch, size_px=spec.input_px, interpolation=spec.interpolation),
        bad_patches=plan.config.bad_patches,
    )


def worker_factory(plan: EmbedPlan, readers: Sequence[Any] = ()) -> Callable[[], EmbedWorker]:
    """A picklable maker of workers."""
    return partial(make_worker, plan, tuple(readers))
