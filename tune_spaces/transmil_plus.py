"""TransMIL+: smaller steps than TransMIL's, since its weights are trained already."""

from mstar.downstream.spaces import Choice, LogUniform, Space

SPACE = Space(
    heads=("transmil_plus",),
    search={
        "lr": LogUniform(5e-6, 5e-4),
        "weight_decay": LogUniform(1e-6, 1e-2),
        "optimizer": Choice(("adam", "adamw")),
        "class_weights": Choice(("none", "balanced")),
        "head_options.freeze": Choice((False, True)),
    },
    sampler="tpe",
    samples=32,
    population=8,
    epochs=(10, 30),
    keep=3,
)
