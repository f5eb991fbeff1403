"""SNN, genes alone: step size, decay and dropout; widths stay the published ones."""

from mstar.downstream.spaces import Choice, LogUniform, Space, Uniform

SPACE = Space(
    heads=("snn",),
    search={
        "lr": LogUniform(2e-5, 2e-3),
        "weight_decay": LogUniform(1e-6, 1e-2),
        "optimizer": Choice(("adam", "adamw")),
        "head_options.dropout": Uniform(0.0, 0.5),
    },
    sampler="tpe",
    samples=32,
    population=8,
    epochs=(10, 30),
    keep=3,
)
