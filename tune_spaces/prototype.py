"""Class prototypes: the temperature alone, which moves probabilities but no ranks of two."""

from mstar.downstream.spaces import LogUniform, Space

SPACE = Space(
    heads=("prototype",),
    search={
        "head_options.temperature": LogUniform(0.01, 1.0),
    },
    sampler="tpe",
    samples=32,
    population=8,
    epochs=(10, 30),
    keep=3,
)
