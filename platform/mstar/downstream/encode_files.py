"""Tables of vectors as files: Parquet, AnnData, and one HDF5 a sample for TRIDENT and Patho-Bench.

<table>.parquet      a row a sample: name, case_id, slides, cancer_type, site, patches, windows,
                     vector (a list of float32); provenance in the file's metadata
<table>.h5ad         AnnData: X, obs, obsm["X_pca"], ["X_umap"] where drawn, uns["mstar"]
trident/…            slide_features_<encoder>/<slide>.h5, and coords with their attributes
patho_bench/…        by_slide_id/<slide>.h5 or by_case_id/<case>.h5
"""

import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32

from mstar.features import hdf5
from mstar.features.layouts.contract import flat_name
from mstar.features.layouts.trident import coords_attributes, run_folder
from mstar.features.store import FeatureStore
from mstar.storage import objects

PROVENANCE = b"mstar.provenance"
ENCODER = "mstar-slide"
_TEXT = ("name", "case_id", "slides", "cancer_type", "site")
_NUMBERS = ("patches", "windows")


def schema_of(dim: int) -> pa.Schema:
    """The columns of a table of vectors."""
    fields = [(name, pa.string()) for name in _TEXT]
    fields += [(name, pa.int64()) for name in _NUMBERS]
    return pa.schema([*fields, ("vector", pa.list_(pa.float32(), dim))])


def table_of(rows: Sequence[Mapping[str, Any]], dim: int) -> pa.Table:
    """Rows as a table."""
    schema = schema_of(dim)
    columns = {name: [row[name] for row in rows] for name in schema.names if name != "vector"}
    flat = np.concatenate([row["vector"] for row in rows]).astype(np.float32, copy=False)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), dim)
    arrays = [pa.array(columns[name], schema.field(name).type) for name in columns]
    return pa.Table.from_arrays([*arrays, vectors], schema=schema)


def vectors_of(table: pa.Table) -> Float32[np.ndarray, "sample dim"]:
    """The vectors of a table, one below the other."""
    column = table.column("vector").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    dim = column.type.list_size
    flat: Float32[np.ndarray, "sample dim"] = column.flatten().to_numpy().reshape(-1, dim)
    return flat


def write_parquet(uri: str, table: pa.Table, provenance: Mapping[str, Any]) -> None:
    """Write a table whole, with what made it."""
    text = json.dumps(provenance, sort_keys=True).encode()
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({PROVENANCE: text}), sink, compression="zstd")
    objects.write_whole(uri, sink.getvalue())


def read_parquet(uri: str) -> tuple[pa.Table, dict[str, Any]]:
    """A table of vectors, and what made it."""
    table = pq.read_table(io.BytesIO(objects.read_bytes(uri)))
    metadata = table.schema.metadata or {}
    return table, json.loads(metadata.get(PROVENANCE, b"{}"))


def write_anndata(
    uri: str,
    table: pa.Table,
    provenance: Mapping[str, Any],
    *,
    places: Mapping[str, Float32[np.ndarray, "sample axis"]] | None = None,
) -> None:
    """Write a table in AnnData's format 0.1.0 (`.h5ad`); `places` become `obsm["X_…"]`."""
    vectors = vectors_of(table)

    def write(path: Path) -> None:
        with hdf5.create(path) as file:
            _encoding(file, "anndata", "0.1.0")
            _array(file, "X", vectors)
            names = [str(n) for n in table.column("name").to_pylist()]
            obs = {n: table.column(n).to_pylist() for n in (*_TEXT[1:], *_NUMBERS)}
            _frame(file, "obs", names, obs)
            _frame(file, "var", [f"dim_{place}" for place in range(vectors.shape[1])], {})
            obsm = _mapping(file, "obsm")
            for name, coordinates in (places or {}).items():
                _array(obsm, f"X_{name}", coordinates)
            for name in ("varm", "obsp", "varp", "layers"):
                _mapping(file, name)
            _text(_mapping(file, "uns"), "mstar", json.dumps(provenance, sort_keys=True))

    _put(uri, write)


def write_trident(out: str, table: pa.Table, store: FeatureStore | None) -> int:
    """One file a slide as TRIDENT has them; returns how many were written."""
    written = 0
    for name, vector in zip(table.column("name").to_pylist(), vectors_of(table), strict=True):
        grid = store.read(name).grid if store is not None else None
        folder = run_folder(grid) if grid is not None and grid.has_coords else "mstar"
        uri = objects.join(
            out, "trident", folder, f"slide_features_{ENCODER}", f"{flat_name(name)}.h5"
        )
        attributes = (
            coords_attributes(grid, flat_name(name)) if grid is not None and grid.has_coords else []
        )
        coords = grid.coords if attributes and grid is not None else np.empty((0, 2), np.int64)
        written += _put(uri, _slide_file(vector, name, coords, attributes))
    return written


def write_patho_bench(out: str, table: pa.Table, level: str) -> int:
    """One file a sample as Patho-Bench pools them; returns how many were written."""
    names = table.column("name").to_pylist()
    written = 0
    for name, vector in zip(names, vectors_of(table), strict=True):
        uri = objects.join(out, "patho_bench", f"by_{level}_id", f"{flat_name(name)}.h5")

        def write(path: Path, vector: Float32[np.ndarray, " dim"] = vector) -> None:
            with hdf5.create(path) as file:
                file.create_dataset("features", data=vector)

        written += _put(uri, write)
    return written


def _slide_file(
    vector: Float32[np.ndarray, " dim"],
    name: str,
    coords: np.ndarray,
    attributes: Sequence[tuple[str, hdf5.Attribute]],
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with hdf5.create(path) as file:
            features = file.create_dataset("features", data=vector)
            hdf5.write_attributes(features, (("name", name), ("savetodir", "")))
            places = file.create_dataset("coords", data=coords)
            hdf5.write_attributes(places, attributes)

    return write


def _put(uri: str, write: Callable[[Path], None]) -> bool:
    """Puts a file under its name whole; an equal one that is there stays."""
    with tempfile.TemporaryDirectory(prefix="mstar-") as folder:
        path = Path(folder) / "file.hdf5"
        write(path)
        if objects.exists(uri) and objects.read_bytes(uri) == path.read_bytes():
            return False
        objects.put_file(path, uri)
        return True


def _encoding(item: Any, kind: str, version: str) -> None:
    item.attrs["encoding-type"], item.attrs["encoding-version"] = kind, version


def _array(group: Any, name: str, values: np.ndarray) -> None:
    _encoding(group.create_dataset(name, data=values), "array", "0.2.0")


def _strings(group: Any, name: str, values: Sequence[str]) -> None:
    kind = h5py.string_dtype()
    _encoding(group.create_dataset(name, data=list(values), dtype=kind), "string-array", "0.2.0")


def _text(group: Any, name: str, value: str) -> None:
    _encoding(group.create_dataset(name, data=value, dtype=h5py.string_dtype()), "string", "0.2.0")


def _mapping(file: Any, name: str) -> Any:
    group = file.create_group(name)
    _encoding(group, "dict", "0.1.0")
    return group


def _frame(
    file: Any, name: str, index: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> None:
    """A data frame: its index, then its columns in order."""
    group = file.create_group(name)
    _encoding(group, "dataframe", "0.2.0")
    group.attrs["_index"] = "_index"
    order = np.array(list(columns), dtype=h5py.string_dtype())
    group.attrs.create("column-order", order, dtype=h5py.string_dtype())
    _strings(group, "_index", index)
    for column, values in columns.items():
        if all(isinstance(value, str) for value in values):
            _strings(group, column, values)
        else:
            _array(group, column, np.asarray(values, np.int64))
