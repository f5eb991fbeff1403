"""Which slides are asked for, where their features are, and where their pictures."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from mstar.data.cases import read_cases
from mstar.errors import FeatureError, ManifestError, MstarError
from mstar.evidence.config import HeatmapConfig
from mstar.features.store import FeatureStore
from mstar.predict.config import NewSlidesConfig, PredictConfig
from mstar.predict.features import wanted
from mstar.predict.same_features import check_same
from mstar.schema import SlideRef
from mstar.storage import objects
from mstar.storage.manifest import BadRow, read_slides


@dataclass(slots=True, kw_only=True)
class AskedSlides:
    """What is to be scored.

    store_of: slide → store, of slides that have features. to_embed: what `predict` embeds first.
    case_of: slide → case, where it is known. uri_of: slide → its file, where it is known.
    rna_of: case → its row of gene expression, where it is named. failed: slide → why it cannot be
    scored.
    """

    store_of: dict[str, FeatureStore] = field(default_factory=dict)
    to_embed: list[str] = field(default_factory=list)
    case_of: dict[str, str] = field(default_factory=dict)
    uri_of: dict[str, str] = field(default_factory=dict)
    rna_of: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def asked_slides(config: HeatmapConfig, expected: Mapping[str, Any] | None) -> AskedSlides:
    """What the call names; nothing is embedded yet.

    Args:
        config: the call.
        expected: the configuration of the model's features; None: any will do, and slides without
            features cannot be embedded.

    Raises:
        FeatureError: a store holds other features than the model was trained on; a name is neither
            that of a slide in a store nor of a file.
    """
    stores = [FeatureStore.open(root) for root in feature_roots(config)]
    if expected is not None:
        for store in stores:
            check_same(store.record.config, expected, of=store.root)
    found = AskedSlides()
    _from_cases(config, found)
    if not config.slides:
        found.store_of = {slide: store for store in stores for slide in sorted(store.done_ids())}
    for spec in config.slides:
        own = next((one for one in stores if _has(one, spec)), None)
        if own is not None:
            found.store_of[spec] = own
        else:
            _from_files(config, spec, stores, found, may_embed=expected is not None)
    return found


def feature_roots(config: HeatmapConfig) -> list[str]:
    """The stores of --features, without labels."""
    given = [text.rpartition("=")[2] for text in config.features]
    return [root for text in given for root in text.split(",") if root]


def embedded(config: HeatmapConfig, expected: Mapping[str, Any], found: AskedSlides) -> None:
    """Embed what has no features, as the model's training slides were; adds to `found`."""
    for spec in found.to_embed:
        made = wanted(predict_config(config, spec), expected)
        found.store_of |= made.store_of
        found.failed |= made.failed


def predict_config(config: HeatmapConfig, slides: str | None = None) -> PredictConfig:
    """The call as `mstar predict` would have it."""
    shared = {one.name: getattr(config, one.name) for one in fields(NewSlidesConfig)}
    return PredictConfig(
        model=config.model,
        out=config.out,
        slides=slides,
        stage1=config.stage1,
        stage2=config.stage2,
        prompts=config.prompts,
        features=tuple(feature_roots(config)),
        device=config.device,
        **shared | {"run": replace(config.run, tracking=False)},
    )


def _from_files(
    config: HeatmapConfig,
    spec: str,
    stores: list[FeatureStore],
    found: AskedSlides,
    *,
    may_embed: bool,
) -> None:
    """Slide files, or a manifest of them."""
    missing = False
    for entry in _entries(config, spec):
        if isinstance(entry, BadRow):
            found.failed[entry.slide_id] = entry.reason
            continue
        found.uri_of[entry.slide_id] = entry.uri
        if entry.case_id:
            found.case_of[entry.slide_id] = entry.case_id
        store = next((one for one in stores if _has(one, entry.slide_id)), None)
        if store is not None:
            found.store_of[entry.slide_id] = store
        elif may_embed:
            missing = True
        else:
            found.failed[entry.slide_id] = f"no features of it in {', '.join(config.features)}"
    if missing:
        found.to_embed.append(spec)


def _entries(config: HeatmapConfig, spec: str) -> Iterator[SlideRef | BadRow]:
    try:
        yield from read_slides(spec, slide_mpp=config.slide_mpp)
    except MstarError as error:
        stores = ", ".join(config.features) or "a store (--features)"
        raise FeatureError(
            f"--slides {spec}: expected a slide of {stores}, or a slide file, folder or manifest: "
            f"{error}"
        ) from error


def _from_cases(config: HeatmapConfig, found: AskedSlides) -> None:
    """Whose the slides are, and their files."""
    files = config.slide_files
    if config.cases:
        cases = read_cases(config.cases)
        found.case_of |= {slide: case.case_id for case in cases for slide in case.slides}
        found.rna_of |= {case.case_id: case.rna for case in cases if case.rna}
        beside = config.cases.rpartition("/")[0] + "/slides.csv"
        if not files and "/" in config.cases and objects.exists(beside):
            files = beside
    if files:
        entries: Any = read_slides(files)
        found.uri_of |= {one.slide_id: one.uri for one in entries if isinstance(one, SlideRef)}


def _has(store: FeatureStore, slide_id: str) -> bool:
    try:
        return store.has(slide_id)
    except ManifestError:  # a path, which cannot be an id
        return False
