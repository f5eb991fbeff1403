"""mSTAR and PrePATH: `pt_files/<model>/<id>.pt`, with the coordinates alone beside it.

`h5_files/<model>/<id>.h5` has the rows' coordinates without any attribute; what they mean is in
CLAM's coordinate file, `patches/<id>.h5`, which is written and read as well.
"""

from collections.abc import Iterable
from pathlib import Path

from mstar.features import hdf5
from mstar.features.files import SlideFeatures
from mstar.features.layouts import clam
from mstar.features.layouts.contract import (
    ForeignFiles,
    folder_name,
    pick_encoder,
    save_tensor,
    unflat_name,
    write_chunked,
)
from mstar.storage.objects import FileInfo

write_grid = clam.write_grid
misfit = clam.misfit
read = clam.read


def write(folder: Path, name: str, slide: SlideFeatures, encoder: str) -> list[str]:
    """Writes tensor, bare coordinates and CLAM's coordinate file of a slide."""
    model = folder_name(encoder)
    written = write_grid(folder, name, slide.grid)
    path = folder / "h5_files" / model / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with hdf5.create(path) as file:
        write_chunked(file, "coords", slide.grid.coords, 1)
    save_tensor(folder / "pt_files" / model / f"{name}.pt", slide.features)
    return [*written, f"h5_files/{model}/{name}.h5", f"pt_files/{model}/{name}.pt"]


def find(
    features: Iterable[FileInfo], coords: Iterable[FileInfo], encoder: str | None
) -> list[ForeignFiles]:
    """Slides with a tensor of one model, and their coordinates."""
    tensors: dict[str, dict[str, str]] = {}
    rows: dict[str, dict[str, str]] = {}
    for info in features:
        steps = info.rel.split("/")
        if len(steps) < 3:
            continue
        kind, model, file = steps[-3:]
        if kind == "pt_files" and file.endswith(".pt"):
            tensors.setdefault(model, {})[file.removesuffix(".pt")] = info.uri
        if kind == "h5_files" and file.endswith(".h5"):
            rows.setdefault(model, {})[file.removesuffix(".h5")] = info.uri
    model = pick_encoder(tensors, encoder)
    patches = clam.find_coords(coords)
    return [
        ForeignFiles(
            slide_id=unflat_name(name),
            features=uri,
            rows=rows.get(model, {}).get(name),
            coords=patches.get(name),
            encoder=encoder or model,
        )
        for name, uri in sorted(tensors[model].items())
    ]
