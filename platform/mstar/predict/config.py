"""What a caller can set for `mstar predict`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from mstar.data.rna.case_files import Scale
from mstar.embed.config import MissingMpp, RunConfig
from mstar.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSlidesConfig:
    """How slides that a model has not seen are made ready for it."""

    encoder: str | None = None
    """The patch encoder's name here; default: the recorded one. For encoders of your own
    (module:function), which are recorded by their short name."""
    weights: str | None = None
    """Weights of the patch encoder; default: the encoder's own. Their hash must be the model's."""
    gene_scale: Scale = "log"
    """Of the values in <case>.csv files: log = as they are, linear = log(1 + value) is taken."""
    where: Literal["auto", "here", "ray"] = "auto"
    """Who embeds: this process, or Ray; auto: Ray for more than 8 slides."""
    slide_mpp: float | None = None
    """Microns per pixel at level 0 of slides that do not state it."""
    missing_mpp: MissingMpp = "error"
    """A slide without mpp: error = it fails, skip = it is left out, from-objective = 10 /
    magnification."""
    batch_size: int = 0
    """Patches per encoder batch; 0 = 256 on a GPU, 32 on a CPU."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictConfig(NewSlidesConfig):
    """Apply a finished study to new slides. Research software, not for decisions on a patient."""

    model: str
    """Folder of a finished study (R/task/encoder/head of a sweep), or one of its .safetensors:
    heads, fusion, few-shot, zero-shot, report generation."""
    out: str
    """Folder for predictions.csv, predictions.parquet, predict.json and features/; local or s3."""
    slides: str | None = None
    """Slides: a file, folder, glob, s3:// prefix, or manifest .csv/.parquet (path, slide_id?, mpp?,
    case_id?). They are tiled and embedded as those that the model was trained on."""
    features: tuple[str, ...] = ()
    """Feature stores made before, in place of --slides: all of their slides, or with --slides a
    manifest, those that it names."""
    cases: str = ""
    """Table of cases (case_id, slides, rna; as of a cohort): whose slides these are. Slides that
    it does not name are left out."""
    rna: str = ""
    """Gene expression of the new cases, for fusion: an expression store, or a folder of <case>.csv
    files with Gene,Value. A case without any has no prediction."""
    prompts: str = ""
    """Prompts of zero-shot in place of the study's: a file, also of other classes, or a folder."""
    stage1: str = ""
    """Where the folder of stage 1 is now, of zero-shot and few_prototype; default: as recorded."""
    stage2: str = ""
    """Likewise the folder of stage 2."""
    unit: Literal["auto", "slide", "case"] = "auto"
    """What a row is: as the task says, each slide alone, or all slides of a manifest's case_id."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the patch encoder runs, and a model that writes reports; all others run on the CPU."""
    threads: int = 1
    """CPU threads of the models; with 1, as in a sweep, scores are the sweep's to the bit."""

    def __post_init__(self) -> None:
        """Refuse a call without slides, or without a thread."""
        if self.slides is None and not self.features:
            raise ConfigError("mstar predict: expected --slides, --features, or both")
        if self.threads < 1:
            raise ConfigError(f"--threads {self.threads}: expected 1 or more")
