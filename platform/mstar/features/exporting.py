"""Whole stores to the field's layouts: `mstar export` (rules: `exchange_report.py`)."""

import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mstar import config as configs
from mstar.errors import ConfigError, FeatureError
from mstar.features.coordless import require_coords
from mstar.features.exchange_report import ExchangeReport, layout_named
from mstar.features.files import SlideFeatures
from mstar.features.hdf5 import wrong
from mstar.features.layouts import LayoutName
from mstar.features.layouts.contract import (
    Layout,
    flat_name,
    folder_name,
)
from mstar.features.store import FeatureStore, GridStore
from mstar.features.store_record import read_record
from mstar.storage import objects


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
    chosen = layout_named(layout)
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
