"""A few short trials of any head, to see that everything runs. Its numbers mean nothing."""

from mstar.downstream.spaces import LogUniform, Space

SPACE = Space(
    search={"lr": LogUniform(1e-4, 1e-3), "weight_decay": LogUniform(1e-6, 1e-3)},
    samples=4,
    population=4,
    epochs=(2, 5),
    keep=2,
)
