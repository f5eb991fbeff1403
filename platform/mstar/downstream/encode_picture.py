"""Two coordinates for each vector, by principal components or UMAP, and their picture.

UMAP needs umap-learn (the extra `pictures`); where it is not installed, it is left out and said so.
"""

import importlib
import importlib.metadata
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from matplotlib.figure import Figure

from mstar.storage import objects
from mstar.training.tracker import Tracker

SHOWN_TYPES = 12
UMAP_FEWEST = 10  # vectors; of fewer, neighbourhoods say nothing
UMAP_NEIGHBOURS, UMAP_DISTANCE = 15, 0.1
_OTHERS = "#bbbbbb"
_COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"),
    *("#222255", "#994f00", "#117733", "#882255", "#44aa99", "#ddaa33"),
)


def draw_table(
    out: str,
    name: str,
    vectors: Float32[np.ndarray, "sample dim"],
    types: Sequence[str],
    *,
    umap_seed: int | None,
    tracker: Tracker,
) -> dict[str, Float32[np.ndarray, "sample axis"]]:
    """Draws a table's vectors, in `out` and in the tracker; method → their coordinates.

    <name>.png: principal components. <name>_umap.png: UMAP, with a seed, where it is installed.
    """
    title = f"{name}: {len(vectors):,} vectors"
    coordinates, shares = principal_components(vectors)
    places = {"pca": coordinates}
    drawn = [(f"{name}.png", coordinates, component_axes(shares), title)]
    version = umap_version()
    if umap_seed is not None and version and len(vectors) >= UMAP_FEWEST:
        places["umap"] = umap_coordinates(vectors, umap_seed)
        told = f"{title}, umap-learn {version}"
        drawn.append((f"{name}_umap.png", places["umap"], ["UMAP 1", "UMAP 2"], told))
    with tempfile.TemporaryDirectory(prefix="mstar-") as folder:
        for file, found, axes, said in drawn:
            path = Path(folder) / file
            draw(path, found, axes, types, said)
            objects.put_file(path, objects.join(out, file))
            tracker.log_artifact(path)
    return places


def principal_components(
    vectors: Float32[np.ndarray, "sample dim"], axes: int = 2
) -> tuple[Float32[np.ndarray, "sample axis"], tuple[float, ...]]:
    """Coordinates on the first axes, and the share of the variance that each has.

    The covariance is decomposed, not the vectors: its size is that of a vector whatever their
    number. An axis points to where its largest loading is positive.
    """
    axes = min(axes, vectors.shape[1])
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    values, loadings = np.linalg.eigh(centred.T @ centred)
    first = loadings[:, ::-1][:, :axes]
    largest = np.abs(first).argmax(axis=0)
    first = first * np.sign(first[largest, np.arange(axes)])
    total = float(values.sum()) or 1.0
    shares = tuple(float(max(value, 0) / total) for value in values[::-1][:axes])
    coordinates: Float32[np.ndarray, "sample axis"] = (centred @ first).astype(np.float32)
    return coordinates, shares


def umap_version() -> str:
    """Of umap-learn; empty where it is not installed."""
    try:
        return importlib.metadata.version("umap-learn")
    except importlib.metadata.PackageNotFoundError:
        return ""


def umap_coordinates(
    vectors: Float32[np.ndarray, "sample dim"], seed: int
) -> Float32[np.ndarray, "sample axis"]:
    """Coordinates by UMAP: who is near by cosine stays near, all else is up to it.

    One thread, so that equal vectors and seeds give an equal picture.
    """
    assert len(vectors) >= UMAP_FEWEST
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optional parts that it would like to have
        umap = importlib.import_module("umap")
        reducer = umap.UMAP(
            n_neighbors=min(UMAP_NEIGHBOURS, len(vectors) - 1),
            min_dist=UMAP_DISTANCE,
            metric="cosine",
            random_state=seed,
            n_jobs=1,
        )
        made: Float32[np.ndarray, "sample axis"] = reducer.fit_transform(vectors)
    return made.astype(np.float32, copy=False)


def component_axes(shares: Sequence[float]) -> list[str]:
    """What the axes of principal components are called."""
    names = ("first component", "second component")
    return [
        f"{name} ({share:.0%} of the variance)" for name, share in zip(names, shares, strict=False)
    ]


def draw(
    path: Path,
    coordinates: Float32[np.ndarray, "sample axis"],
    axes: Sequence[str],
    types: Sequence[str],
    title: str,
) -> None:
    """A scatter plot; the commonest cancer types in colours, the others grey."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    plot = figure.add_subplot()
    common = [name for name, _ in Counter(filter(None, types)).most_common(SHOWN_TYPES)]
    known = np.array([name if name in common else "" for name in types])
    size = float(np.clip(4000 / max(len(types), 1), 4, 30))
    for name in ["", *common]:
        rows = known == name
        if rows.any():
            colour = _COLOURS[common.index(name)] if name else _OTHERS
            label = f"{name or 'others'} ({int(rows.sum()):,})"
            second = coordinates[rows, 1] if coordinates.shape[1] > 1 else np.zeros(rows.sum())
            plot.scatter(coordinates[rows, 0], second, s=size, c=colour, label=label, lw=0)
    plot.set_xlabel(axes[0])
    if len(axes) > 1:
        plot.set_ylabel(axes[1])
    plot.set_title(title)
    plot.legend(fontsize="small", markerscale=1.5, frameon=False, loc="best")
    figure.savefig(path, dpi=120)
