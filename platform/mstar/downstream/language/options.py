"""Options of the methods of vision–language families: `--option METHOD.FIELD=VALUE`."""

from dataclasses import dataclass

from mstar.errors import ConfigError

CLIP_SCALE = 1 / 0.07  # 14.29: what cosines are multiplied with to make probabilities
SPACES = ("auto", "projection", "tokens")
POOLS = ("mean", "vote")


@dataclass(frozen=True, slots=True, kw_only=True)
class MiZeroOptions:
    """Patches against text (MI-Zero): a slide's score is that of its best patches."""

    top: int = 50
    """Patches that count. 50 was fixed before any result was seen, and is never chosen by one."""
    tops: str = "1,5,10,50,100"
    """Other numbers of patches, which are reported beside it."""
    pool: str = "mean"
    """mean of the best patches' cosines, as the authors' code; vote: their majority, as the article
    words it."""
    scale: float = CLIP_SCALE
    """Factor of the scores before the softmax; it changes no ranking within a slide."""
    space: str = "auto"
    """Where patches meet text: projection (of stage 2), tokens (of the stage-1 aggregator, which
    the projection imitates); auto: the projection where --stage2 is given."""
    window: int = 4096
    """Patches that the aggregator sees at once, for tokens."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if self.top not in self.all_tops or min(self.all_tops) < 1:
            raise ConfigError(
                f"mi_zero.tops {self.tops}: expected numbers from 1, mi_zero.top {self.top} among "
                "them"
            )
        _one_of("mi_zero.pool", self.pool, POOLS)
        _one_of("mi_zero.space", self.space, SPACES)
        _positive("mi_zero.scale", self.scale)
        _positive("mi_zero.window", self.window)

    @property
    def all_tops(self) -> tuple[int, ...]:
        """`tops` as numbers, each once, rising."""
        try:
            return tuple(sorted({int(word) for word in self.tops.split(",") if word.strip()}))
        except ValueError as error:
            raise ConfigError(f"mi_zero.tops {self.tops}: expected numbers like 1,5,50") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTextOptions:
    """The slide vector of the stage-1 aggregator against text."""

    scale: float = CLIP_SCALE
    """Factor of the scores before the softmax."""
    window: int = 4096
    """Patches of a case that the aggregator sees: as in stage 1, drawn by the case's id."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        _positive("slide_text.scale", self.scale)
        _positive("slide_text.window", self.window)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRnaOptions:
    """The slide vector of the stage-1 aggregator against the gene encoder's."""

    window: int = 4096
    """Patches of a case that the aggregator sees."""
    batch: int = 8
    """RNA rows that the gene encoder sees at once: they take much memory."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        _positive("slide_rna.window", self.window)
        _positive("slide_rna.batch", self.batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotOptions:
    """Learning from k slides a class, drawn anew many times."""

    ks: str = "1,2,4,8,16,32,64"
    """Slides a class; those above the smallest class of the training part are left out."""
    k: int = 0
    """The k of the study's row; 0: the largest. It is stated, never chosen by results."""
    repeats: int = 20
    """Draws of the k slides; the same for every method and encoder."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        _positive("few-shot repeats", self.repeats)
        if self.k < 0 or not self.all_ks or self.all_ks[0] < 1:
            raise ConfigError(f"few-shot ks {self.ks}, k {self.k}: expected numbers from 1")
        if self.k and self.k not in self.all_ks:
            raise ConfigError(f"few-shot k {self.k}: expected one of ks {self.ks}")

    @property
    def all_ks(self) -> tuple[int, ...]:
        """`ks` as numbers, each once, rising."""
        try:
            return tuple(sorted({int(word) for word in self.ks.split(",") if word.strip()}))
        except ValueError as error:
            raise ConfigError(f"few-shot ks {self.ks}: expected numbers like 1,2,4") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class FewPrototypeOptions(FewShotOptions):
    """The paper's prototypes: the patches most like a class's text make the class."""

    patches: int = 100
    """Patches of a class's slides, those most like its text, that make the prototype."""
    top: int = 50
    """Patches of a slide that count, as in mi_zero."""
    scale: float = CLIP_SCALE
    """Factor of the scores before the softmax."""
    space: str = "auto"
    """As in mi_zero."""
    window: int = 4096
    """Patches that the aggregator sees at once, for tokens."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        FewShotOptions.__post_init__(self)
        _one_of("few_prototype.space", self.space, SPACES)
        for name in ("patches", "top", "scale", "window"):
            _positive(f"few_prototype.{name}", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class FewLinearOptions(FewShotOptions):
    """Logistic regression of mean features."""

    l2: float = 1.0
    """Weight of half the squared weights, against the sum of the slides' losses."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        FewShotOptions.__post_init__(self)
        _positive("few_linear.l2", self.l2)


@dataclass(frozen=True, slots=True, kw_only=True)
class FewAbmilOptions(FewShotOptions):
    """ABMIL from a few slides."""

    epochs: int = 30
    """Passes over the slides; the last one counts, as nothing is left to choose by."""
    lr: float = 2e-4
    """Learning rate at the start."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        FewShotOptions.__post_init__(self)
        _positive("few_abmil.epochs", self.epochs)
        _positive("few_abmil.lr", self.lr)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} {value!r}: expected {' or '.join(allowed)}")


def _positive(name: str, value: int | float) -> None:
    if not value > 0:
        raise ConfigError(f"{name} {value}: expected more than 0")
