"""The features of the slides to predict: found in stores, or made as the model's were."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mstar.data.cases import Case, read_cases
from mstar.embed import job as embed_job
from mstar.embed.assembly import EmbedPlan
from mstar.embed.config import EmbedConfig
from mstar.embed.here import embed_here
from mstar.errors import WeightsError
from mstar.features.store import FeatureStore
from mstar.models.patch_encoders import prepare_weights
from mstar.models.weights import ResolvedWeights
from mstar.predict.config import PredictConfig
from mstar.predict.same_features import check_same, embed_config
from mstar.schema import SlideRef
from mstar.storage.ledger import FailureLedger
from mstar.storage.manifest import BadRow, read_slides
from mstar.storage.objects import join
from mstar.training.exit_codes import ExitCode

FEATURES, FEW_SLIDES = "features", 8
CPU_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be predicted.

    store_of: slide → the store of its features, of the slides that have them.
    case_of: slide → its case in the manifest or in the table of cases, where it has one.
    failed: slide → why it has no features.
    rna_of: case → its row of gene expression, where the table of cases names it.
    """

    store_of: Mapping[str, FeatureStore]
    case_of: Mapping[str, str]
    failed: Mapping[str, str]
    rna_of: Mapping[str, str] = field(default_factory=dict)


def wanted(config: PredictConfig, expected: Mapping[str, Any]) -> Wanted:
    """The slides asked for, embedded where no store has them.

    Raises:
        TableError: the table of cases is not one.
        FeatureError: a store holds other features than the model was trained on.
        WeightsError: the encoder's weights are others.
    """
    cases = read_cases(config.cases) if config.cases else None
    found = _slides(config, expected)
    return found if cases is None else _of_cases(found, cases)


def _slides(config: PredictConfig, expected: Mapping[str, Any]) -> Wanted:
    stores = [FeatureStore.open(root) for root in config.features]
    for store in stores:
        check_same(store.record.config, expected, of=store.root)
    entries = list(read_slides(config.slides)) if config.slides is not None else []
    slides = [entry for entry in entries if isinstance(entry, SlideRef)]
    failed = {entry.slide_id: entry.reason for entry in entries if isinstance(entry, BadRow)}
    store_of = {slide: store for store in stores for slide in store.done_ids()}
    if config.slides is None:
        return Wanted(store_of=store_of, case_of={}, failed={})
    missing = [slide for slide in slides if slide.slide_id not in store_of]
    if missing:
        made = embed(config, expected, missing)
        ledger = FailureLedger(join(made.root, "failures"))
        done = set(made.done_ids())
        for slide in missing:
            if slide.slide_id in done:
                store_of[slide.slide_id] = made
            else:
                failure = ledger.get(slide.slide_id)
                failed[slide.slide_id] = failure.message if failure else "left out, as asked"
    asked = {slide.slide_id for slide in slides}
    return Wanted(
        store_of={slide: store for slide, store in store_of.items() if slide in asked},
        case_of={slide.slide_id: slide.case_id for slide in slides if slide.case_id},
        failed=failed,
    )


def _of_cases(found: Wanted, cases: Sequence[Case]) -> Wanted:
    """The slides of some cases; those that nobody has features of are named."""
    case_of = {slide: case.case_id for case in cases for slide in case.slides}
    absent = "no features: it is neither in --features nor among --slides"
    lost = {slide: absent for slide in case_of if slide not in found.store_of}
    failed = {slide: why for slide, why in found.failed.items() if slide in case_of}
    return replace(
        found,
        store_of={slide: found.store_of[slide] for slide in case_of if slide in found.store_of},
        case_of=case_of,
        failed=lost | failed,
        rna_of={case.case_id: case.rna for case in cases if case.rna},
    )


def embed(
    config: PredictConfig, expected: Mapping[str, Any], slides: Sequence[SlideRef]
) -> FeatureStore:
    """Embed slides into `<out>/features`, in this process or on Ray; failures go to its ledger.

    Raises:
        WeightsError: the encoder's weights are not those of the model's features.
    """
    settings = embed_config(config, expected, join(config.out, FEATURES))
    weights = prepare_weights(settings.encoder, settings.weights)
    if weights.sha256 != expected["weights_sha256"]:
        raise WeightsError(
            f"encoder {settings.encoder}: expected the weights {expected['weights_sha256'][:12]}… "
            f"that made the model's features, got {weights.sha256[:12]}… from "
            f"{settings.weights or 'its default'}. Give the right ones by --weights."
        )
    few = len(slides) <= FEW_SLIDES and settings.run.address is None
    if config.where == "here" or (config.where == "auto" and few):
        return _embed_here(settings, weights, expected, slides)
    code = embed_job.run(settings)
    if code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    store = FeatureStore.open(settings.out)
    check_same(store.record.config, expected, of=store.root)
    return store


def _embed_here(
    settings: EmbedConfig,
    weights: ResolvedWeights,
    expected: Mapping[str, Any],
    slides: Sequence[SlideRef],
) -> FeatureStore:
    plan = EmbedPlan(
        config=settings,
        run_id=uuid.uuid4().hex,
        weights=weights,
        device=settings.device,
        precision=settings.precision,
        batch_size=settings.batch_size or CPU_BATCH,
        torch_threads=settings.run.torch_threads or 1,
        reader_threads=settings.run.reader_threads or 2,
    )
    store, _ = embed_here(plan, slides)
    check_same(store.record.config, expected, of=store.root)
    return store
