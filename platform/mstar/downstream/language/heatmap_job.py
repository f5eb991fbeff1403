"""`mstar heatmap`: which patches of some slides are like a text; PNG, and GeoJSON for QuPath."""

from dataclasses import dataclass

import numpy as np

from mstar.downstream.language.encoders import PatchSide, TextSide
from mstar.downstream.language.heatmap import write_heatmap
from mstar.downstream.tasks_job import parse_features
from mstar.errors import ConfigError, FeatureError
from mstar.features.store import FeatureStore
from mstar.storage.ids import quoted
from mstar.training.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatmapConfig:
    """Draw how like a text each patch of a slide is."""

    features: str
    """Feature store, or a label and stores: mstar=F1,F2."""

    stage1: str
    """Folder that `mstar stage1 --out` wrote."""

    slides: tuple[str, ...]
    """Ids of slides in the store."""

    text: str
    """What to look for."""

    out: str
    """Folder: <slide>.png and <slide>.geojson.gz; local or s3://."""

    minus: str = ""
    """A text whose similarity is taken off: what the first says beyond this one."""

    stage2: str = ""
    """Folder that `mstar stage2 --out` wrote; empty: the aggregator's tokens."""

    window: int = 4096
    """Patches that the aggregator sees at once, for tokens."""

    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant before a file is read."""
        if not self.text.strip() or not self.slides:
            raise ConfigError("mstar heatmap: expected --text and --slides, got an empty one.")


def run(config: HeatmapConfig) -> int:
    """Draw every slide."""
    (roots,) = parse_features([config.features]).values()
    stores = [FeatureStore.open(root) for root in roots]
    texts = [config.text, *([config.minus] if config.minus.strip() else [])]
    text_side = TextSide(config.stage1, config.device)
    vectors = text_side.vectors(text_side.token_ids(texts, ["--text", "--minus"][: len(texts)]))
    question = vectors[0] - (vectors[1] if len(vectors) > 1 else 0.0)
    patch_side = PatchSide(config.stage1, config.stage2, window=config.window, device=config.device)
    said = config.text + (f" − {config.minus}" if len(vectors) > 1 else "")
    for slide_id in config.slides:
        store = next((one for one in stores if one.has(slide_id)), None)
        if store is None:
            raise FeatureError(f"--slides {slide_id}: expected a slide of {config.features}.")
        slide = store.read(slide_id)
        scores = patch_side.vectors(slide.features).cpu().numpy() @ question
        written = write_heatmap(
            config.out, quoted(slide_id), slide, scores.astype(np.float32), said
        )
        print(f"heatmap: {slide_id}: {len(scores):,} patches, {scores.min():+.3f} to "
              f"{scores.max():+.3f}: {written[0]}")  # fmt: skip
    return ExitCode.COMPLETE
