"""Whole stores to and from the field's layouts: `mstar export` and `mstar import`.

Each slide stands alone: one that cannot be exchanged is reported with its reason and the rest goes
on. Nothing is ever overwritten. A file that is there already is left if it is equal, and is a
failure of that slide if it is not, so that two encoders or grids are never mixed by accident.
"""

import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from mstar import config as configs
from mstar.errors import ConfigError, FeatureError, MstarError
from mstar.features.coordless import WARNING, require_coords
from mstar.features.files import UNKNOWN, FeatureProvenance, SlideFeatures, cast_features
from mstar.features.foreign_grids import read_foreign_grid
from mstar.features.hdf5 import wrong
from mstar.features.layouts import LAYOUTS, LayoutName
from mstar.features.layouts.contract import (
    Facts,
    ForeignFiles,
    ForeignSlide,
    Layout,
    flat_name,
    folder_name,
)
from mstar.features.store import FeatureStore, GridStore, read_record
from mstar.storage import objects

__all__ = [
    "ExchangeReport",
    "ExportConfig",
    "ImportConfig",
    "export_store",
    "import_layout",
    "read_foreign_grid",
    "run_export",
    "run_import",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """Writes a feature store (or the coordinates of a grid store) in another tool's layout."""

    features: str
    """The store: local folder or s3://…"""
    layout: LayoutName
    """Whose layout to write."""
    out: str
    """Where to write it: local folder or s3://…"""
    encoder: str = ""
    """What the layout shall call the encoder; empty for the store's name of it."""
    names: Literal["flat", "stem"] = "flat"
    """Slide ids with folders in layouts without: flat turns `/` into `%2F` (reversible), stem takes
    the last part and refuses two that are equal."""
    misfit: Literal["warn", "refuse"] = "warn"
    """What to do with grids from which the other tool would read other pixels."""


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


@dataclass(slots=True, kw_only=True)
class ExchangeReport:
    """What became of each slide."""

    layout: str
    out: str
    written: int = 0
    already: int = 0
    empty: list[str] = field(default_factory=list)  # no tissue, and no file for it in the layout
    failures: dict[str, str] = field(default_factory=dict)  # slide id -> reason
    tracebacks: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)  # text -> number of slides

    def fail(self, slide_id: str, error: Exception) -> None:
        """Notes a slide that could not be exchanged."""
        known = isinstance(error, MstarError)
        self.failures[slide_id] = str(error) if known else f"{type(error).__name__}: {error}"
        self.tracebacks[slide_id] = "".join(traceback.format_exception(error))


def run_export(config: ExportConfig) -> ExchangeReport:
    """Runs `mstar export`."""
    return export_store(
        config.features,
        config.layout,
        config.out,
        encoder=config.encoder or None,
        names=config.names,
        misfit=config.misfit,
    )


def export_store(
    features: str,
    layout: str,
    out: str,
    *,
    encoder: str | None = None,
    names: str = "flat",
    misfit: str = "warn",
) -> ExchangeReport:
    """Writes every slide of a feature or grid store in another layout (fields of ExportConfig)."""
    chosen = _layout(layout)
    store = _open_store(features, chosen)
    slide_ids = _names(store.done_ids(), chosen, names)
    report = ExchangeReport(layout=layout, out=out)
    warnings: Counter[str] = Counter()
    for slide_id, name in slide_ids:
        try:
            warnings.update(_export_slide(store, slide_id, name, chosen, encoder, misfit, report))
        except Exception as error:  # one slide's trouble, whatever it is, must not end the rest
            report.fail(slide_id, error)
    report.warnings = dict(warnings)
    _write_report(report, store, encoder)
    return report


def _open_store(root: str, layout: Layout) -> FeatureStore | GridStore:
    """The store to export, features or grids."""
    if read_record(root).kind == "features":
        return FeatureStore.open(root)
    if layout.write_grid is None:
        raise ConfigError(f"{root}: a grid store, and {layout.name} has no file for grids alone.")
    return GridStore.open(root)


def _names(slide_ids: Iterable[str], layout: Layout, names: str) -> Iterable[tuple[str, str]]:
    """Each slide with its name in the layout; equal names are refused before any is written."""
    if not layout.flat:
        return ((slide_id, slide_id) for slide_id in slide_ids)
    if names == "flat":
        return ((slide_id, flat_name(slide_id)) for slide_id in slide_ids)
    by_name: dict[str, str] = {}
    for slide_id in slide_ids:
        name = slide_id.rpartition("/")[2]
        if name in by_name:
            raise ConfigError(
                f"--names stem: {by_name[name]!r} and {slide_id!r} are both {name!r}. "
                "Use --names flat, or export the folders apart."
            )
        by_name[name] = slide_id
    return ((slide_id, name) for name, slide_id in by_name.items())


def _export_slide(
    store: FeatureStore | GridStore,
    slide_id: str,
    name: str,
    layout: Layout,
    encoder: str | None,
    misfit: str,
    report: ExchangeReport,
) -> list[str]:
    """Writes one slide, counts it, and returns its warnings."""
    content = store.read(slide_id)
    grid = content.grid if isinstance(content, SlideFeatures) else content
    if layout.name != "plain":
        require_coords(grid, slide_id, f"files of {layout.name}")
    warning = layout.misfit(grid)
    if warning and misfit == "refuse":
        raise FeatureError(f"{slide_id}: {warning}. Use --misfit warn to export it all the same.")
    if len(grid) == 0 and not layout.keeps_empty:
        report.empty.append(slide_id)
        return []
    with tempfile.TemporaryDirectory(prefix="mstar-") as folder:
        if isinstance(content, SlideFeatures):
            called = encoder or content.provenance.encoder
            rels = layout.write(Path(folder), name, content, called)
        else:
            assert layout.write_grid is not None
            rels = layout.write_grid(Path(folder), name, grid)
        placed = [_place(Path(folder) / rel, objects.join(report.out, rel)) for rel in rels]
    report.written += any(placed)
    report.already += not any(placed)
    return [warning] if warning else []


def _place(local: Path, uri: str) -> bool:
    """Puts a file where there is none; an equal one may be there, another is a FeatureError."""
    if objects.put_file(local, uri, if_absent=True):
        return True
    if objects.read_bytes(uri) != local.read_bytes():
        way_out = "It is of another encoder, grid or version: choose another --out, or delete it."
        raise wrong(uri, "content", "equal to what is exported", "other bytes", way_out)
    return False


def _write_report(
    report: ExchangeReport, store: FeatureStore | GridStore, encoder: str | None
) -> None:
    """Keeps counts, exceptions and the store's configuration beside the export.

    The layouts have no place for the licence of the weights, nor for slides without tissue.
    """
    content = {
        "store_kind": store.record.kind,
        "store_fingerprint": store.record.fingerprint,
        "store_config": store.record.config,
        "report": {
            name: getattr(report, name) for name in ExchangeReport.__slots__ if name != "tracebacks"
        },
    }
    label = folder_name(encoder or str(store.record.config.get("encoder") or store.record.kind))
    uri = objects.join(report.out, f"mstar_export_{report.layout}_{label}.json")
    objects.write_whole(uri, (configs.to_json(content) + "\n").encode())


def run_import(config: ImportConfig) -> ExchangeReport:
    """Runs `mstar import`."""
    layout = _layout(config.layout)
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


def _layout(name: str) -> Layout:
    """The table row of a layout."""
    if name not in LAYOUTS:
        raise ConfigError(f"--layout: expected one of {sorted(LAYOUTS)}, got {name!r}.")
    return LAYOUTS[name]
