"""The sizes of the report generator, and how it is asked for a text."""

from dataclasses import dataclass

from mstar.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class HistGenConfig:
    """Sizes; the defaults are those that mSTAR trains HistGen with."""

    d_vf: int = 2048
    """Length that patch features are first brought to."""
    width: int = 512
    """Length of every token behind that."""
    ff: int = 512
    """Width of the feed-forward blocks."""
    heads: int = 8
    """Heads of every attention."""
    decoder_layers: int = 3
    """Layers of the decoder."""
    region_tokens: int = 96
    """Tokens of a region: its patches, in their order, and one of the region itself."""
    memory_slots: int = 2048
    """Slots of the memory that patches and words share."""
    memory_top: int = 512
    """Slots that a query reads: those it is most similar to, in each head."""
    prototypes: int = 512
    """Patches, evenly spaced over the bag, that query the memory; all where there are fewer."""
    feature_dropout: float = 0.5
    """Dropout of the mapped features."""
    dropout: float = 0.1
    """Dropout everywhere else."""
    paper_region_token: bool = False
    """As the authors' code: the region's token is put last in its region, but the first patch is
    read and written in its place (method reference, section 9.1, 8)."""
    checkpoint_rows: int = 8192
    """Patches whose inner results are kept for the gradient at a time; bags with more are computed
    twice in parts. Bounds the memory of long bags; changes no number but by rounding."""

    def __post_init__(self) -> None:
        """Refuses sizes that cannot be built."""
        for name in ("d_vf", "width", "ff", "heads", "decoder_layers", "memory_slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"histgen, {name} {getattr(self, name)}: expected 1 or more")
        if self.width % self.heads or self.width % 2:
            raise ConfigError(
                f"histgen, width {self.width}: expected an even multiple of heads {self.heads}"
            )
        if self.region_tokens < 2 or self.prototypes < 1 or self.checkpoint_rows < 1:
            raise ConfigError(
                "histgen: expected region_tokens of 2 or more (a patch and the region's own), "
                "prototypes and checkpoint_rows of 1 or more, got "
                f"{self.region_tokens}, {self.prototypes} and {self.checkpoint_rows}"
            )
        if not 1 <= self.memory_top <= self.memory_slots:
            raise ConfigError(
                f"histgen, memory_top {self.memory_top}: expected 1 to memory_slots, "
                f"{self.memory_slots}"
            )
        for name in ("feature_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"histgen, {name} {getattr(self, name)}: expected 0 to below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingConfig:
    """How a text is searched for."""

    beam: int = 3
    """Texts that are followed at once; 1 is greedy."""
    max_new_tokens: int = 100
    """Longest text in tokens; one that has no end by then is cut, and counted."""
    block_ngrams: int = 3
    """No run of so many tokens comes twice in a text; 0 allows it."""
    length_power: float = 0.0
    """Texts compete by log-probability / length**power: 0, as the paper, prefers short ones."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if self.beam < 1 or self.max_new_tokens < 1:
            raise ConfigError(
                f"decoding: expected beam and max_new_tokens of 1 or more, got {self.beam} and "
                f"{self.max_new_tokens}"
            )
        if self.block_ngrams == 1 or self.block_ngrams < 0:
            raise ConfigError(
                f"decoding, block_ngrams {self.block_ngrams}: expected 0 (allowed) or 2 and more"
            )
