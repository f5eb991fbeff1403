"""Principal components of vectors, and their picture."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from matplotlib.figure import Figure

SHOWN_TYPES = 12
_OTHERS = "#bbbbbb"
_COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377"),
    *("#222255", "#994f00", "#117733", "#882255", "#44aa99", "#ddaa33"),
)


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


def draw(
    path: Path,
    coordinates: Float32[np.ndarray, "sample axis"],
    shares: Sequence[float],
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
    plot.set_xlabel(f"first component ({shares[0]:.0%} of the variance)")
    if len(shares) > 1:
        plot.set_ylabel(f"second component ({shares[1]:.0%})")
    plot.set_title(title)
    plot.legend(fontsize="small", markerscale=1.5, frameon=False, loc="best")
    figure.savefig(path, dpi=120)
