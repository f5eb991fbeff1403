"""MOTCat: step size, decay, dropout, and the two weights of its transport."""

from mstar.downstream.spaces import Choice, LogUniform, Space, Uniform

SPACE = Space(
    heads=("motcat",),
    search={
        "lr": LogUniform(2e-5, 2e-3),
        "weight_decay": LogUniform(1e-6, 1e-2),
        "optimizer": Choice(("adam", "adamw")),
        "head_options.dropout": Uniform(0.0, 0.5),
        "head_options.reg": LogUniform(0.05, 0.5),
        "head_options.tau": LogUniform(0.1, 1.0),
    },
    sampler="tpe",
    samples=32,
    population=8,
    epochs=(10, 30),
    keep=3,
)
