"""How the jobs are to be run, as far as it decides what they take; the recipes' own defaults."""

from dataclasses import dataclass

from mstar.planning.strict import check_range


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """Settings of the jobs; defaults are those of the recipes for the paper's sizes."""

    feature_dim: int = 1024
    """Numbers of a feature, stored as float16."""
    target_dim: int = 512
    """Numbers of a target, stored as float16."""
    row_bytes: int = 25_000
    """Bytes of a row of the patch shards: image, target and names."""
    shard_mb: int = 512
    """Size of a shard at most, in MB."""
    shard_memory_mb: int = 8_192
    """Memory for rows of a worker that writes shards, in MB; more means fewer requests."""
    encoder_parameters: int = 303_350_784
    """Parameters of the patch encoder, whose gradients are sent in every step of stage 2."""
    stage1_parameters: int = 111_723_241
    """Trained parameters of stage 1."""
    stage1_epochs: int = 50
    """Passes of stage 1 over the cases."""
    stage1_batch_cases: int = 128
    """Cases of a step of stage 1."""
    stage2_epochs: int = 1
    """Passes of stage 2 over the patches."""
    stage2_batch_patches: int = 1024
    """Patches of a step of stage 2, over all workers."""
    checkpoint_every_steps: int = 1000
    """Steps of stage 2 between checkpoints."""
    sweep_tasks: int = 97
    """Tasks of a sweep."""
    sweep_cases: int = 570
    """Cases that a fit of a task is trained on, on average: the mean of the training parts that the
    task list states."""
    sweep_encoders: int = 1
    """Encoders whose features a sweep compares."""
    sweep_heads: int = 1
    """Heads that a sweep compares."""
    sweep_trials: int = 32
    """Configurations of a study (`--space tune`: 32, `paper`: 1)."""
    sweep_folds: int = 5
    """Folds times seeds of a trial."""
    sweep_epochs: int = 17
    """Epochs of a fit, on average: `tune` gives all 10 and the best third 30 more, so 10 + 30 / 3
    less what has ended; `paper` 30."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be."""
        check_range(self, 1, *self.__dataclass_fields__)
