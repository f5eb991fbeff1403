"""Linear probe on the mean: large steps, since it is convex; many bags a step."""

from mstar.downstream.spaces import Choice, LogUniform, Space, Uniform

SPACE = Space(
    heads=("linear",),
    search={
        "lr": LogUniform(1e-4, 1e-1),
        "weight_decay": LogUniform(1e-6, 1e-1),
        "batch_bags": Choice((1, 8, 32)),
        "class_weights": Choice(("none", "balanced")),
        "head_options.dropout": Uniform(0.0, 0.5),
    },
    sampler="tpe",
    samples=32,
    population=8,
    epochs=(10, 30),
    keep=3,
)
