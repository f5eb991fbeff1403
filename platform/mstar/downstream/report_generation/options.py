"""What a caller can set of HistGen: `--option histgen.NAME=VALUE`. Defaults are the paper's."""

from dataclasses import dataclass, fields
from typing import Any

from mstar.downstream.config import TrialConfig
from mstar.errors import ConfigError
from mstar.models.histgen import DecodingConfig, HistGenConfig

METHOD = "histgen"
LEARNT = "learnt"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistGenOptions(HistGenConfig):
    """Training, vocabulary and search, beside the sizes, which are those of `HistGenConfig`.

    What is built is `model`: it knows what `sizes` says too.
    """

    epochs: int = 40
    """Passes over the training part."""
    lr: float = 1e-4
    """Learning rate at the start."""
    lr_factor: float = 0.8
    """The learning rate is multiplied by it after each epoch; 1 leaves it."""
    weight_decay: float = 5e-5
    """Weight decay, added to the gradient."""
    amsgrad: bool = True
    """Adam with the largest second moment so far."""
    clip: float = 0.1
    """No number of a gradient is larger than it; 0: as they are."""
    batch_slides: int = 1
    """Bags packed into one step."""
    max_patches: int = 0
    """Patches of a bag in training, drawn anew each epoch; 0 takes all."""
    precision: str = "float32"
    """float32, or bfloat16: autocast, weights stay float32."""
    select: str = "bleu_4"
    """What chooses the epoch on validation: bleu_4 of greedy texts, as the paper's; or loss."""
    patience: int = 0
    """Epochs without a better validation score before training ends; 0 never ends early."""
    max_tokens: int = 100
    """Tokens of a report that are trained on: the first ones of longer reports."""
    vocabulary: str = LEARNT
    """learnt: from the training split of each fold; or the folder or hub id of a BERT-like model,
    whose vocabulary is taken."""
    vocabulary_size: int = 4000
    """Tokens of a learnt vocabulary, at most."""
    lower_case: bool = True
    """A learnt vocabulary knows small letters alone."""
    reports: str = ""
    """Table of reports (case_id,text) in place of the cohort's reports.csv."""
    facts: str = ""
    """Folder of facts.csv and fact_phrases.csv; empty: the cohort's truth/, where there is one."""
    beam: int = 3
    """Texts that are followed at once; 1 is greedy."""
    max_new_tokens: int = 0
    """Longest generated text in tokens; 0: max_tokens."""
    block_ngrams: int = 3
    """No run of so many tokens comes twice in a text; 0 allows it."""
    length_power: float = 0.0
    """Texts compete by log-probability / length**power; 0, as the paper, prefers short ones."""
    samples: int = 60
    """Texts that the page shows beside their references."""
    sizes: str = "paper"
    """paper, or small: sizes for a few hundred generated cases on a CPU; a size that is set by
    itself has its own say."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant; sizes are checked as they are built."""
        choices = {"precision": PRECISIONS, "select": SELECTIONS, "sizes": tuple(SIZES)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"histgen, {name} {getattr(self, name)!r}: expected {' or '.join(allowed)}"
                )
        if not 0 < self.lr_factor <= 1 or self.clip < 0:
            raise ConfigError(
                f"histgen: expected lr_factor above 0, at most 1, and clip of 0 or more, got "
                f"{self.lr_factor} and {self.clip}"
            )
        if self.max_tokens < 2 or self.max_new_tokens < 0 or self.samples < 0:
            raise ConfigError(
                "histgen: expected max_tokens of 2 or more (a word and the end), max_new_tokens "
                f"and samples of 0 or more, got {self.max_tokens}, {self.max_new_tokens} and "
                f"{self.samples}"
            )
        _ = self.model, self.decoding, self.trial  # they refuse what is theirs

    @property
    def model(self) -> HistGenConfig:
        """Sizes of the model."""
        sizes = {}
        for field in fields(HistGenConfig):
            own, default = getattr(self, field.name), field.default
            sizes[field.name] = own if own != default else SIZES[self.sizes].get(field.name, own)
        return HistGenConfig(**sizes)

    @property
    def decoding(self) -> DecodingConfig:
        """Of the search."""
        return DecodingConfig(
            beam=self.beam,
            max_new_tokens=self.max_new_tokens or self.max_tokens,
            block_ngrams=self.block_ngrams,
            length_power=self.length_power,
        )

    @property
    def trial(self) -> TrialConfig:
        """As the one loop takes it."""
        return TrialConfig(
            head=METHOD,
            lr=self.lr,
            weight_decay=self.weight_decay,
            schedule="constant",  # `lr_factor` has its say beside it
            epochs=self.epochs,
            batch_bags=self.batch_slides,
            bucketed=self.batch_slides > 1,
            patience=self.patience,
            precision="bfloat16" if self.precision == "bfloat16" else "float32",
            max_patches=self.max_patches,
        )


SELECTIONS, PRECISIONS = ("bleu_4", "loss"), ("float32", "bfloat16")
SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "d_vf": 64,
        "width": 64,
        "ff": 128,
        "heads": 4,
        "decoder_layers": 2,
        "region_tokens": 24,
        "memory_slots": 64,
        "memory_top": 32,
        "prototypes": 16,
        "feature_dropout": 0.1,
    },
}
"""Sizes by name, as they differ from the paper's."""
