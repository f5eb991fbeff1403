"""Cox's linear model: the whole training part a step; what matters is the decay."""

from mstar.downstream.spaces import LogUniform, Space, Uniform

SPACE = Space(
    heads=("cox_linear",),
    search={
        "lr": LogUniform(1e-3, 1e-1),
        "weight_decay": LogUniform(1e-5, 1e-1),
        "head_options.dropout": Uniform(0.0, 0.5),
    },
    sampler="tpe",
    samples=32,
    population=8,
    epochs=(30, 100),  # one step an epoch
    keep=3,
)
