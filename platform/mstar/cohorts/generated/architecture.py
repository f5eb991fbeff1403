"""How the tissue of each cancer type is built: glands, nests, sheets, stroma and fat, in µm.

What a type decides is arrangement. The number and the size of the nuclei, and the mean optical
density of eosin, are made equal over the types where the tissue is laid out (`tissue.py`), so that
the mean colour of a slide says little about its type.
"""

from dataclasses import dataclass, fields

from mstar.cohorts.generated.config import CANCER_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One way to build tissue; every field is a number, so that two can be mixed."""

    spacing_um: float
    """Distance between neighbouring glands or nests."""
    radius_um: float
    """Mean radius of a gland, epithelium included."""
    elongation: float
    """Longest axis ratio of a gland; 1 for round ones."""
    wall_um: float
    """Thickness of the epithelium; at least the radius for solid nests."""
    septum_um: float
    """Stroma left between glands that touch."""
    wobble_um: float
    """How far outlines stray from an ellipse."""
    coverage: float
    """Share of the sites that hold a gland."""
    layering: float
    """0: nuclei anywhere in the epithelium; 1: in one row in its middle."""
    epithelium_density: float
    """Nuclei per area in the epithelium, relative."""
    stroma_density: float
    """Nuclei per area in the stroma, relative."""
    lumen_eosin: float
    """Eosin in the lumen, relative to stroma: 0 empty, 1 filled with keratin."""
    cytoplasm_eosin: float
    """Eosin of the epithelium's cytoplasm, relative to stroma."""
    membrane: float
    """How clearly cell borders show in the epithelium, 0-1."""
    fibre: float
    """How fibrous the stroma is, 0-1."""
    fat: float
    """Share of the tissue that is fat."""
    lymphocytes: float
    """Share of the stroma with lymphocytes."""


ARCHITECTURES: dict[str, Architecture] = {
    "BRCA": Architecture(  # small solid ducts in fibrous, fatty stroma
        spacing_um=72, radius_um=26, elongation=2.2, wall_um=22, septum_um=9, wobble_um=9,
        coverage=0.72, layering=0.0, epithelium_density=1.0, stroma_density=0.14, lumen_eosin=0.0,
        cytoplasm_eosin=0.85, membrane=0.1, fibre=1.0, fat=0.2, lymphocytes=0.1,
    ),
    "LUAD": Architecture(  # wide irregular acini, thin walls
        spacing_um=98, radius_um=52, elongation=1.8, wall_um=15, septum_um=10, wobble_um=20,
        coverage=0.9, layering=0.8, epithelium_density=1.0, stroma_density=0.15, lumen_eosin=0.0,
        cytoplasm_eosin=0.9, membrane=0.1, fibre=0.6, fat=0.0, lymphocytes=0.3,
    ),
    "KIRC": Architecture(  # small nests of clear cells, thin septa
        spacing_um=56, radius_um=40, elongation=1.3, wall_um=60, septum_um=3.5, wobble_um=7,
        coverage=1.0, layering=0.0, epithelium_density=0.7, stroma_density=0.5, lumen_eosin=0.0,
        cytoplasm_eosin=0.42, membrane=1.0, fibre=0.4, fat=0.0, lymphocytes=0.0,
    ),
    "COAD": Architecture(  # large tubes, thick layered epithelium, debris in the lumen
        spacing_um=132, radius_um=58, elongation=1.7, wall_um=24, septum_um=14, wobble_um=12,
        coverage=0.95, layering=0.6, epithelium_density=1.0, stroma_density=0.14, lumen_eosin=0.25,
        cytoplasm_eosin=0.9, membrane=0.1, fibre=0.8, fat=0.0, lymphocytes=0.25,
    ),
    "LGG": Architecture(  # no glands: nuclei in a fine mesh
        spacing_um=90, radius_um=10, elongation=1.0, wall_um=0.0, septum_um=4, wobble_um=4,
        coverage=0.35, layering=0.0, epithelium_density=0.5, stroma_density=0.5, lumen_eosin=0.0,
        cytoplasm_eosin=0.8, membrane=0.0, fibre=0.35, fat=0.0, lymphocytes=0.0,
    ),
    "HNSC": Architecture(  # large nests with keratin inside, inflamed stroma
        spacing_um=175, radius_um=84, elongation=1.9, wall_um=38, septum_um=22, wobble_um=26,
        coverage=0.95, layering=0.0, epithelium_density=1.0, stroma_density=0.12, lumen_eosin=1.7,
        cytoplasm_eosin=0.95, membrane=0.5, fibre=0.9, fat=0.0, lymphocytes=0.35,
    ),
    "SKCM": Architecture(  # sheets, hardly a septum
        spacing_um=210, radius_um=150, elongation=1.4, wall_um=400, septum_um=9, wobble_um=22,
        coverage=1.0, layering=0.0, epithelium_density=0.6, stroma_density=0.4, lumen_eosin=0.0,
        cytoplasm_eosin=0.8, membrane=0.2, fibre=0.6, fat=0.0, lymphocytes=0.1,
    ),
    "UCEC": Architecture(  # small glands back to back
        spacing_um=80, radius_um=46, elongation=1.6, wall_um=19, septum_um=5, wobble_um=8,
        coverage=1.0, layering=0.9, epithelium_density=1.0, stroma_density=0.2, lumen_eosin=0.0,
        cytoplasm_eosin=0.85, membrane=0.1, fibre=0.6, fat=0.0, lymphocytes=0.05,
    ),
}  # fmt: skip

assert set(ARCHITECTURES) == set(CANCER_TYPES), "every cancer type has an architecture"


def architecture_of(cancer_type: str, strength: float) -> Architecture:
    """A type's architecture; below strength 1 it is mixed with the mean over all types."""
    own, share = ARCHITECTURES[cancer_type], min(1.0, strength)
    mixed = {}
    for field in fields(Architecture):
        mean = sum(getattr(a, field.name) for a in ARCHITECTURES.values()) / len(ARCHITECTURES)
        mixed[field.name] = mean + share * (getattr(own, field.name) - mean)
    return Architecture(**mixed)
