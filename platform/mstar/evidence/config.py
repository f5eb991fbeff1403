"""What a caller can set for `mstar heatmap`."""

from dataclasses import dataclass
from typing import Literal

from mstar.errors import ConfigError
from mstar.evidence.explain import Method
from mstar.evidence.overlay import OverlayKind
from mstar.predict.config import NewSlidesConfig
from mstar.slides.geojson import TileType

ALL_CLASSES = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapConfig(NewSlidesConfig):
    """Score a slide's patches by a study's models, or a text. Research software, for no patient."""

    out: str
    """Folder: one of each slide, failures.csv and heatmap.json; local or s3://."""
    model: str = ""
    """Folder of a finished study (R/task/encoder/head of a sweep), or one of its .safetensors."""
    text: str = ""
    """What to look for, in place of --model; needs --stage1 and --features."""
    slides: tuple[str, ...] = ()
    """Ids of slides in --features; or slide files, folders, globs and manifests, which with --model
    are embedded as its training slides where no store has them. Empty: all slides of --features."""
    features: tuple[str, ...] = ()
    """Feature stores made before, or a label and stores: mstar=F1,F2."""
    method: Method = "auto"
    """auto = what the head itself says of patches, see heatmaps.md; gradient = gradient × input;
    occlusion = what leaving patches out changes."""
    classes: tuple[str, ...] = ()
    """Classes (or groups of genes) that are drawn; empty = the predicted one, all = every one.
    scores.parquet and the GeoJSON have all of them."""
    unit: Literal["auto", "slide", "case"] = "auto"
    """What is one bag: as the task says, each slide alone, or the given slides of a case together.
    """
    passes: int = 256
    """Occlusion: bags that go through the head for each slide or case, at most."""
    object_type: TileType = "tile"
    """What QuPath makes of a patch: tile, or detection, which it can measure and classify."""
    origin: Literal["slide", "bounds"] = "slide"
    """Where the GeoJSON counts from: the slide's corner, or that of its scanned area, to which
    QuPath crops MRXS and some others."""
    overlay: Literal["colour", "values", "none"] = "colour"
    """The TIFF: percentiles as colours, the scores as numbers (float32), or none."""
    k: int = 8
    """Highest and lowest patches in patches.png; 0 for none."""
    slide_files: str = ""
    """Where the files of slides named by id are, for pictures: folder or manifest. Default: the
    slides.csv beside --cases."""
    cases: str = ""
    """Table of cases (C/cases.csv): whose the slides are, and their gene expression."""
    rna: str = ""
    """Gene expression of heads that read it: an expression store, or a folder of <case>.csv."""
    stage1: str = ""
    """--text: folder that `mstar stage1 --out` wrote. Zero-shot studies: where it lies now."""
    stage2: str = ""
    """--text: folder that `mstar stage2 --out` wrote; empty: the aggregator's tokens."""
    prompts: str = ""
    """Zero-shot studies: prompts in place of the study's own, a file or a folder of them."""
    minus: str = ""
    """--text: a text whose similarity is taken off: what the first says beyond this one."""
    window: int = 4096
    """--text: patches that the aggregator sees at once, for tokens."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the patch encoder runs, and stage 1 with --text; heads run on the CPU."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant before a file is read."""
        if bool(self.model) == bool(self.text.strip()):
            raise ConfigError("mstar heatmap: expected --model or --text, one of them.")
        if self.text and not (self.stage1 and self.features):
            raise ConfigError("mstar heatmap --text: expected --stage1 and --features too.")
        if not self.slides and not self.features:
            raise ConfigError("mstar heatmap: expected --slides, --features, or both.")
        for name, least in (("k", 0), ("passes", 2), ("window", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} {getattr(self, name)}: expected {least} or more")

    @property
    def overlay_kind(self) -> OverlayKind | None:
        """The TIFF that is written, if any."""
        return None if self.overlay == "none" else self.overlay
