"""CLAM with a branch per class: as ABMIL, and how much its patch loss counts."""

from mstar.downstream.spaces import Choice, LogUniform, Space, Uniform

SPACE = Space(
    heads=("clam_mb",),
    search={
        "lr": LogUniform(2e-5, 2e-3),
        "weight_decay": LogUniform(1e-6, 1e-2),
        "optimizer": Choice(("adam", "adamw")),
        "class_weights": Choice(("none", "balanced")),
        "head_options.dropout": Uniform(0.0, 0.5),
        "head_options.instance_weight": Uniform(0.0, 1.0),
        "head_options.num_instances": Choice((4, 8, 16)),
    },
    sampler="tpe",
    samples=32,
    population=8,
    epochs=(10, 30),
    keep=3,
)
