"""k nearest neighbours: how many, and how fast their say falls with distance."""

from mstar.downstream.spaces import Choice, LogUniform, Space

SPACE = Space(
    heads=("knn",),
    search={
        "head_options.neighbours": Choice((1, 3, 5, 10, 20, 50)),
        "head_options.temperature": LogUniform(0.01, 1.0),
    },
    sampler="tpe",
    samples=32,
    population=8,
    epochs=(10, 30),
    keep=3,
)
