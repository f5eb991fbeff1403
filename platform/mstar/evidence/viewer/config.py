"""What a caller can set for `mstar view`."""

from dataclasses import dataclass

from mstar.embed.config import MissingMpp
from mstar.errors import ConfigError

MAX_DOWNSAMPLE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewConfig:
    """Look at a slide and its patch scores in a browser. Not for decisions about a patient."""

    slide: str = ""
    """The slide's file; default: the one that the first --scores names."""
    scores: tuple[str, ...] = ()
    """scores.parquet files of `mstar heatmap`, all of this slide."""
    export: str = ""
    """Write a folder that opens without a server, in place of serving; local or s3://."""
    port: int = 0
    """Of the server, on 127.0.0.1 alone; 0: a free one."""
    features: str = ""
    """Feature store of the slide: what sentences are looked up with; without --scores, also where
    the patches are."""
    slide_id: str = ""
    """The slide's id in the feature store; default: the one in the scores, else the file's name."""
    stage1: str = ""
    """Folder that `mstar stage1 --out` wrote: its space of texts, for sentences."""
    stage2: str = ""
    """Folder that `mstar stage2 --out` wrote; empty: the aggregator's patch tokens."""
    reports: str = ""
    """Reports (reports.csv of a cohort) whose sentences are shown beside a patch they are near."""
    max_sentences: int = 2000
    """Sentences to choose from, at most; of more, a draw that is the same every time."""
    export_downsample: int = 1
    """Finest level of an exported folder: 1 = all pixels, 4 = a quarter of each side, …"""
    quality: int = 85
    """Of the JPEG tiles, 1 to 100."""
    threads: int = 4
    """Tiles made at once."""
    slide_mpp: float | None = None
    """Microns per pixel at level 0 of a slide that does not state it."""
    missing_mpp: MissingMpp = "skip"
    """A slide without mpp: error = refuse, skip = no scale bar, from-objective = 10 /
    magnification."""
    device: str = "cpu"
    """cpu or cuda, for sentences."""
    dry_run: bool = False
    """Say what would be served or written, then stop."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant before a file is read."""
        if not self.slide and not self.scores:
            raise ConfigError("mstar view: expected --slide, --scores, or both")
        if bool(self.stage1) != bool(self.reports):
            raise ConfigError("mstar view: --stage1 and --reports go together, got one of them")
        if self.reports and not self.features:
            raise ConfigError(
                "mstar view: sentences need --features, the store that stage 1 was run on"
            )
        down = self.export_downsample
        if down not in {1 << n for n in range(MAX_DOWNSAMPLE.bit_length())}:
            raise ConfigError(
                f"--export-downsample {down}: expected 1, 2, 4, … or {MAX_DOWNSAMPLE}"
            )
        for name, low, high in (("quality", 1, 100), ("threads", 1, 256), ("port", 0, 65535)):
            if not low <= (value := getattr(self, name)) <= high:
                raise ConfigError(f"--{name} {value}: expected {low} to {high}")
        if self.max_sentences < 1:
            raise ConfigError(f"--max-sentences {self.max_sentences}: expected at least 1")
