"""What the ablation is asked to do; every setting is the same for all arms."""

from dataclasses import dataclass
from typing import Literal

from mstar.errors import ConfigError
from mstar.pretrain.ablate_arms import ARMS

FEWEST_CASES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class AblateConfig:
    """Compare stage 2 with its controls on generated cohorts, at equal steps."""

    out: str = "ablation"
    """Local folder for cohorts, encoders, results.csv, ablation.md and ablation.png."""
    seeds: tuple[int, ...] = (21, 22, 23, 24, 25)
    """Seeds of the cohorts; each is one independent repetition of everything."""
    arms: str = "abcdefgh"
    """Letters of the arms to run; e, the initial encoder, always runs."""
    cases: int = 1200
    """Cases of a cohort."""
    pretrained: float = 0.75
    """Share of the patients that stage 1 and stage 2 see; the others evaluate."""
    factor: Literal["pathway", "mutation"] = "pathway"
    """Planted molecular factor that the probes look for: activity above one half, or mutated."""
    num_cancer_types: int = 1
    """Cancer types of a cohort; with several, stage 1 spends its first steps on telling them."""
    slide_px: int = 512
    """Typical side of a generated slide at level 0, pixels; one slide a case."""
    patch_px: int = 64
    """Side of a patch at 0.5 microns per pixel; the encoder sees it resized to 64."""
    signal_strength: float = 1.0
    """How strongly the planted factors show (`mstar cohort generate`)."""
    noise: float = 0.5
    """Noise in slides, reports and gene expression (`mstar cohort generate`)."""
    signal_fraction: float = 1.0
    """Share of the tissue that carries the planted signal (`mstar cohort generate`)."""
    encoder_seed: int = 1000
    """Seed of the cohort that the initial encoder is trained on: patients of its own."""
    encoder_cases: int = 160
    """Cases of that cohort, of two cancer types."""
    encoder_steps: int = 300
    """Optimiser steps of the initial encoder's training on tissue and nuisance factors."""
    encoder_lr: float = 2e-3
    """Peak learning rate of that training."""
    least_initial_auc: float = 0.6
    """Least area under the curve of the initial encoder (linear probe, mean over seeds)."""
    most_initial_auc: float = 0.8
    """Largest one: there must be something left to be learnt."""
    stage1_epochs: int = 20
    """Passes of stage 1 over the pretraining cases."""
    stage1_batch_cases: int = 64
    """Cases contrasted with one another."""
    stage1_lr: float = 2e-3
    """Peak learning rate of stage 1."""
    stage1_scale: float = 4.0
    """Inverse temperature at the start of stage 1: all encoders start from nothing."""
    bag_patches: int = 32
    """Patches of a case's bag, and of a window of the teacher."""
    dim: int = 64
    """Length of a token of the aggregator, and so of a target."""
    stage2_steps: int = 200
    """Optimiser steps of stage 2, in every arm."""
    stage2_batch: int = 64
    """Patches of a step, a multiple of 16."""
    stage2_lr: float = 5e-4
    """Peak learning rate of the encoder in stage 2."""
    stage2_lr_projection: float = 3e-3
    """Peak learning rate of the projection."""
    stage2_precision: Literal["bf16", "fp32"] = "bf16"
    """Autocast of stage 2's forward pass; a CPU without bf16 instructions is faster with fp32."""
    balance: float = 0.6
    """λ of the stage-2 loss."""
    probe_patches: int = 4
    """Patches of a held-out case that the probes see, as of a small biopsy: with all of a slide's
    patches a mean hides how much a single one tells."""
    probe_draws: int = 5
    """Draws of these patches; the area under the curve is the mean over them."""
    folds: int = 5
    """Folds of the probes' cross-validation, over held-out cases alone."""
    workers: int = 0
    """Units of work (a teacher, an arm …) done at once, each on one core; 0: one a core."""
    keep: bool = False
    """Keep the slides, features and shards of every seed (about 1 GB each)."""
    dry_run: bool = False
    """Say what would be done, then stop."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        unknown = set(self.arms) - set(ARMS)
        if unknown:
            raise ConfigError(f"--arms {self.arms}: expected letters of {''.join(ARMS)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"--seeds {self.seeds}: expected different numbers, one or more")
        if self.encoder_seed in self.seeds:
            raise ConfigError(
                f"--encoder-seed {self.encoder_seed}: expected one that is no cohort's, since the "
                "initial encoder is to be trained on other patients"
            )
        if not 0 < self.pretrained < 1:
            raise ConfigError(f"--pretrained {self.pretrained}: expected more than 0, less than 1")
        if self.cases < FEWEST_CASES:
            raise ConfigError(f"--cases {self.cases}: expected at least {FEWEST_CASES}")

    @property
    def chosen(self) -> str:
        """The arms that run, in the order of the table, the initial encoder among them."""
        return "".join(letter for letter in ARMS if letter in self.arms or letter == "e")
