"""What a caller can set for `mstar encode`."""

from dataclasses import dataclass
from typing import Any, Literal

from mstar.errors import ConfigError
from mstar.training.exit_codes import check_max_failures

MODALITIES = ("wsi", "text", "gene")
FORMATS = ("parquet", "h5ad", "trident", "patho-bench")
_SETTINGS = {"wsi": ("long_bags", "window", "scale", "seed"), "text": (), "gene": ()}
"""Modality → the settings that decide its vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """One vector for every slide, case, report or row of RNA, by the encoders of stage 1."""

    aggregator: str
    """Folder that `mstar stage1 --out` wrote, or the weights of an aggregator alone."""
    out: str
    """Folder for the vectors; local or s3://."""
    features: str = ""
    """Feature store of the slides, of the encoder that stage 1 was run on."""
    cohort: str = ""
    """Cohort folder: which slides a case has, its report and RNA, its cancer type."""
    level: Literal["slide", "case"] = "slide"
    """What a vector is of: a slide, or a case with all its slides (needs --cohort)."""
    modalities: str = "wsi"
    """Some of wsi, text, gene, separated by commas; text and gene are of cases (need --cohort)."""
    long_bags: Literal["windows", "subset"] = "windows"
    """More patches than the aggregator was trained on at once: windows = all of them, dealt out
    into windows whose vectors are averaged; subset = the draw that stage 1 validates with."""
    window: int | None = None
    """Patches that the aggregator sees at once; default: as many as in stage 1."""
    scale: Literal["unit", "raw"] = "unit"
    """unit = length 1, as stage 1 compares vectors; raw = as the aggregator gives them (wsi)."""
    seed: int = 0
    """Of windows and draws."""
    formats: str = "parquet,h5ad"
    """Some of parquet, h5ad (AnnData), trident, patho-bench, separated by commas."""
    picture: bool = True
    """Draw the first two principal components, coloured by cancer type."""
    umap: Literal["auto", "on", "off"] = "auto"
    """Draw a UMAP as well; auto: where umap-learn is installed (the extra `pictures`)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the encoders run."""
    max_failures: str = "0"
    """Samples that may fail before the exit code says so: a count (5) or a share (1%)."""
    retry_failed: bool = False
    """Try again samples that failed in an earlier run."""
    tracking: bool = True
    """Log to MLflow (MLFLOW_TRACKING_URI, else a file in --out)."""
    dry_run: bool = False
    """Print what would be encoded, then stop."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant before a file is read."""
        check_max_failures(self.max_failures)
        for name, known in (("modalities", MODALITIES), ("formats", FORMATS)):
            chosen = _words(getattr(self, name))
            if not chosen or set(chosen) - set(known) or len(set(chosen)) < len(chosen):
                raise ConfigError(
                    f"--{name} {getattr(self, name)!r}: expected some of {', '.join(known)}, "
                    "separated by commas"
                )
        if self.window is not None and self.window < 1:
            raise ConfigError(f"--window {self.window}: expected at least 1 patch")
        if "wsi" in self.chosen and not self.features:
            raise ConfigError("--features: expected the feature store of the slides, got none.")
        if not self.cohort and (self.level == "case" or set(self.chosen) & {"text", "gene"}):
            raise ConfigError(
                "--cohort: expected the cohort folder, which says what a case has, got none."
            )
        if self.umap == "on" and not self.picture:
            raise ConfigError("--umap on: expected a picture to draw it in, got --no-picture.")
        if self.scale == "raw" and self.chosen != ("wsi",):
            raise ConfigError("--scale raw: reports and RNA come in unit length. Use unit.")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The modalities."""
        return _words(self.modalities)

    @property
    def chosen_formats(self) -> tuple[str, ...]:
        """The formats."""
        return _words(self.formats)

    def settings_of(self, modality: str) -> dict[str, Any]:
        """The settings that decide the vectors of a modality."""
        return {name: getattr(self, name) for name in _SETTINGS[modality]}


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
