"""Whole stores from the field's layouts: `mstar import` (rules: `exchange_report.py`)."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mstar.errors import ConfigError
from mstar.features.coordless import WARNING
from mstar.features.exchange_report import ExchangeReport, layout_named
from mstar.features.files import UNKNOWN, FeatureProvenance, cast_features
from mstar.features.hdf5 import wrong
from mstar.features.layouts import LayoutName
from mstar.features.layouts.contract import (
    Facts,
    ForeignFiles,
    ForeignSlide,
    Layout,
    folder_name,
)
from mstar.features.store import FeatureStore
from mstar.storage import objects


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """Reads another tool's layout into a feature store."""

    from_: Annotated[str, tyro.conf.arg(name="from")]
    """The other tool's folder: local or s3://…"""
    layout: LayoutName
    """Whose layout it is."""
    out: str
    """The feature store to write: local folder or s3://…"""
    coords: str = ""
    """Folder of the coordinate files, where it is another one."""
    encoder: str = ""
    """The encoder to read, or its name where the layout has no place for one (clam,
    plain)."""
    slide_mpp: float | None = None
    """Level-0 resolution of the slides in microns per pixel, where the files do not say it."""
    missing_mpp: Literal["error", "from-objective"] = "error"
    """A slide of unknown mpp: refuse it, or take 10 / its level-0 magnification."""
    missing_coords: Literal["error", "allow"] = "error"
    """Features of clam and mstar without coordinates: refuse them, or take them for heads alone (no
    targets, no heatmaps). Those of plain are always taken."""
    patch_size_l0: int | None = None
    """Patch side in level-0 pixels, where there are no coordinate files to say it."""
    dtype: Literal["keep", "float16", "float32"] = "keep"
    """Type of the stored features; keep takes the files' own."""
    licence: str = UNKNOWN
    """Licence of the encoder's weights, which the features carry on."""
    weights_sha256: str = UNKNOWN
    """sha256 of the encoder's weights, where it is known."""


def run_import(config: ImportConfig) -> ExchangeReport:
    """Runs `mstar import`."""
    layout = layout_named(config.layout)
    if not layout.names_encoder and not config.encoder:
        raise ConfigError(f"--encoder: {config.layout} files do not name the encoder; state it.")
    found = layout.find(
        objects.list_files(config.from_),
        objects.list_files(config.coords or config.from_),
        config.encoder or None,
    )
    if not found:
        raise ConfigError(f"{config.from_}: no slide in {config.layout} layout. Check --layout.")
    store = FeatureStore.open_or_create(config.out, _store_config(config, found[0].encoder))
    report = ExchangeReport(layout=config.layout, out=config.out)
    dims: set[int] = set()
    for files in found:
        try:
            _import_slide(store, files, layout, config, dims, report)
        except Exception as error:  # one slide's trouble, whatever it is, must not end the rest
            report.fail(files.slide_id, error)
    return report


def import_layout(folder: str, layout: LayoutName, out: str, **settings: Any) -> ExchangeReport:
    """Reads another tool's folder into a store; `settings` are the fields of ImportConfig."""
    return run_import(ImportConfig(from_=folder, layout=layout, out=out, **settings))


def _store_config(config: ImportConfig, encoder: str | None) -> dict[str, Any]:
    """What decides whether two imports may share a store."""
    return {
        "encoder": config.encoder or encoder or UNKNOWN,
        "imported_from": config.layout,
        "dtype": config.dtype,
        "licence": config.licence,
        "weights_sha256": config.weights_sha256,
    }


def _import_slide(
    store: FeatureStore,
    files: ForeignFiles,
    layout: Layout,
    config: ImportConfig,
    dims: set[int],
    report: ExchangeReport,
) -> None:
    """Reads one slide into the store and counts it."""
    if store.has(files.slide_id):
        report.already += 1
        return
    facts = Facts(
        slide_id=files.slide_id,
        mpp=config.slide_mpp,
        patch_size_l0=config.patch_size_l0,
        mpp_from_objective=config.missing_mpp == "from-objective",
        coords_optional=config.missing_coords == "allow",
    )
    with _local(files) as here:
        slide = layout.read(here, facts)
    dim = slide.features.shape[1]
    if len(slide.features) and dims and dim not in dims:
        way_out = "A store holds one encoder: import the folders apart."
        raise wrong(files.features, "width of features", f"{min(dims)}, as before", dim, way_out)
    dtype = slide.features.dtype.name if config.dtype == "keep" else config.dtype
    features = cast_features(slide.features, dtype)
    provenance = _provenance(slide, store, config)
    written = store.write(files.slide_id, slide.grid, features, provenance)
    dims.update({dim} if len(features) else ())
    report.written += written
    report.already += not written
    if not slide.grid.has_coords:
        report.warnings[WARNING] = report.warnings.get(WARNING, 0) + 1


def _provenance(
    slide: ForeignSlide, store: FeatureStore, config: ImportConfig
) -> FeatureProvenance:
    """What is known of how foreign features were made: ours where we had written them."""
    encoder = str(store.record.config["encoder"])
    if slide.encoder and folder_name(slide.encoder) != folder_name(encoder):
        way_out = "A store holds one encoder: import the others apart."
        raise wrong(slide.grid.slide_id, "encoder", encoder, slide.encoder, way_out)
    known = slide.provenance
    stated = {"licence": config.licence, "weights_sha256": config.weights_sha256}
    stated = {key: value for key, value in stated.items() if value != UNKNOWN}
    names = ("weights_sha256", "transform", "licence", "precision", "resize_kernel")
    fields = {name: known.get(name, UNKNOWN) for name in names} | stated
    extra: dict[str, str] = {"imported_from": config.layout}
    if known.get("fingerprint"):
        extra["fingerprint_before"] = known["fingerprint"]
    return FeatureProvenance(
        encoder=encoder,
        fingerprint=store.fingerprint,
        extra=extra,
        **fields,
    )


@contextmanager
def _local(files: ForeignFiles) -> Iterator[ForeignFiles]:
    """The files of one slide as local paths; those of a bucket are fetched for the time being."""
    with tempfile.TemporaryDirectory(prefix="mstar-") as folder:
        paths: dict[str, str] = {}
        for role in ("features", "rows", "coords"):
            uri = getattr(files, role)
            if uri is not None:
                paths[role] = str(_localise(uri, Path(folder) / role))
        yield replace(files, **paths)


def _localise(uri: str, folder: Path) -> Path:
    """A local path of a file, fetched into `folder` unless it is local already."""
    if objects.is_local(uri):
        return objects.local_path(uri)
    folder.mkdir()
    path = folder / uri.rpartition("/")[2]
    path.write_bytes(objects.read_bytes(uri))
    return path
