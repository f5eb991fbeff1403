"""The arms of the ablation, as a table, and what sets each apart from the method itself.

All arms start from one encoder and train on the same patches in the same order, as many steps, at
the same rates. What differs is where the targets come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mstar.data.cases import Case
from mstar.models.aggregator import Aggregator, AggregatorConfig
from mstar.models.stage1_files import save_aggregator
from mstar.training.seeds import reseed, seed_of

METHOD, INITIAL = "a", "e"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm.

    what: for the table.
    teacher: letter of the arm whose aggregator makes the targets; empty where none is needed.
    modalities: of its stage 1, empty where it has none.
    trained: whether stage 2 runs at all.
    loss_a: whether the student imitates the targets.
    """

    what: str
    teacher: str = ""
    modalities: str = ""
    shuffled_pairing: bool = False
    shuffled_targets: bool = False
    trained: bool = True
    loss_a: bool = True


ARMS = {
    "a": Arm(what="the method", teacher="a", modalities="wsi,text,gene"),
    "b": Arm(
        what="stage 1 with the reports and RNA of other patients of the same cancer type",
        teacher="b",
        modalities="wsi,text,gene",
        shuffled_pairing=True,
    ),
    "c": Arm(what="an untrained aggregator", teacher="c"),
    "d": Arm(what="loss B only", teacher="a", loss_a=False),
    "e": Arm(what="the initial encoder", trained=False),
    "f": Arm(what="targets shuffled over all patches", teacher="a", shuffled_targets=True),
    "g": Arm(what="stage 1 on slides and reports", teacher="g", modalities="wsi,text"),
    "h": Arm(what="stage 1 on slides and RNA", teacher="h", modalities="wsi,gene"),
}
MUST_BEAT = ("b", "c", "e")


def teachers_of(letters: str) -> str:
    """The arms whose aggregators are needed, each once."""
    return "".join(dict.fromkeys(ARMS[letter].teacher for letter in letters))


def shuffled_pairing(cases: Sequence[Case], *, seed: int) -> list[Case]:
    """The cases with the report and RNA of another patient of their cancer type.

    A donor gives both, or whichever it has: report and RNA still belong together, only the slides
    are another patient's. Nobody keeps their own, unless alone in a type.
    """
    result = list(cases)
    for cancer_type in sorted({case.cancer_type for case in cases}):
        places = [n for n, case in enumerate(cases) if case.cancer_type == cancer_type]
        order = np.random.default_rng(seed_of("pairing", seed, cancer_type)).permutation(places)
        for place, donor in zip(order, np.roll(order, 1), strict=True):
            given = cases[donor]
            result[place] = replace(cases[place], report=given.report, rna=given.rna)
    return result


def save_untrained(
    out: str, config: AggregatorConfig, *, seed: int, bag_patches: int, features: str, splits: str
) -> None:
    """Write the aggregator as stage 1 draws it at step 0, with what `mstar targets` asks of it.

    features, splits: fingerprint of the store and digest of the registry.
    """
    reseed("aggregator", seed)
    provenance = {
        "config": {"bag_patches": bag_patches},
        "inputs": {"features": features, "splits": splits},
        "step": 0,
    }
    save_aggregator(out, Aggregator(config), provenance=provenance)
