"""A reader of `.h5ad` files by the specification of the format, independent of our writer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd


@dataclass(frozen=True, kw_only=True)
class AnnData:
    """What the file holds."""

    x: np.ndarray
    obs: pd.DataFrame
    var: pd.DataFrame
    obsm: dict[str, np.ndarray]
    uns: dict[str, Any]


def read_h5ad(path: Path) -> AnnData:
    """Every element by its declared encoding; what is not declared is an error."""
    with h5py.File(path) as file:
        assert encoding(file) == ("anndata", "0.1.0")
        required = {"X", "obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns"}
        assert required <= set(file)
        made = AnnData(
            x=element(file["X"]),
            obs=element(file["obs"]),
            var=element(file["var"]),
            obsm=element(file["obsm"]),
            uns=element(file["uns"]),
        )
    assert made.x.shape == (len(made.obs), len(made.var))
    assert all(len(values) == len(made.obs) for values in made.obsm.values())
    return made


def encoding(item: Any) -> tuple[str, str]:
    """What an element says it is."""
    return item.attrs["encoding-type"], item.attrs["encoding-version"]


def element(item: Any) -> Any:
    """An element, and those below it."""
    kind, version = encoding(item)
    if kind == "dict":
        assert version == "0.1.0"
        return {name: element(child) for name, child in item.items()}
    assert version == "0.2.0", (item.name, version)
    if kind == "array":
        return item[()]
    if kind == "string":
        return item.asstr()[()]
    if kind == "string-array":
        return item.asstr()[()].astype(object)
    assert kind == "dataframe", kind
    order = list(item.attrs["column-order"])
    assert set(order) | {item.attrs["_index"]} == set(item)
    index = element(item[item.attrs["_index"]])
    return pd.DataFrame({name: element(item[name]) for name in order}, index=index)
