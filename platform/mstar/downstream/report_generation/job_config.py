"""What a caller can set for writing reports with a trained model."""

from dataclasses import dataclass
from typing import Literal

from mstar.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportWriteConfig:
    """Write reports of slides with a trained model; nothing is scored."""

    model: str
    """Model file of a report_generation study, or the study's folder: its first model."""
    features: str
    """Feature stores of the encoder that the model was trained on: F1,F2."""
    out: str
    """Folder for reports.csv and one small file a case."""
    cases: str = ""
    """Table of cases (case_id, cancer_type, slides); empty: every slide is a case of its own."""
    beam: int = 0
    """Texts that are followed at once; 0: as the model was evaluated."""
    max_new_tokens: int = 0
    """Longest text in tokens; 0: as the model was evaluated."""
    cases_at_once: int = 256
    """Cases whose features are packed together; a run that is stopped loses at most so many."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    threads: int = 0
    """CPU threads; 0 leaves it to torch."""
    cache_dir: str | None = None
    """Local folder for packed features; shared memory, or the node's cache, when not given."""
    tracking: bool = True
    """Log to MLflow."""
    tracking_uri: str = ""
    """Of MLflow; empty: MLFLOW_TRACKING_URI, else <out>/mlflow.db."""
    dry_run: bool = False
    """Print what would be written, then stop."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant before a file is read."""
        for name, least in (("beam", 0), ("max_new_tokens", 0), ("cases_at_once", 1)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} {getattr(self, name)}: expected {least} or more")
