"""The table of heads: one row each, and building one from its name and options."""

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from torch import nn

from mstar.errors import ConfigError
from mstar.models.heads.abmil import AbmilConfig, build_abmil, build_abmil_gated
from mstar.models.heads.clam import ClamConfig, build_clam_mb, build_clam_sb
from mstar.models.heads.cmta import Cmta, CmtaConfig
from mstar.models.heads.contract import CLASSIFICATION, SURVIVAL, GeneLayout, HeadSpec
from mstar.models.heads.cox_linear import CoxLinear, CoxLinearConfig
from mstar.models.heads.dsmil import Dsmil, DsmilConfig
from mstar.models.heads.knn import KNearestNeighbours, KnnConfig
from mstar.models.heads.linear import LinearConfig, LinearProbe
from mstar.models.heads.mcat import Mcat, McatConfig
from mstar.models.heads.motcat import Motcat, MotcatConfig
from mstar.models.heads.porpoise import Porpoise, PorpoiseConfig
from mstar.models.heads.prototype import PrototypeConfig, Prototypes
from mstar.models.heads.snn import Snn, SnnConfig
from mstar.models.heads.transmil import TransMil, TransMilConfig
from mstar.models.heads.transmil_plus import TransMilPlus, TransMilPlusConfig

_CLASSES_ONLY = (CLASSIFICATION,)
_SURVIVAL_ONLY = (SURVIVAL,)

_ROWS = (
    HeadSpec(name="linear", config=LinearConfig, build=LinearProbe, attention=False),
    HeadSpec(
        name="knn",
        config=KnnConfig,
        build=KNearestNeighbours,
        attention=False,
        trained=False,
        kinds=_CLASSES_ONLY,
    ),
    HeadSpec(
        name="prototype",
        config=PrototypeConfig,
        build=Prototypes,
        attention=False,
        trained=False,
        kinds=_CLASSES_ONLY,
    ),
    HeadSpec(name="abmil", config=AbmilConfig, build=build_abmil, attention=True),
    HeadSpec(name="abmil_gated", config=AbmilConfig, build=build_abmil_gated, attention=True),
    HeadSpec(name="clam_sb", config=ClamConfig, build=build_clam_sb, attention=True),
    HeadSpec(name="clam_mb", config=ClamConfig, build=build_clam_mb, attention=True),
    HeadSpec(name="dsmil", config=DsmilConfig, build=Dsmil, attention=True),
    HeadSpec(name="transmil", config=TransMilConfig, build=TransMil, attention=False),
    HeadSpec(name="transmil_plus", config=TransMilPlusConfig, build=TransMilPlus, attention=False),
    HeadSpec(
        name="cox_linear",
        config=CoxLinearConfig,
        build=CoxLinear,
        attention=False,
        kinds=_SURVIVAL_ONLY,
    ),
    HeadSpec(
        name="snn",
        config=SnnConfig,
        build=Snn,
        attention=False,
        kinds=_SURVIVAL_ONLY,
        genes="all",
    ),
    HeadSpec(
        name="mcat",
        config=McatConfig,
        build=Mcat,
        attention=True,
        kinds=_SURVIVAL_ONLY,
        genes="groups",
    ),
    HeadSpec(
        name="porpoise",
        config=PorpoiseConfig,
        build=Porpoise,
        attention=True,
        kinds=_SURVIVAL_ONLY,
        genes="all",
    ),
    HeadSpec(
        name="motcat",
        config=MotcatConfig,
        build=Motcat,
        attention=True,
        kinds=_SURVIVAL_ONLY,
        genes="groups",
    ),
    HeadSpec(
        name="cmta",
        config=CmtaConfig,
        build=Cmta,
        attention=False,
        kinds=_SURVIVAL_ONLY,
        genes="groups",
    ),
)
HEADS: dict[str, HeadSpec] = {row.name: row for row in _ROWS}
FUSION_HEADS = ("mcat", "porpoise", "motcat", "cmta")
"""Heads that join a slide with its genes; `abmil` and `snn` are their arms."""


def head_spec(name: str) -> HeadSpec:
    """The row of a head.

    Raises:
        ConfigError: there is no such head.
    """
    if name not in HEADS:
        near = get_close_matches(name, HEADS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"head {name!r}: expected one of {', '.join(HEADS)}.{meant}")
    return HEADS[name]


def head_config(name: str, options: Mapping[str, Any]) -> Any:
    """A head's options as its dataclass, defaults for what is not named.

    Raises:
        ConfigError: an option that the head does not have, or a value that it cannot have.
    """
    kind, chosen = head_spec(name).config, dict(options)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)  # a Literal's arguments are the values it allows
    for option, value in options.items():
        if option not in defaults:
            raise ConfigError(
                f"head {name}: no option {option!r}; it has {', '.join(defaults) or 'none'}."
            )
        expected, allowed = type(defaults[option]), get_args(hints[option])
        if expected is float and type(value) is int:
            chosen[option] = float(value)
        elif not (value in allowed if allowed else type(value) is expected):
            wanted = ", ".join(allowed) if allowed else expected.__name__
            raise ConfigError(f"head {name}, option {option}: expected {wanted}, got {value!r}")
    return kind(**chosen)


def build_head(
    name: str,
    options: Mapping[str, Any],
    *,
    input_dim: int,
    num_outputs: int,
    genes: GeneLayout | None = None,
) -> nn.Module:
    """A head from its name, its options, the length of the features and its number of outputs.

    Args:
        name: in HEADS.
        options: those that differ from its defaults.
        input_dim: length of a feature vector.
        num_outputs: of its logits.
        genes: what heads that read gene expression are built for; others leave it aside.

    Raises:
        ConfigError: no such head or option, or it reads genes and there are none.
    """
    spec = head_spec(name)
    config = head_config(name, options)
    if not spec.genes:
        return spec.build(config, input_dim, num_outputs)
    if genes is None:
        raise ConfigError(
            f"head {name}: it reads gene expression, and this task has none. Use it on tasks of "
            "kind fusion_survival, with --cohort or --genes."
        )
    return spec.build(config, input_dim, num_outputs, genes)
